"""What must hold of every fused network, whichever library it comes from."""

import time
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import reparam
from reparam.report.tables import RefusedRow, Report
from tests.corpora.network import STAYING, Network
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import (
    FLOAT64_BOUND,
    float64_inputs,
    float64_twin,
    relative_error,
    relative_errors,
    run,
)
from tests.support.leftovers import leftover_batch_norms
from tests.support.randomise import is_batch_norm
from tests.support.snapshot import Snapshot


@dataclass
class Fusion:
    """A network before and after, and what it computes in float64."""

    network: Network
    seed: int = 0
    count: int = 2
    """Of inputs."""
    dtype: torch.dtype = torch.float64
    seconds: float = 0.0
    """How long `fuse` took."""
    changed: str = ""
    """What `fuse` changed of the model that it was given."""

    @cached_property
    def inputs(self) -> tuple[Any, ...]:
        inputs = self.network.inputs(self.count, self.seed + 1)
        return float64_inputs(inputs) if self.dtype == torch.float64 else inputs

    @cached_property
    def model(self) -> nn.Module:
        return self.network.build(self.seed).to(self.dtype)

    @cached_property
    def exact(self) -> Any:
        return run(float64_twin(self.model), float64_inputs(self.inputs))

    @cached_property
    def fused(self) -> nn.Module:
        before = Snapshot(self.model)
        start = time.perf_counter()
        fused = reparam.fuse(self.model)
        self.seconds = time.perf_counter() - start
        self.changed = before.difference()
        return fused

    @property
    def report(self) -> Report:
        report = self.fused.reparam_report
        assert isinstance(report, Report)
        return report

    @cached_property
    def hand(self) -> nn.Module | None:
        hand = self.network.by_hand(deepcopy(self.model))
        return None if hand is None else hand.to(self.dtype)  # some make float32 of all types

    @cached_property
    def counts(self) -> OperatorCounts:
        return self._counts(self.model)

    @cached_property
    def fused_counts(self) -> OperatorCounts:
        return self._counts(self.fused)

    @cached_property
    def hand_counts(self) -> OperatorCounts | None:
        return None if self.hand is None else self._counts(self.hand)

    def _counts(self, model: nn.Module) -> OperatorCounts:
        """The operators of the second run: in the first some networks fill a cache."""
        model = deepcopy(model)
        run(model, self.inputs)
        return count_operators(model, self.inputs)

    @property
    def untraced(self) -> list[RefusedRow]:
        """The refusals of modules whose code stays as it is."""
        return [row for row in self.report.refused if "cannot be traced" in row.reason]

    def error(self, model: nn.Module) -> float:
        """How far the model's output is from the exact one."""
        return relative_error(run(model, self.inputs), self.exact)


def each(networks: Iterable[Network]) -> list[Any]:
    """The networks as test parameters, with the mark of the run that takes them."""
    return [
        pytest.param(
            network,
            id=network.name,
            marks=getattr(pytest.mark, network.mark) if network.mark else (),
        )
        for network in networks
    ]


class NetworkTests:
    """The tests of a module that has a fixture `fusion`."""

    def test_outputs_are_equal_in_structure_types_and_values(self, fusion: Fusion) -> None:
        output = run(fusion.fused, fusion.inputs)
        assert type(output) is type(fusion.exact)
        dtypes, exact_dtypes = (
            [leaf.dtype if isinstance(leaf, Tensor) else None for leaf in tree_leaves(one)]
            for one in (output, fusion.exact)
        )
        assert dtypes == exact_dtypes
        assert max(relative_errors(output, fusion.exact)) <= FLOAT64_BOUND

    def test_the_model_is_untouched(self, fusion: Fusion) -> None:
        assert fusion.fused is not fusion.model
        assert not fusion.changed, f"the user's model changed: {fusion.changed}"

    def test_no_operator_is_added(self, fusion: Fusion) -> None:
        before, after = fusion.counts, fusion.fused_counts
        context = f"{after}\nbefore {before}"
        assert after.convolutions <= before.convolutions, context
        assert after.linears <= before.linears, context
        assert after.batch_norms <= before.batch_norms, context
        assert after.additions <= before.additions, context
        assert after.total <= before.total, context
        assert after.macs <= before.macs, context

    def test_no_more_operators_than_the_hand_written_form(self, fusion: Fusion) -> None:
        by_hand, ours = fusion.hand_counts, fusion.fused_counts
        if by_hand is None:
            pytest.skip("the library has no hand-written form")
        if not fusion.network.within_reach:
            pytest.skip("its weights are computed in forward")
        context = f"{ours}\nby hand {by_hand}"
        assert ours.convolutions <= by_hand.convolutions, context
        assert ours.linears <= by_hand.linears, context
        assert ours.batch_norms <= by_hand.batch_norms, context
        assert ours.additions <= by_hand.additions, context

    def test_no_batch_norm_is_left_that_a_neighbour_could_absorb(self, fusion: Fusion) -> None:
        left = leftover_batch_norms(fusion.fused, fusion.inputs)
        assert len(left) == STAYING.get(fusion.network.name, 0), "\n".join(map(str, left))

    def test_refusals_have_a_reason_and_a_place(self, fusion: Fusion) -> None:
        modules = dict(fusion.model.named_modules())
        for row in fusion.report.refused:
            path, _, operator = row.place.partition(" (")
            assert row.operator, row
            assert row.reason, row
            of_the_root = path == "the model" or (path.isidentifier() and not operator)
            assert path in modules or of_the_root, row

    def test_each_batch_norm_that_stays_is_in_the_report(self, fusion: Fusion) -> None:
        refused = [row.place.partition(" (")[0] for row in fusion.report.refused]
        unexplained = [
            path
            for path in executed_batch_norms(fusion.fused, fusion.inputs)
            if not any(is_within(path, place) for place in refused)
        ]
        assert not unexplained

    def test_every_ancestor_keeps_its_class(self, fusion: Fusion) -> None:
        assert type(fusion.fused) is type(fusion.model)
        before = dict(fusion.model.named_modules())
        for path, module in fusion.fused.named_modules():
            if path in before and any(True for _ in before[path].children()):
                assert type(module) is type(before[path]), path


def is_within(path: str, place: str) -> bool:
    """Whether a module is the one at a place of the report, or a part of it."""
    return place in {path, "the model"} or path.startswith(f"{place}.")


def executed_batch_norms(model: nn.Module, inputs: tuple[Any, ...]) -> list[str]:
    """The batch norm modules that one forward calls."""
    model, called = deepcopy(model), list[str]()
    for path, module in model.named_modules():
        if is_batch_norm(module):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    run(model, inputs)
    return called
