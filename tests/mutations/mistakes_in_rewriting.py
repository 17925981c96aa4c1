"""Mistakes in `reparam/rewriting/`."""

from tests.mutations.mistake import Mistake

IN_REWRITING = [
    Mistake(
        "a part of code that may run as it was has new code",
        "rewriting/grafting.py",
        "            call is not frame and frame in call.ancestry() and self._stays(call)\n",
        "            False\n",
    ),
    Mistake(
        "a part of which nothing is left goes although a method calls it",
        "rewriting/grafting.py",
        "        for path, caller in vanished:\n            keep_for_methods",
        "        for path, caller in []:\n            keep_for_methods",
    ),
    Mistake(
        "code that looks at its parts goes on running without them",
        "rewriting/placement.py",
        "isdisjoint(self._looking(region) | self.trace.onlookers.telling_apart)\n",
        "isdisjoint(self.trace.onlookers.telling_apart)\n",
    ),
    Mistake(
        "code that tells objects apart goes on running with identities",
        "rewriting/placement.py",
        "isdisjoint(self._looking(region) | self.trace.onlookers.telling_apart)\n",
        "isdisjoint(self._looking(region))\n",
    ),
    Mistake(
        "code outside that looks at a part does not find it",
        "rewriting/placement.py",
        "        if self._looking(region) - {id(call.module) for call in self._around(region)}:\n",
        "        if False:\n",
    ),
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
    Mistake(
        "what code decides is not checked where only its parts change",
        "rewriting/grafting.py",
        "edited |= {call for call in touched if call.decided}",
        "edited |= set()",
    ),
    Mistake(
        "a caller that gives one value twice always does",
        "rewriting/grafting.py",
        "        if is_given_twice(call) and not all(map(knows_only_tensors, around)):\n"
        "            return False  # called otherwise, the code around it may give it two values\n",
        "",
    ),
    Mistake(
        "what does nothing goes although a method runs it",
        "rewriting/rewriter.py",
        'link.value.op == "call_module" and link.form is not None and link.form.identity:',
        "False:",
    ),
    Mistake(
        "what forward does not read of a part that stays goes on being trained",
        "rewriting/pruning.py",
        "    return [name for name, parameter in parameters if id(parameter) not in kept]\n",
        "    return []\n",
    ),
    Mistake(
        "a sum of concatenations is multiplied once for each of its parts",
        "rewriting/rewriter.py",
        "        if multiple.value in self.multiplied:\n",
        "        if False:\n",
    ),
]
