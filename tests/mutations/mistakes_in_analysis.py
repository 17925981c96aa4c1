"""Mistakes in `reparam/analysis/`."""

from tests.mutations.mistake import Mistake

IN_ANALYSIS = [
    Mistake(
        "what is written in place for somebody is written for nobody",
        "analysis/facts.py",
        "        if only_writes and places.isdisjoint(used) and places.isdisjoint(lasting):\n",
        "        if only_writes and places.isdisjoint(lasting):\n",
    ),
    Mistake(
        "what is written to the input is written for nobody",
        "analysis/facts.py",
        "        if only_writes and places.isdisjoint(used) and places.isdisjoint(lasting):\n",
        "        if only_writes and places.isdisjoint(used):\n",
    ),
    Mistake(
        "what is named after a value is made of it, whoever uses older names",
        "analysis/aliasing.py",
        "self._uses[place].older(position) > position or ",
        "",
    ),
    Mistake(
        "an operator in place is no write to what older names read later",
        "analysis/aliasing.py",
        "self._uses[place].older(position) <= position for",
        "True for",
    ),
    Mistake(
        "writes up to a position are overlooked",
        "analysis/aliasing.py",
        "            start = bisect_right(writers, first, key=order)\n",
        "            start = bisect_right(writers, last, key=order)\n",
    ),
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
