"""Mistakes in `reparam/analysis/`."""

from tests.mutations.mistake import Mistake

IN_ANALYSIS = [
    Mistake(
        "a write is seen by a reader of the same name only",
        "analysis/aliasing.py",
        "any(self._is_read(n, first, ignoring) for n in others)\n",
        "False\n",
    ),
    Mistake(
        "a value has the sizes of any other of its rank",
        "analysis/extents.py",
        "            self.origin(value, axis) == self.origin(other, axis)\n",
        "            True\n",
    ),
]
