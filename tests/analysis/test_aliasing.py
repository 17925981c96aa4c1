"""What shares memory: what unknown code returns with all it got, what it got only in containers."""

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


class Sizes(nn.Module):
    """Code that cannot be traced and returns something new."""

    def forward(self, *values: Tensor) -> Tensor:
        sizes = [torch.ones(1).double() for value in values if value.shape[-1] > 2]
        return torch.cat(sizes).sum()


class First(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first if first.sum() == first.sum() else second


class Holder(nn.Module):
    """Puts what it gets into a list, unless that is empty."""

    def forward(self, values: list[Tensor], value: Tensor) -> None:
        if len(values):
            values.append(value)


class Doubles(nn.Module):
    def forward(self, values: list[Tensor]) -> None:
        for value in values:
            value.mul_(2)


class Lists(nn.Module):
    def forward(self, value: Tensor) -> list[Tensor]:
        return [value * 1] if value.sum() == value.sum() else []


def network(forward: Callable[..., Any]) -> nn.Module:
    return ready(
        Network(
            forward,
            a=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            b=nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)),
            act=nn.SiLU(inplace=True),
            sizes=Sizes(), first=First(), holder=Holder(), doubles=Doubles(), lists=Lists(),
        )
    )  # fmt: skip


def anchors(m: Any, x: Tensor) -> Tensor:
    y, z = m.act(m.a(x)), m.act(m.b(x.sin()))
    return y * z * m.sizes(y, z)


def anchors_of_three(m: Any, x: Tensor) -> Tensor:
    y, z = m.a(x).relu_(), m.b(x.sin())
    z = z.mul_(y.sigmoid())
    return y + z.relu_() * m.sizes(y, z, x.cos())


@pytest.mark.parametrize("forward", [anchors, anchors_of_three], ids=lambda f: f.__name__)
def test_what_unknown_code_gets_are_no_views_of_each_other(forward: Callable[..., Any]) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


def writes_to_the_first(m: Any, x: Tensor) -> Tensor:
    y, z = m.a(x), m.b(x)
    m.first(y, z).mul_(2)
    return y + z


def writes_through_two(m: Any, x: Tensor) -> Tensor:
    y, z, u = m.a(x), m.b(x), x.sin()
    m.first(m.first(y, z), u).mul_(2)
    return (y + z) * u


def puts_into_a_list(m: Any, x: Tensor) -> Tensor:
    values, y = m.lists(x.cos()), m.a(x)
    m.holder(values, y)
    m.doubles(values)
    return y + m.b(x)


def appends(m: Any, x: Tensor) -> Tensor:
    values, y = m.lists(x.cos()), m.a(x)
    values.append(y)
    m.doubles(values)
    return y + m.b(x)


def puts_a_view_into_a_list(m: Any, x: Tensor) -> Tensor:
    values, y = m.lists(x.cos()), m.a(x) + m.b(x)
    values.append(y.flatten(1))
    m.doubles(values)
    return y * 3


def written_between(m: Any, x: Tensor) -> Tensor:
    """One branch reads the value before it is doubled, the other one afterwards."""
    values, y = m.lists(x.cos()), x.sin()
    m.holder(values, y)
    before = m.a(y)
    m.doubles(values)
    return before + m.b(y)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "forward",
    [
        writes_to_the_first, writes_through_two, puts_into_a_list, appends,
        puts_a_view_into_a_list, written_between,
    ],
    ids=lambda forward: forward.__name__,
)  # fmt: skip
def test_what_unknown_code_may_write_to(forward: Callable[..., Any], verify: bool) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model, verify=verify)
    for given in (x, x.to(memory_format=torch.channels_last)):
        assert relative_error(run(fused, (given,)), run(model, (given,))) <= EXACT
