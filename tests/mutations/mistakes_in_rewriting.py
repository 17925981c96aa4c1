"""Mistakes in `reparam/rewriting/`."""

from tests.mutations.mistake import Mistake

IN_REWRITING = [
    Mistake(
        "a fused forward takes any argument for a tensor",
        "rewriting/fused_forward.py",
        "            and all(_is_tensor(arguments[name], keys) for name, *keys in self.tensors)\n",
        "",
    ),
    Mistake(
        "the rank of what was traced is that of every way in",
        "rewriting/placement.py",
        "            and not rests_on_rank(region, self.facts)\n",
        "",
    ),
    Mistake(
        "a method with options never runs as it was",
        "rewriting/other_methods.py",
        "    sure = [way for way in ways if knows_only_tensors(way.call)]\n",
        "    sure = list(ways)\n",
    ),
    Mistake(
        "what methods with new code ran stays",
        "rewriting/pruning.py",
        "        protected.difference_update(released.get(owner, ()))\n",
        "",
    ),
    Mistake(
        "what stays beside its operator is trained on",
        "rewriting/frozen_parts.py",
        "requires_grad=False",
        "requires_grad=True",
    ),
    Mistake(
        "other tensors of a module stay where one is read",
        "rewriting/pruning.py",
        "        _drop_tensors(module, kept)\n",
        "",
    ),
]
