"""What must hold of every fused network, whichever library it comes from."""

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

import reparam
from reparam.report import Report
from tests.corpora.network import Network
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import float64_inputs, run


@dataclass
class Fusion:
    """A network in float64, before and after."""

    network: Network
    seed: int = 0
    count: int = 2
    """Of inputs."""
    seconds: float = 0.0
    """How long `fuse` took."""

    @cached_property
    def inputs(self) -> tuple[Any, ...]:
        return float64_inputs(self.network.inputs(self.count, self.seed + 1))

    @cached_property
    def model(self) -> nn.Module:
        return self.network.build(self.seed).double()

    @cached_property
    def exact(self) -> Any:
        return run(self.model, self.inputs)

    @cached_property
    def fused(self) -> nn.Module:
        start = time.perf_counter()
        fused = reparam.fuse(self.model)
        self.seconds = time.perf_counter() - start
        return fused

    @cached_property
    def report(self) -> Report:
        report = self.fused.reparam_report
        assert isinstance(report, Report)
        return report

    @cached_property
    def counts(self) -> OperatorCounts:
        return count_operators(self.model, self.inputs)

    @cached_property
    def fused_counts(self) -> OperatorCounts:
        return count_operators(self.fused, self.inputs)

    @cached_property
    def hand_counts(self) -> OperatorCounts | None:
        hand = self.network.by_hand(self.model)
        return None if hand is None else count_operators(hand, self.inputs)
