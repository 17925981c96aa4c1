"""Mistakes in `reparam/verification/`."""

from tests.mutations.mistake import Mistake

IN_VERIFICATION = [
    Mistake(
        "the untouched original is not run",
        "verification/module_check.py",
        "            and (call not in able or not self._agrees(call, self._inner(call, able)))\n",
        "            and call not in able\n",
    ),
]
