"""Scales and shifts in a row become one operator, and those behind a norm a part of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Tensor]
C = 4


def per_channel() -> Tensor:
    return torch.rand(C, 1, 1) + 0.5


def network(forward: Forward) -> nn.Module:
    parts: dict[str, Any] = {
        "point": nn.Conv2d(C, C, 1, groups=C),
        "norm": nn.BatchNorm2d(C),
        "other": nn.BatchNorm2d(C),
        "layer": nn.LayerNorm(C),
        "plain": nn.LayerNorm(C, elementwise_affine=False),
        "unbiased": nn.LayerNorm(C, bias=False),
        "groups": nn.GroupNorm(2, C),
        "bare": nn.GroupNorm(2, C, affine=False),
        "rms": nn.RMSNorm(C),
        "instances": nn.InstanceNorm2d(C, affine=True),
        "plain_instances": nn.InstanceNorm2d(C),
        "g": per_channel(),
        "b": per_channel(),
        "rows": torch.rand(C) + 0.5,
        "columns": torch.rand(C) + 0.5,
    }
    return ready(Network(forward, **parts))


def assert_becomes(forward: Forward, total: int, x: Tensor, *, examples: bool = False) -> Any:
    """Fused exactly to so many operators in all, with no more multiply-adds."""
    model = network(forward)
    fused = reparam.fuse(model, x) if examples else reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert after.total == total, fused.reparam_report
    assert after.macs <= before.macs
    assert not reparam.fuse(fused).reparam_report.fused
    return fused


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.norm(x.relu())
    y *= m.g
    y += m.b
    return y.sigmoid()


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(m.point(x.relu())).sigmoid(),
        lambda m, x: m.point(m.norm(x.relu())).sigmoid(),
        lambda m, x: m.other(m.norm(x.relu())).sigmoid(),
        lambda m, x: (m.norm(x.relu()) * m.g + m.b).sigmoid(),
        lambda m, x: (m.norm(x.relu()) / 2).sigmoid(),
        lambda m, x: torch.sub(m.b, m.norm(F.relu(x))).sigmoid(),
        lambda m, x: ((y := x.relu()) + m.norm(y)).sigmoid(),
        lambda m, x: ((m.point(y := x.relu()) - y) * m.g).sigmoid(),
        in_place,
    ],
)
def test_a_chain_becomes_one_of_its_operators(forward: Forward) -> None:
    assert_becomes(forward, 3, images(C))


def test_what_comes_before_a_norm_goes_into_it() -> None:
    assert_becomes(lambda m, x: m.norm(x.relu() * m.g + m.b).sigmoid(), 3, images(C), examples=True)


def tokens() -> Tensor:
    return torch.randn(2, 5, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: (m.layer(x) * m.rows + m.columns).sigmoid(),
        lambda m, x: m.layer(x).mul_(m.rows).sigmoid(),
        lambda m, x: (m.layer(x) * 0.5).sigmoid(),
        lambda m, x: (m.plain(x) * m.rows - m.columns).sigmoid(),
        lambda m, x: (m.unbiased(x) * m.rows + m.columns).sigmoid(),
        lambda m, x: (m.columns + F.layer_norm(x, (C,), m.rows) * m.rows).sigmoid(),
        lambda m, x: (m.rms(x) * m.rows).sigmoid(),
        lambda m, x: (F.rms_norm(x, (C,), m.columns) / m.rows).sigmoid(),
    ],
)
def test_a_scale_behind_a_norm_of_rows_goes_into_it(forward: Forward) -> None:
    assert_becomes(forward, 2, tokens())


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(m.groups(x)).sigmoid(),
        lambda m, x: m.point(m.groups(x)).sigmoid(),
        lambda m, x: m.norm(m.bare(x)).sigmoid(),
        lambda m, x: (m.norm(F.group_norm(x, 2, m.rows, m.columns)) * m.g).sigmoid(),
        lambda m, x: (m.instances(x) * m.g + m.b).sigmoid(),
        lambda m, x: m.norm(m.plain_instances(x)).sigmoid(),
        lambda m, x: m.norm(F.instance_norm(x, weight=m.rows, bias=m.columns)).sigmoid(),
        lambda m, x: m.norm(
            torch.instance_norm(x, m.rows, None, None, None, True, 0.1, 1e-3, False)
        ).sigmoid(),
    ],
)
def test_a_scale_behind_a_norm_of_images_goes_into_it(forward: Forward) -> None:
    assert_becomes(forward, 2, images(C))


@pytest.mark.parametrize(
    ("forward", "total", "x"),
    [
        (lambda m, x: (y := m.norm(x.relu())).sin() + m.other(y).cos(), 6, images(C)),
        (lambda m, x: (y := m.layer(x)).sin() + (y * m.rows).cos(), 5, tokens()),
        (
            lambda m, x: (y := m.norm(x.relu())).sin() + (y * m.g * m.g + m.b).cos(),
            8,
            images(C),
        ),
        (lambda m, x: (m.rms(x) + m.rows).sigmoid(), 3, tokens()),
        (lambda m, x: (m.layer(x) * m.rows.view(C, 1)).sigmoid(), 3, tokens()[:, :C]),
        (lambda m, x: (F.layer_norm(x, (5, C)) * m.rows).sigmoid(), 3, tokens()),
        (lambda m, x: (x.relu() * m.g + m.b).sigmoid(), 4, images(C)),
        (lambda m, x: F.batch_norm(x.relu(), m.rows, m.columns).mul(m.g).sigmoid(), 4, images(C)),
        (lambda m, x: F.instance_norm(x.sin(), m.rows, m.columns).mul(m.g).cos(), 4, images(C)),
    ],
)
def test_what_is_read_elsewhere_or_has_no_place_stays(
    forward: Forward, total: int, x: Tensor
) -> None:
    assert_becomes(forward, total, x)


def test_a_norm_that_takes_a_scale_in_trains_as_before() -> None:
    """The statistics are its own, so that training goes on from where it was."""
    model = network(lambda m, x: (m.norm(x.relu()) * m.g + m.b).sigmoid())
    fused, x = reparam.fuse(model).train(), images(C)
    assert torch.allclose(fused(x), model.train()(x), atol=1e-12)
    assert torch.equal(fused.norm.running_mean, model.norm.running_mean)
    assert fused.norm.num_batches_tracked == model.norm.num_batches_tracked == 1


@pytest.mark.parametrize("core", [False, True])
@pytest.mark.parametrize(
    ("forward", "x"),
    [
        (lambda m, x: (m.norm(x.relu()) * m.g + m.b).sigmoid(), images(C)),
        (lambda m, x: m.other(m.norm(x.relu())).sigmoid(), images(C)),
        (lambda m, x: m.norm(m.point(x.relu())).sigmoid(), images(C)),
        (lambda m, x: (m.layer(x.relu()) * m.rows + m.columns).sigmoid(), tokens()),
        (lambda m, x: m.norm(m.groups(x.relu())).sigmoid(), images(C)),
    ],
)
def test_chains_in_programs(forward: Forward, x: Tensor, core: bool) -> None:
    model = network(forward)
    program = torch.export.export(model, (x,))
    program = program.run_decompositions() if core else program
    fused = reparam.fuse(program)
    assert relative_error(run(fused.module(), (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused.module(), (x,)).total == 3
    assert not reparam.fuse(fused).reparam_report.fused
