"""How long operators take: the cost function ``"latency"``."""

from __future__ import annotations

from math import inf

import torch
from torch.utils.benchmark import Timer

from reparam.weighing import Measure, Operator

_SECONDS = 0.02
"""How long an operator is run again and again."""


class LatencyCost:
    """Measures each operator once, by itself, on random values of the sizes that it has.

    An operator that does not run by itself costs nothing if it is in the model, and is infinitely
    slow if it is planned: nothing is replaced for a gain that was not measured.
    """

    def __init__(self) -> None:
        self._measured: dict[Operator, float] = {}

    def __call__(self, operator: Operator) -> float:
        """The median time of an operator, in microseconds."""
        if operator not in self._measured:
            self._measured[operator] = _time(operator)
        return self._measured[operator]


def _time(operator: Operator) -> float:
    unknown = inf if operator.planned else 0.0
    if operator.run is None:
        return unknown
    timer = Timer("run()", globals={"run": operator.run}, num_threads=torch.get_num_threads())
    try:
        return timer.blocked_autorange(min_run_time=_SECONDS).median * 1e6
    except Exception:  # it needs more than tensors of its sizes
        return unknown


def latency() -> Measure:
    """The time that operators take on this machine; every call measures anew."""
    return Measure(LatencyCost(), "microseconds", needs_sizes=True)
