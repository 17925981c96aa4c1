"""Every block of the literature becomes what its paper says, without a rule of its own.

What each must become stands next to it in `tests/models/`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.models.block import Block, Shape
from tests.models.catalogue import BLOCKS
from tests.refusals.checking import EXACT, assert_reported
from tests.support.counting import (
    CONVOLUTIONS,
    TRANSPOSED,
    ExecutedOperators,
    OperatorCounts,
    count_operators,
    is_linear,
    operator_name,
)
from tests.support.errors import float64_twin, relative_error, run
from tests.support.randomise import randomise_batch_norm


@cache
def trained(block: Block, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The block in evaluation mode, with statistics and scales at which mistakes show."""
    torch.manual_seed(0)
    return randomise_batch_norm(block.build().eval(), seed=0).to(dtype)


@cache
def fused(block: Block, dtype: torch.dtype = torch.float64) -> nn.Module:
    return reparam.fuse(trained(block, dtype))


def inputs(block: Block, dtype: torch.dtype = torch.float64) -> Iterator[tuple[Tensor]]:
    """One batch of each shape; the same numbers in every type."""
    generator = torch.Generator().manual_seed(1)
    for shape in block.shapes:
        yield (torch.randn(shape, generator=generator).to(dtype),)


def executed_kernels(model: nn.Module, x: tuple[Tensor]) -> tuple[Shape, ...]:
    """Of the weights of convolutions and linear layers, in the order in which they run."""
    shapes: list[Shape] = []

    def seen(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> None:
        del kwargs, output
        name = operator_name(func)
        if name in CONVOLUTIONS | TRANSPOSED or is_linear(name, args):
            shapes.append(tuple(args[1].shape))

    model = deepcopy(model)
    with ExecutedOperators(seen):
        model(*x)
    return tuple(shapes)


def others(counts: OperatorCounts) -> OperatorCounts:
    """What is executed besides convolutions, linear layers, and what is not affine."""
    return replace(counts, convolutions=0, linears=0, total=0, macs=0)


def each(blocks: list[Block]) -> list[Any]:
    """The blocks as test parameters."""
    return [pytest.param(block, id=block.name) for block in blocks]


def each_decided(blocks: list[Block]) -> list[Any]:
    """Those of which is decided what they become; what they do not reach yet must fail."""
    return [
        pytest.param(
            block,
            id=block.name,
            marks=()
            if not block.missed
            else pytest.mark.xfail(strict=True, raises=AssertionError, reason=block.missed),
        )
        for block in blocks
        if block.kernels is not None
    ]


@pytest.mark.parametrize("block", each(BLOCKS))
def test_the_outputs_are_exact(block: Block) -> None:
    for x in inputs(block):
        assert relative_error(run(fused(block), x), run(trained(block), x)) <= EXACT


@pytest.mark.parametrize("block", each(BLOCKS))
def test_float32_is_as_near_to_the_truth_as_before(block: Block) -> None:
    model, exact = trained(block, torch.float32), float64_twin(trained(block, torch.float32))
    for x in inputs(block, torch.float32):
        truth = run(exact, (x[0].double(),))
        before, after = (
            relative_error(run(form, x), truth) for form in (model, fused(block, torch.float32))
        )
        assert after <= 4 * (before + torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("block", each_decided(BLOCKS))
def test_it_becomes_what_its_paper_says(block: Block) -> None:
    for x in inputs(block):
        context = str(fused(block).reparam_report)
        assert executed_kernels(fused(block), x) == block.kernels, context
        assert others(count_operators(fused(block), x)) == block.left, context


@pytest.mark.parametrize("block", each_decided([block for block in BLOCKS if block.by_hand]))
def test_no_more_operators_than_by_hand(block: Block) -> None:
    by_hand = block.by_hand
    assert by_hand is not None
    for x in inputs(block):
        ours = count_operators(fused(block), x)
        assert ours.convolutions <= by_hand.convolutions
        assert ours.linears <= by_hand.linears
        assert ours.batch_norms <= by_hand.batch_norms
        assert ours.additions <= by_hand.additions


@pytest.mark.parametrize("block", each(BLOCKS))
def test_no_operator_is_added(block: Block) -> None:
    for x in inputs(block):
        before, after = count_operators(trained(block), x), count_operators(fused(block), x)
        assert after.total <= before.total
        assert after.macs <= before.macs


@pytest.mark.parametrize("block", each([block for block in BLOCKS if block.refused]))
def test_what_stays_is_reported(block: Block) -> None:
    for refused in block.refused:
        assert_reported(fused(block).reparam_report, refused.place, refused.reason)


def test_names_are_unique() -> None:
    names = [block.name for block in BLOCKS]
    assert len(set(names)) == len(names)
