"""What must hold of every fused network, whichever library it comes from."""

import re
import time
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam.report import Report
from tests.corpora.network import Network
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import FLOAT64_BOUND, float64_inputs, relative_error, run
from tests.support.leftovers import leftover_batch_norms
from tests.support.snapshots import difference, snapshot


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
