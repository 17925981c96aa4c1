"""Parts of the channels in any spelling are rows of the kernel before, or columns of the next."""

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
C = 4


def network(forward: Forward) -> nn.Module:
    parts: dict[str, Any] = {
        "before": nn.Conv2d(C, 3, 1),
        "single": nn.Conv2d(C, 1, 1),
        "after": nn.Conv2d(3, 5, 3),
        "wide": nn.Conv2d(6, 5, 1),
        "norm": nn.BatchNorm2d(5),
        "own": nn.BatchNorm2d(3),
    }
    return ready(Network(forward, **parts))


def assert_total(model: nn.Module, fused: Any, x: Tensor, total: int) -> None:
    """The same numbers by so many operators, and no more multiply-adds."""
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert after.total == total, fused.reparam_report
    assert after.macs <= before.macs


SPELLINGS: dict[str, Forward] = {
    "list": lambda m, y: y[:, [2, 1, 0]],
    "flip": lambda m, y: y.flip(1),
    "flip by a list": lambda m, y: torch.flip(y, [1]),
    "fliplr": lambda m, y: torch.fliplr(y),
    "single channels": lambda m, y: torch.cat([y[:, i].unsqueeze(1) for i in (1, 0, 2)], 1),
    "single channels by None": lambda m, y: torch.cat([y[:, i][:, None] for i in (2, 0, 1)], 1),
    "select": lambda m, y: torch.cat([y.select(1, i).unsqueeze(1) for i in (2, 0, 1)], 1),
    "scaled": lambda m, y: torch.cat([y[:, i].unsqueeze(1) * (i + 2) + i for i in range(3)], 1),
    "the last one first": lambda m, y: torch.cat((y[:, -1].unsqueeze(1), y[:, :2]), 1),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_channels_of_an_inner_value(name: str) -> None:
    model, x = network(lambda m, x: m.after(SPELLINGS[name](m, m.before(x).relu())).sin()), images()
    assert_total(model, reparam.fuse(model, x), x, 4)


REPEATED: dict[str, Forward] = {
    "repeat": lambda m, y: y.repeat(1, 3, 1, 1),
    "tile": lambda m, y: y.tile((1, 3, 1, 1)),
    "expand": lambda m, y: y.expand(-1, 3, -1, -1),
    "expand by sizes": lambda m, y: y.expand(y.shape[0], 3, y.shape[2], y.shape[3]),
    "repeat_interleave": lambda m, y: y.repeat_interleave(3, dim=1),
    "cat": lambda m, y: torch.cat((y,) * 3, 1),
    "list of zeros": lambda m, y: y[:, [0, 0, 0]],
}


@pytest.mark.parametrize("name", REPEATED)
def test_one_channel_several_times(name: str) -> None:
    model = network(lambda m, x: m.after(REPEATED[name](m, m.single(x).relu())).sin())
    assert_total(model, reparam.fuse(model, images()), images(), 4)


@pytest.mark.parametrize("name", ["repeat_interleave", "repeat", "cat"])
def test_several_channels_twice(name: str) -> None:
    twice: dict[str, Callable[[Tensor], Tensor]] = {
        "repeat": lambda y: y.repeat(1, 2, 1, 1),
        "repeat_interleave": lambda y: torch.repeat_interleave(y, 2, 1),
        "cat": lambda y: torch.cat([y, y], 1),
    }
    model = network(lambda m, x: m.norm(m.wide(twice[name](m.before(x).relu()))).sin())
    assert_total(model, reparam.fuse(model), images(), 4)


@pytest.mark.parametrize("name", ["list", "flip", "single channels", "scaled"])
def test_channels_of_the_input_are_checked(name: str) -> None:
    """A number of channels that only an example tells is taken for granted, and checked."""
    model, x = network(lambda m, x: m.after(SPELLINGS[name](m, x)).sin()), images(3)
    assert_total(model, reparam.fuse(model, x), x, 2)
    assert_total(model, reparam.fuse(model), x, count_operators(model, (x,)).total)
    other, fused = images(4), reparam.fuse(model, x)
    with pytest.raises((reparam.ReparamError, RuntimeError)):
        run(fused, (other,))


@pytest.mark.parametrize("name", ["list", "flip", "single channels", "repeat", "expand"])
@pytest.mark.parametrize("core", [False, True])
def test_in_programs(name: str, core: bool) -> None:
    select = {**SPELLINGS, **REPEATED}[name]
    layer = "single" if name in REPEATED else "before"
    model = network(lambda m, x: m.after(select(m, getattr(m, layer)(x).relu())).sin())
    program = torch.export.export(model, (images(),))
    fused = reparam.fuse(program.run_decompositions() if core else program)
    assert relative_error(run(fused.module(), (images(),)), run(model, (images(),))) <= EXACT
    assert count_operators(fused.module(), (images(),)).total == 4


@pytest.mark.parametrize(
    "select",
    [
        lambda y: y.flip(3),
        lambda y: y.flip((1, 2)),
        lambda y: y.repeat(1, 1, 2, 1),
        lambda y: y[:, :, 1].unsqueeze(2).expand(-1, -1, 5, -1),
        lambda y: y[:, 1].unsqueeze(2).expand(-1, -1, 3, -1).transpose(1, 2),
        lambda y: y.repeat_interleave(2, dim=2),
    ],
)
def test_positions_are_no_channels(select: Callable[[Tensor], Tensor]) -> None:
    model = network(lambda m, x: m.norm(m.after(select(m.before(x).relu()))).sin())
    x = images()
    for fused in (reparam.fuse(model), reparam.fuse(model, x)):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_a_channel_that_is_written_to_between_stays() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.before(x).relu()
        first = y[:, 0]
        y.mul_(2)
        y[:, 0].add_(1)
        return m.after(torch.cat((first.unsqueeze(1), y[:, 1:]), 1)).sin()

    model, x = network(forward), images()
    for fused in (reparam.fuse(model), reparam.fuse(model, x)):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.wide(torch.cat([y := m.before(x), m.own(y)], 1)).sin(),
        lambda m, x: m.wide(torch.cat([m.own(y := m.before(x).relu()), y], 1)).sin(),
        lambda m, x: m.wide(torch.cat([y := m.before(x).relu(), y * 2 - 1], dim=1)).sin(),
    ],
)
def test_a_value_beside_what_is_made_of_it(forward: Forward) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    after = count_operators(fused, (x,))
    assert (after.batch_norms, after.multiplications, after.additions) == (0, 0, 0)
    assert after.total <= 4
    assert after.macs <= count_operators(model, (x,)).macs
