"""The branches of a region add up to its kernel.

Their constants do not: what acts on a sum adds its constant once, and acts on every branch.
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.algebra.affine import AffineConv, identity
from reparam.analysis.parts import Part
from reparam.planning.regions import Region
from reparam.report.html.branches import Formula, composed, formula
from tests.models.block import Block
from tests.models.catalogue import BLOCKS
from tests.support.randomise import randomise_batch_norm


def regions(model: nn.Module) -> list[tuple[Part, Region]]:
    parts = reparam.plan(model)._parts
    return [(planned.part, region) for planned in parts for region in planned.decision.regions]


def trained(block: Block) -> nn.Module:
    torch.manual_seed(0)
    return randomise_batch_norm(block.build().eval(), seed=0).double()


def total(written: Formula, base: Any) -> AffineConv | None:
    """The sum of the branches, each composed by itself; None where one is no convolution."""
    forms = [composed(branch) for branch in written.branches]
    if written.stacked or written.left_out:
        return None
    known: list[Any] = [identity(base) if form is None else form for form in forms]
    if not all(isinstance(form, AffineConv) for form in known):
        return None
    added = reduce(lambda one, two: one.plus(two), known)
    return added if isinstance(added, AffineConv) else None


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_branches_add_up_to_the_new_operator(block: Block) -> None:
    for part, region in regions(trained(block)):
        written = formula(part, region)
        assert written.branches, "every region comes from its base somehow"
        whole = total(written, region.base)
        if whole is None or whole.axes != region.form.axes:
            continue
        kernel, _ = whole.with_channels(region.form.in_channels).weights.evaluate()
        expected, _ = region.form.weights.evaluate()
        if kernel.shape == expected.shape:
            torch.testing.assert_close(kernel, expected)


def test_most_blocks_have_a_picture_of_every_branch() -> None:
    known = [
        total(formula(part, region), region.base) is not None
        for block in BLOCKS
        for part, region in regions(trained(block))
    ]
    assert sum(known) > 0.85 * len(known)


def test_branches_are_called_by_what_tells_them_apart() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4))
            self.point = nn.Conv2d(4, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(x) + self.point(x) + x

    ((part, region),) = regions(nn.Sequential(Branches()).eval())
    written = formula(part, region)
    assert [branch.name for branch in written.branches] == ["dense", "point", "identity"]
    assert written.branches[0].operators == (
        ("Conv2d", "0.dense.0"),
        ("BatchNorm2d", "0.dense.1"),
    )
    assert written.constant
    assert not written.stacked


def test_branches_with_one_name_are_numbered() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(x) + self.layer(x)

    names = [
        branch.name
        for part, region in regions(Twice().eval())
        for branch in formula(part, region).branches
    ]
    assert names == ["layer #1", "layer #2"]


def test_many_branches_are_counted_and_not_all_listed() -> None:
    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(30))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([layer(x) for layer in self.layers]).sum(0)

    ((part, region),) = regions(Many().eval())
    written = formula(part, region)
    assert len(written.branches) + written.left_out == 30
    assert len(written.branches) < 15


def test_ways_that_multiply_do_not_take_forever() -> None:
    class Doubling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for _ in range(60):
                x = x * 0.5 + x * 0.25
            return x

    ((part, region),) = regions(nn.Sequential(nn.Conv2d(2, 2, 1), Doubling()).eval())
    written = formula(part, region)
    assert len(written.branches) < 15
    assert written.left_out > 2**59
