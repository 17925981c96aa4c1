"""Sums of concatenations that are cut alike become concatenations of sums."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import (
    EXACT,
    Network,
    assert_gradients_and_states_agree,
    fused_no_dearer,
    images,
    ready,
)
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Any]


def network(forward: Forward) -> nn.Module:
    return ready(
        Network(
            forward,
            f=nn.Conv2d(2, 3, 3, padding=1),
            g=nn.Conv2d(2, 3, 1),
            h=nn.Conv2d(2, 3, 3, padding=1, bias=False),
            k=nn.Conv2d(2, 3, 5, padding=2),
            wide=nn.Conv2d(2, 4, 3, padding=1),
            deep=nn.Conv2d(2, 3, 3, padding=1, groups=1, padding_mode="reflect"),
            own=nn.Conv2d(2, 2, 3, padding=1),
            depthwise=nn.Conv2d(2, 2, 3, padding=1, groups=2),
            norm=nn.BatchNorm2d(3),
            other=nn.BatchNorm2d(2),
            five=nn.BatchNorm2d(5),
            dropout=nn.Dropout(),
            last=nn.Conv2d(5, 4, 1),
        )
    )


def fused(forward: Forward, **options: Any) -> tuple[nn.Module, OperatorCounts]:
    return fused_no_dearer(network(forward), **options)


def two(x: Tensor) -> list[Tensor]:
    return [x[:, :2].sigmoid(), x[:, 2:].relu()]


def cat(*parts: Tensor) -> Tensor:
    return torch.cat(parts, 1)


def shared(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b) + cat(m.g(a), b)).relu()


def of_three(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b) + cat(m.g(a), b) + cat(m.h(a), b)).relu()


def nested(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b) + (cat(m.g(a), b) + cat(m.h(a), b))).relu()


def nested_with_parts_read_elsewhere(m: Any, x: Tensor) -> Any:
    a, b = two(x)
    g, h = m.g(a), m.h(a)
    return (cat(m.f(a), b) + (cat(g, b) + cat(h, b))).relu(), g, h


def distinct(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), m.g(b)) + cat(m.h(a), m.k(b))).relu()


def beside_another(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return ((cat(m.f(a), b) + cat(b, m.f(b)).tanh()) + cat(m.g(a), b)).relu()


def another_first(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(b, m.k(b)).tanh() + cat(m.f(a), b) + cat(m.g(a), b)).relu()


def with_norms(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.norm(m.f(a)), b) + cat(m.g(a), b)).relu()


def before_a_convolution(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return m.last(cat(m.f(a), b) + cat(m.g(a), b))


def three_parts(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b, m.g(b)) + cat(m.h(a), b, m.k(b))).relu()


def over_one_value_of_their_own(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.depthwise(a), b) + cat(a, b)).relu()


def identities(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.dropout(m.f(a)), b) + cat(m.g(a), b)).relu()


def in_place(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return cat(m.f(a), b).add_(cat(m.g(a), b)).relu_()


def a_norm_of_the_sum(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    both: Tensor = m.five(cat(m.f(a), m.own(b)) + cat(m.h(a), m.depthwise(b))).relu()
    return both


def a_norm_of_a_shared_part(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), m.other(b)) + cat(m.g(a), b)).relu()


def along_the_height(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (torch.cat([m.f(a), m.g(b)], 2) + torch.cat([m.h(a), m.k(b)], 2)).relu()


JOINED: dict[Forward, tuple[int, int, int]] = {
    shared: (1, 0, 1),
    of_three: (1, 0, 1),
    nested: (1, 0, 1),
    nested_with_parts_read_elsewhere: (3, 0, 1),
    distinct: (2, 0, 0),
    beside_another: (2, 1, 1),
    another_first: (2, 1, 1),
    with_norms: (1, 0, 1),
    before_a_convolution: (2, 0, 1),
    three_parts: (2, 0, 1),
    over_one_value_of_their_own: (1, 0, 1),
    identities: (1, 0, 1),
    in_place: (1, 0, 1),
    a_norm_of_the_sum: (2, 0, 0),
    a_norm_of_a_shared_part: (1, 0, 0),
    along_the_height: (2, 0, 0),
}
"""Convolutions, additions and multiplications that are left."""


@pytest.mark.parametrize("forward", JOINED, ids=lambda forward: forward.__name__)
@pytest.mark.parametrize("example", [False, True])
def test_sums_part_by_part(forward: Forward, example: bool) -> None:
    result, counts = fused(forward, example_inputs=images() if example else None)
    left = counts.convolutions, counts.additions, counts.multiplications
    assert left == JOINED[forward], result.reparam_report
    assert counts.batch_norms == (forward is a_norm_of_a_shared_part)


def read_elsewhere(m: Any, x: Tensor) -> Any:
    a, b = two(x)
    first = cat(m.f(a), b)
    return first + cat(m.g(a), b), first


def both_parts_read_elsewhere(m: Any, x: Tensor) -> Any:
    a, b = two(x)
    first, second = m.f(a), m.g(a)
    return (cat(first, b) + cat(second, b)).relu(), first.tanh(), second.tanh()


def cut_elsewhere(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b.repeat(1, 2, 1, 1)) + cat(m.wide(a), m.g(b))).relu()


def of_other_values(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b) + cat(m.g(b), b)).relu()


def in_another_order(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.own(a), b) + cat(b, m.own(a))).relu()


def padded_otherwise(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    return (cat(m.f(a), b) + cat(m.deep(a), b)).relu()


def dearer(m: Any, x: Tensor) -> Tensor:
    """A dense kernel of one tap and a depthwise one of nine."""
    a, b = two(x)
    y = a * 1.5
    return (cat(m.depthwise(y), b) + cat(m.own(y).tanh(), b)).relu()


def written_between(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    first = cat(m.f(a), b)
    b.unsqueeze(0).tanh_()
    return (first + cat(m.g(a), b)).relu()


def base_written_between(m: Any, x: Tensor) -> Tensor:
    a, b = two(x)
    first = m.f(a)
    a.tanh_()
    return (cat(first, b) + cat(m.g(a), b)).relu()


STAYS = [
    read_elsewhere,
    both_parts_read_elsewhere,
    cut_elsewhere,
    of_other_values,
    in_another_order,
    padded_otherwise,
    dearer,
    written_between,
    base_written_between,
]


@pytest.mark.parametrize("forward", STAYS, ids=lambda forward: forward.__name__)
def test_what_is_no_sum_of_parts_stays(forward: Forward) -> None:
    _, counts = fused(forward)
    before = count_operators(network(forward), (images(),))
    assert counts.additions == before.additions
    assert counts.convolutions == before.convolutions


def test_parameters_of_another_type_stay() -> None:
    def mixed(m: Any, x: Tensor) -> Tensor:
        a, b = two(x)
        return (cat(m.f(a), b) + cat(m.g(a.float()), b)).relu()

    model = network(mixed)
    model.g = model.g.float()
    result = reparam.fuse(model)
    assert relative_error(run(result, (images(),)), run(model, (images(),))) <= EXACT
    assert count_operators(result, (images(),)).convolutions == 2


class Half(nn.Module):
    """A block that gives a concatenation."""

    def __init__(self, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, kernel, padding=kernel // 2)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.cat([self.conv(a), b], 1)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Half(3), Half(1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = two(x)
        return (self.first(a, b) + self.second(a, b)).relu()


class Norms(Blocks):
    """The same with one block for both, which has to stay what it is."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = two(x)
        return (self.first(a, b) + self.second(a, b)).relu() + self.first(b, a)


@pytest.mark.parametrize("kind", [Blocks, Norms])
def test_blocks_that_give_concatenations(kind: type[nn.Module]) -> None:
    model = ready(kind())
    result = reparam.fuse(copy.deepcopy(model))
    x = images()
    assert relative_error(run(result, (x,)), run(model, (x,))) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(result, (x,))
    assert after.convolutions == before.convolutions - 1
    assert after.total < before.total


def test_an_exported_program_and_the_page_of_a_plan(tmp_path: Any) -> None:
    model = network(shared)
    result = reparam.fuse(torch.export.export(model, (images(),)))
    assert relative_error(run(result.module(), (images(),)), run(model, (images(),))) <= EXACT
    called = [str(node.target) for node in result.graph.nodes if node.op == "call_function"]
    assert sum("conv" in name for name in called) == 1
    assert not any("add" in name for name in called)
    pytest.importorskip("jinja2")
    reparam.plan(model).to_html(tmp_path / "plan.html")
    assert "cat + mul" in (tmp_path / "plan.html").read_text(encoding="utf-8")


def test_gradients_and_states_agree() -> None:
    assert_gradients_and_states_agree(network(shared))
