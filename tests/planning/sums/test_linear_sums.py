"""A linear layer over all positions takes in convolutions of the same value, at a known size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, assert_reported, ready
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Tensor]

C, H, W = 2, 3, 4
COLUMNS = C * H * W


def network(forward: Forward) -> nn.Module:
    """Linear layers over the positions of images of one size, and what else may be beside them."""
    return ready(
        Network(
            forward,
            fc=nn.Linear(COLUMNS, COLUMNS),
            sets=nn.Conv2d(COLUMNS, COLUMNS, 1, groups=C),
            wide=nn.Conv1d(2 * COLUMNS, 2 * COLUMNS, 1),
            narrow=nn.Linear(COLUMNS, 3 * 2 * 2),
            conv=nn.Conv2d(C, C, 3, padding=1),
            dense=nn.Conv2d(C, C, 1, padding_mode="circular"),
            wrapped=nn.Conv2d(C, C, 3, padding=1, padding_mode="circular"),
            stride=nn.Conv2d(C, 3, 3, 2, 1),
            up=nn.ConvTranspose2d(C, C, 3, padding=1),
            pool=nn.AvgPool2d(3, 1, 1),
            flatten=nn.Flatten(),
            norm=nn.BatchNorm2d(C),
            after=nn.BatchNorm2d(C),
        )
    )


def value(size: tuple[int, ...] = (4, C, H, W)) -> Tensor:
    return torch.randn(size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def of_known_size(x: Tensor) -> Tensor:
    return x.relu().view(-1, C, H, W)


def counts(forward: Forward, *, examples: bool = False) -> OperatorCounts:
    """What is left of a network, which computes the same and costs no more."""
    model, x = network(forward), value()
    fused = reparam.fuse(model, (x,) if examples else None)
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert after.macs <= before.macs
    assert after.total <= before.total
    for other in (x, value((1, C, H, W)), value((3, C, H, W))):
        assert relative_error(run(fused, (other,)), run(model, (other,))) < EXACT
    return after


def in_place(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    z = m.conv(y).flatten(1)
    z += m.fc(y.flatten(1))
    return z.relu_()


def unflattened(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    z = m.conv(y)
    return (m.fc(y.reshape(-1, COLUMNS)).view_as(y) + z).relu()


def two_terms(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    rows = y.flatten(1)
    return (m.conv(y).flatten(1) + (m.fc(rows) + m.stride(y).flatten(1).tile(1, 2))).relu()


def sets(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    z = m.sets(y.reshape(-1, COLUMNS, 1, 1)).reshape(-1, C, H, W)
    return (m.norm(z) + m.pool(y).reshape(z.shape)).relu()


def several_in_a_row(m: Any, x: Tensor) -> Tensor:
    y = torch.cat([x, x, x, x]).relu().view(-1, C, H, W)
    return (m.wide(y.view(-1, 2 * COLUMNS, 1)).view(-1, C, H, W) + m.conv(y)).relu()


ONE: dict[str, Forward] = {
    "rows": lambda m, x: m.fc((y := of_known_size(x)).flatten(1)) + m.conv(y).flatten(1),
    "module": lambda m, x: m.conv(y := of_known_size(x)).flatten(1) + m.fc(m.flatten(y)),
    "in place": in_place,
    "unflattened": unflattened,
    "norm": lambda m, x: m.fc((y := of_known_size(x)).flatten(1)) + m.norm(m.conv(y)).flatten(1),
    "two branches": lambda m, x: (
        m.fc((y := of_known_size(x)).flatten(1)) + (m.conv(y) + m.norm(y)).flatten(1)
    ),
    "circular": lambda m, x: m.fc((y := of_known_size(x)).flatten(1)) + m.wrapped(y).flatten(1),
    "transposed": lambda m, x: m.fc((y := of_known_size(x)).flatten(1)) + m.up(y).flatten(1),
    "strided": lambda m, x: m.narrow((y := of_known_size(x)).flatten(1)) + m.stride(y).flatten(1),
    "itself": lambda m, x: m.fc((y := of_known_size(x)).flatten(1)) + y.flatten(1),
    "sets": sets,
    "several in a row": several_in_a_row,
}


@pytest.mark.parametrize("name", ONE)
def test_one_operator_is_left(name: str) -> None:
    after = counts(ONE[name])
    assert after.convolutions + after.linears == 1
    assert not after.batch_norms
    assert not after.additions


def test_three_terms_become_one() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = of_known_size(x)
        return (m.conv(y).flatten(1) + (m.fc(y.flatten(1)) + m.wrapped(y).flatten(1))).relu()

    after = counts(forward)
    assert (after.linears, after.convolutions, after.additions) == (1, 0, 0)


def test_a_norm_behind_the_sum() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = of_known_size(x)
        return m.after(m.fc(y.flatten(1)).view_as(y) + m.conv(y)).relu()

    after = counts(forward)
    assert (after.linears, after.convolutions, after.additions) == (1, 0, 0)


# -- What a size of the example inputs alone tells -------------------------------------------------


def at_any_size(m: Any, x: Tensor) -> Tensor:
    y = x.relu()
    return (m.fc(y.flatten(1)) + m.conv(y).flatten(1)).relu()


def test_example_inputs_tell_the_size_which_is_checked() -> None:
    assert counts(at_any_size, examples=True).total == 3
    model = network(at_any_size)
    fused = reparam.fuse(model, (value(),))
    other = value((4, C, W, H))
    run(model, (other,))
    with pytest.raises(reparam.ReparamError, match=r"conv .* sizes \(2, 3, 4\).*\(4, 2, 4, 3\)"):
        run(fused, (other,))


def test_without_example_inputs_the_report_asks_for_them() -> None:
    fused = reparam.fuse(network(at_any_size))
    assert count_operators(fused, (value(),)).total == 5
    assert_reported(fused.reparam_report, "add", "pass example_inputs")


def test_a_fused_model_with_a_check_is_fused_again_and_saved() -> None:
    model, x = network(at_any_size), value()
    fused = reparam.fuse(model, (x,))
    again = reparam.fuse(fused, (x,))
    assert relative_error(run(again, (x,)), run(model, (x,))) < EXACT
    exported = torch.export.export(fused, (x,)).module()
    assert relative_error(run(exported, (x,)), run(model, (x,))) < EXACT


def test_weights_follow_training() -> None:
    model = network(ONE["norm"])
    fused = reparam.fuse(model)
    with torch.no_grad():
        model.conv.weight.mul_(3)
        model.norm.running_mean.add_(1)
    reparam.refresh(fused, model)
    x = value()
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


# -- Where it would be wrong, or dearer ------------------------------------------------------------


def written(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x).clone()
    rows = m.fc(y.flatten(1))
    y.sin_()
    return rows + m.conv(y).flatten(1)


def rows_written(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x).clone()
    rows = y.flatten(1)
    z = m.conv(y)
    rows.sin_()
    return z.flatten(1) + m.fc(rows)


def layer_written(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    z = m.fc(y.flatten(1))
    image = z.view(-1, C, H, W)
    z.sin_()
    return image + m.conv(y)


def term_written(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    z = m.conv(y)
    rows = z.flatten(1)
    z.sin_()
    return rows + m.fc(y.flatten(1))


def seen_by_another_name(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x).clone()
    rows = y.flatten(1)
    z = m.conv(y)
    y.sin_()
    return z.flatten(1) + m.fc(rows)


def layer_read(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    z = m.fc(y.flatten(1))
    return z + m.conv(y).flatten(1) + z.sin()


def transposed(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    return m.fc(y.flatten(1)) + m.conv(y).transpose(2, 3).flatten(1)


def rows_of_others(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    return m.fc(y.transpose(2, 3).flatten(1)) + m.conv(y).flatten(1)


def broadcasting(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    rows = m.fc(y.flatten(1))
    return (rows.view(-1, 1) + m.conv(y).view(1, -1)).sum(1)


def bits(m: Any, x: Tensor) -> Tensor:
    y = of_known_size(x)
    whole = y.flatten(1).view(torch.int64).view(torch.float64)
    return m.fc(whole) + m.conv(y).flatten(1)


STAYS: dict[str, tuple[Forward, int]] = {
    "written": (written, 2),
    "rows written": (rows_written, 2),
    "the layer's value is written": (layer_written, 2),
    "the term is written": (term_written, 2),
    "transposed": (transposed, 2),
    "rows of others": (rows_of_others, 2),
    "a sum that broadcasts": (broadcasting, 2),
    "grouped": (lambda m, x: sets_beside(m, x, m.dense), 2),
    "seen by another name": (seen_by_another_name, 2),
    "the layer's value is read": (layer_read, 2),
}


def sets_beside(m: Any, x: Tensor, conv: nn.Module) -> Tensor:
    y = of_known_size(x)
    z = m.sets(y.reshape(-1, COLUMNS, 1, 1)).reshape(-1, C, H, W)
    return (z + conv(y)).relu()


@pytest.mark.parametrize("examples", [False, True])
@pytest.mark.parametrize("name", STAYS)
def test_what_stays(name: str, examples: bool) -> None:
    forward, layers = STAYS[name]
    after = counts(forward, examples=examples)
    assert after.convolutions + after.linears == layers


def test_a_convolution_that_is_read_elsewhere_stays_and_costs_no_more() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = of_known_size(x)
        z = m.conv(y).flatten(1)
        return (m.fc(y.flatten(1)) + z).relu() + z.sin()

    after = counts(forward)
    assert (after.linears, after.convolutions, after.additions) == (1, 1, 1)


def test_positions_are_counted_for_each_row() -> None:
    """Groups of a linear layer that become one are worth it if a large kernel goes for it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return sets_beside(m, x, m.conv)

    model = network(forward)
    # 288 multiply-adds and 36 at each of 12 positions; together 576.
    assert counts(forward).convolutions == 1
    (row,) = reparam.plan(model).fused
    assert row.multiply_adds == (720, 576)


def test_the_same_bits_as_another_type_are_not_the_same_entries() -> None:
    after = counts(bits)
    assert (after.linears, after.convolutions) == (1, 1)
