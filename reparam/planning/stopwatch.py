"""Times things until it is known which take longer, on a machine that does other work meanwhile.

Of n times of one thing the median is taken, and s / sqrt(n) as its error, with their standard
deviation s. A difference counts if it is more than three times its own error; until then all are
timed again, in turns, so that what slows the machine down for a while slows them all.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Hashable
from math import inf, sqrt
from typing import Generic, TypeVar

T = TypeVar("T")

_FIRST = 5
"""How often a thing is timed at least."""

_MOST = 20
"""How often a thing is timed at most."""

_CERTAIN = 3.0
"""How many times its own error a difference has to be."""


class Stopwatch(Generic[T]):
    """Times things, and remembers.

    Args:
        time: Times one thing once.
        kind: What two things have in common that take the same time.
    """

    def __init__(self, time: Callable[[T], float], kind: Callable[[T], Hashable]) -> None:
        self._time = time
        self.kind = kind
        self._one: dict[Hashable, T] = {}
        self._times: dict[Hashable, list[float]] = {}

    def __call__(self, thing: T) -> float:
        """How long a thing takes: the median of some runs."""
        kind = self.kind(thing)
        if kind not in self._times:
            self._one[kind] = thing
            self._times[kind] = [self._time(thing)]
            self._again([kind], _FIRST)
        return self._median(kind)

    def longer(self, first: Counter[Hashable], second: Counter[Hashable]) -> float | None:
        """How much longer things of some kinds take than others; None if nobody can tell.

        They have been timed before.
        """
        kinds = [*(first - second), *(second - first)]
        times = {kind: first[kind] - second[kind] for kind in kinds}
        while True:
            difference = sum(number * self._median(kind) for kind, number in times.items())
            error = sqrt(sum((number * self._error(kind)) ** 2 for kind, number in times.items()))
            runs = min((len(self._times[kind]) for kind in kinds), default=_MOST)
            if abs(difference) > _CERTAIN * error:
                return difference
            if runs >= _MOST:
                return None
            self._again(kinds, runs + 1)

    def _again(self, kinds: list[Hashable], runs: int) -> None:
        """Time things again that were timed less often than that, but for what cannot be."""
        for number in range(1, runs):
            for kind in kinds:
                times = self._times[kind]
                if len(times) <= number:
                    times.append(self._time(self._one[kind]) if times[0] < inf else inf)

    def _median(self, kind: Hashable) -> float:
        return statistics.median(self._times[kind])

    def _error(self, kind: Hashable) -> float:
        times = self._times[kind]
        return statistics.stdev(times) / sqrt(len(times)) if times[0] < inf else 0.0
