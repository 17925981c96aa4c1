"""Mistakes in `reparam/verification/`."""

from tests.mutations.mistake import Mistake

IN_VERIFICATION = [
    Mistake(
        "the untouched original is not run",
        "verification/module_check.py",
        "            if call not in able or not self._agrees(call, self._inner(call, able))\n",
        "            if call not in able\n",
    ),
    Mistake(
        "a part that did not run agrees",
        "verification/call_samples.py",
        "        if len(self.calls) != runs * len(self.samples):\n            return inf\n",
        "",
    ),
]
