"""Terms over one value join, however their sum is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Tensor]


def network(forward: Forward) -> nn.Module:
    a, b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
    return ready(Network(forward, a=a, b=b, norm=nn.BatchNorm2d(4)))


def assert_joins(forward: Forward, *, operators: int, convolutions: int = 1) -> None:
    """Fused exactly to so many operators and convolutions."""
    model, x = network(forward), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert after.total == operators, fused.reparam_report
    assert after.convolutions == convolutions
    assert after.macs <= before.macs


def sum_of(parts: nn.ModuleList, y: Tensor, start: Tensor) -> Tensor:
    for part in parts:
        start = start + part(y)
    return start


def in_place(self: Any, x: Tensor) -> Tensor:
    y, z = x.relu(), x.sin()
    z += self.a(y)
    z += self.b(y)
    return z.relu_()


@pytest.mark.parametrize(
    ("forward", "operators"),
    [
        (lambda m, x: x.sin() + m.a(y := x.relu()) + m.b(y), 4),
        (lambda m, x: x.sin() + (m.b(y := x.relu()) + m.norm(m.a(y))), 4),
        (lambda m, x: m.a(y := x.relu()) + (m.b(y) + x.sin()), 4),
        (lambda m, x: m.b(y := x.relu()) + (x.sin() + m.norm(m.a(y))), 4),
        (lambda m, x: m.a(y := x.relu()) + x.sin() + y, 4),
        (lambda m, x: (x.sin() + m.a(y := x.relu())) + (x.cos() + m.norm(m.b(y))) + y, 6),
        (lambda m, x: x.sin().add(m.a(y := x.relu())).add_(m.b(y)), 4),
        (lambda m, x: x.sin() + m.norm(m.a(y := x.relu())) + m.b(y), 4),
        (in_place, 5),
    ],
    ids=["left", "joined", "right", "crossed", "identity", "tree", "methods", "fused", "in place"],
)
def test_two_terms_over_one_value(forward: Forward, operators: int) -> None:
    assert_joins(forward, operators=operators)


def test_many_terms() -> None:
    convs = nn.ModuleList(nn.Conv2d(4, 4, 1 + 2 * (i % 3), padding=i % 3) for i in range(9))
    model, x = (
        ready(Network(lambda m, x: sum_of(m.convs, x.relu(), x.sin()), convs=convs)),
        images(),
    )
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).total == 4


def test_two_groups_of_terms() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y, z = x.relu(), x.sin()
        return self.a(y) + self.b(z) + self.b(y) + self.a(z)

    assert_joins(forward, operators=5, convolutions=2)


def test_a_partial_sum_that_is_read_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        partial = x.sin() + self.a(y := x.relu())
        return (partial + self.b(y)) * partial

    assert_joins(forward, operators=7, convolutions=2)


def test_a_term_that_is_read_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.a(y := x.relu()), self.b(y)
        return (x.sin() + first + second) * first * second

    assert_joins(forward, operators=8, convolutions=2)


def test_a_write_to_a_sum_must_not_reach_what_stands_for_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        z = x.sin()
        partial = z.add_(self.a(y := x.relu()))
        total = partial + self.b(y)
        return total.relu_() * z

    assert_joins(forward, operators=8, convolutions=2)


def test_a_write_between_the_terms() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.sigmoid()
        first, z = self.a(y), y.sin()
        y.mul_(0.5)
        return torch.stack((y, z)).sum(0) + first

    model, x = network(forward), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_sizes_that_were_read_of_a_sum() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        total = x.sin() + self.a(y := x.relu()) + self.b(y)
        return total.reshape(total.shape[0], -1)

    assert_joins(forward, operators=4)
