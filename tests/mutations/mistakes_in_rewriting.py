"""Mistakes in `reparam/rewriting/`."""

from tests.mutations.mistake import Mistake

IN_REWRITING = [
    Mistake(
        "of two arguments that became one value the first is read",
        "rewriting/new_code.py",
        "        for name in sorted(self.parameters, key=self._is_dead):\n",
        "        for name in self.parameters:\n",
    ),
    Mistake(
        "nodes inside a call that are read outside do not matter",
        "rewriting/grafting.py",
        "for node in (*escaping, *read))",
        "for node in read)",
    ),
    Mistake(
        "a hook that comes later on a part of fused code is not looked for",
        "rewriting/fused_forward.py",
        "            and not any(has_hooks(owner.get_submodule(path)) for path in self.unhooked)\n",
        "",
    ),
    Mistake(
        "an argument that equals the traced one is the same whatever its type",
        "rewriting/fused_forward.py",
        "    if type(now) is not type(traced):  # 1 equals True, and code may tell them apart\n",
        "    if False:\n",
    ),
    Mistake(
        "a fused forward takes any argument for a tensor",
        "rewriting/fused_forward.py",
        "            and all(arrives_as_tensor(arguments[name]) for name in self.tensors)\n",
        "",
    ),
    Mistake(
        "a fused forward runs on under autocast",
        "rewriting/fused_forward.py",
        "    if torch.is_autocast_enabled(weight.device.type):\n",
        "    if False:\n",
    ),
    Mistake(
        "a call with state in between is like any other",
        "rewriting/rewriter.py",
        "    if gone & trace.stateful or ({frame} | crossed) & unsettled:\n",
        "    if gone & trace.stateful or set() & unsettled:\n",
    ),
    Mistake(
        "what a link took for granted is not checked",
        "rewriting/rewriter.py",
        "            read = self._checked(base, assumed, owner)\n",
        "            read = base\n",
    ),
    Mistake(
        "an operator says that it is the value",
        "rewriting/likeness.py",
        "    _describe(new, value if old is None else old)\n",
        "    _describe(new, value)\n",
    ),
    Mistake(
        "a new module holds the user's own list",
        "rewriting/likeness.py",
        "    return copy.copy(value) if isinstance(value, list | dict | set) else value\n",
        "    return value\n",
    ),
    Mistake(
        "a module whose weights code reads is replaced",
        "rewriting/placement.py",
        "            and id(old) not in self.read_directly\n",
        "",
    ),
    Mistake(
        "what public methods use is pruned",
        "rewriting/pruning.py",
        "    protected = names_of_public_methods(type(root)) | rewrite.protected.get(owner, "
        "set())\n",
        "    protected = set()\n",
    ),
    Mistake(
        "options in a tuple are of whatever type",
        "rewriting/fused_forward.py",
        "        return len(now) == len(traced) and all(map(_equal, now, traced))\n",
        "        return bool(now == traced)\n",
    ),
    Mistake(
        "the rank of what was traced is that of every way in",
        "rewriting/placement.py",
        "            and not self.rests_on_rank(region)\n",
        "",
    ),
    Mistake(
        "a method gets new code that is right for what forward gives it alone",
        "rewriting/new_code.py",
        "            not self.rewrite.by_size.isdisjoint(run)\n",
        "            False\n",
    ),
    Mistake(
        "two arguments of a method that were the same are always the same",
        "rewriting/new_code.py",
        "            or len(given) < len(arguments)\n",
        "",
    ),
    Mistake(
        "an operator in a method may rest on what its arguments were computed of",
        "rewriting/new_code.py",
        "            or not all(map(set(way.nodes).issuperset, joined))\n",
        "",
    ),
    Mistake(
        "new code of methods returns whatever they did",
        "rewriting/other_methods.py",
        " and _can_be_told(way):",
        ":",
    ),
    Mistake(
        "parts are reached by their names alone",
        "rewriting/placement.py",
        "            and runs_by_name(use.module, use.parts)\n",
        "",
    ),
    Mistake(
        "code of a base class runs the new methods",
        "rewriting/other_methods.py",
        "    used |= names_used_by(kind, freely, ())\n",
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
    Mistake(
        "a method returns a value into which a scale has moved",
        "rewriting/new_code.py",
        "(self.rewrite.dead | self.rewrite.altered)",
        "self.rewrite.dead",
    ),
]
