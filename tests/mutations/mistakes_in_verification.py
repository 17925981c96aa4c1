"""Mistakes in `reparam/verification/`."""

from tests.mutations.mistake import Mistake

IN_VERIFICATION = [
    Mistake(
        "code that may look at its parts is not run with the new ones",
        "verification/module_check.py",
        "            closed.update(self._that_may_look(region, home))\n",
        "",
    ),
    Mistake(
        "new code may raise what the old did not",
        "verification/module_check.py",
        "            if self.refused.get(call) == repr(problem):",
        "            if problem:",
    ),
    Mistake(
        "the untouched original is not run",
        "verification/module_check.py",
        "            if call not in able or not self._agrees(call, self._inner(call, able))\n",
        "            if call not in able\n",
    ),
    Mistake(
        "a part that did not run agrees",
        "verification/call_samples.py",
        " if len(self.errors) == runs * len(self.samples) else inf\n",
        " if self.errors else 0.0\n",
    ),
    Mistake(
        "regions may differ",
        "verification/region_check.py",
        "REGION_BOUND = 1e-9\n",
        "REGION_BOUND = 1e-1\n",
    ),
    Mistake(
        "a large constant hides a wrong kernel",
        "verification/region_check.py",
        "    scale = variation + 1e-5 * expected.abs().amax(others)\n",
        "    scale = expected.abs().amax(others)\n",
    ),
    Mistake(
        "a loud channel hides a quiet one",
        "verification/region_check.py",
        "    others = [axis for axis in range(expected.dim()) if views or axis != channel]\n",
        "    others = list(range(expected.dim()))\n",
    ),
    Mistake(
        "an operator of another size is compared with nothing",
        "verification/region_check.py",
        '            return float("inf")\n',
        "            return 0.0\n",
    ),
    Mistake(
        "modules with new code may differ by a tenth",
        "verification/module_check.py",
        "MODULE_BOUND = 1e-6\n",
        "MODULE_BOUND = 1e-1\n",
    ),
    Mistake(
        "a module that returns something else each time is a function",
        "verification/module_check.py",
        "        if max(error, spread) <= MODULE_BOUND:\n",
        "        if error <= MODULE_BOUND:\n",
    ),
    Mistake(
        "regions of modules are never run in their module",
        "verification/module_check.py",
        "            if not self._stays_in_place(region):\n                closed.add(home)\n",
        "            if not self._stays_in_place(region):\n                pass\n",
    ),
    Mistake(
        "what stands where an operator was is not looked at",
        "verification/module_check.py",
        "            if not _is_in_place(region, self.rewritten, root):\n",
        "            if False:\n",
    ),
    Mistake(
        "a mismatch is rounding",
        "verification/module_check.py",
        "        if error_of_rounding(module, sample, exact) > MODULE_BOUND:\n",
        "        if True:\n",
    ),
    Mistake(
        "rounding is a mismatch",
        "verification/module_check.py",
        "        if error_of_rounding(module, sample, exact) > MODULE_BOUND:\n",
        "        if False:\n",
    ),
    Mistake(
        "what parts are given is not compared",
        "verification/call_samples.py",
        "    return max(_difference(sample.result, result), *errors, 0.0)\n",
        "    return max(_difference(sample.result, result), 0.0)\n",
    ),
    Mistake(
        "constants that are returned may be others",
        "verification/call_samples.py",
        "    return leaf.shape if isinstance(leaf, Tensor) else (type(leaf), leaf)\n",
        "    return leaf.shape if isinstance(leaf, Tensor) else type(leaf)\n",
    ),
    Mistake(
        "the model is compared at one size and in one mode",
        "verification/model_check.py",
        "        for where, mode, change in _OTHERS:\n",
        "        for where, mode, change in ():\n",
    ),
    Mistake(
        "a model that is not the same is returned",
        "verification/transactions.py",
        "        return model if inplace else copied_model(model)\n",
        "        return changed if not inplace else model\n",
    ),
    Mistake(
        "a change in place is not taken back",
        "verification/transactions.py",
        "            with nullcontext() if itself is None else all_or_nothing(itself, written):\n",
        "            with nullcontext():\n",
    ),
]
