"""How values lie in memory: what nobody sees moves, what somebody sees stays."""

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


class Asks(nn.Module):
    """Code that cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        while not x.is_contiguous():
            return x.flatten(1) * 2
        return x.view(x.shape[0], -1)


def network(forward: Forward) -> nn.Module:
    return ready(
        Network(
            forward,
            fc=nn.Linear(4, 4, bias=False),
            norm=nn.BatchNorm2d(4),
            rows=nn.BatchNorm1d(4),
            gamma=torch.rand(4),
            down=nn.Conv2d(4, 4, 1),
            conv=nn.Conv2d(4, 4, 3, padding=1),
            asks=Asks(),
        )
    )


def channels_last(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.fc(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))


def gate(m: Any, x: Tensor) -> Tensor:
    y = m.gamma.view(1, -1, 1, 1) * channels_last(m, x) + x
    return y * m.down(F.adaptive_avg_pool2d(y, 1)).sigmoid().view(-1, 4, 1, 1)


def gate_of_a_mean(m: Any, x: Tensor) -> Tensor:
    y = channels_last(m, x)
    return y * y.mean((2, 3)).view(-1, 4, 1, 1)


def gate_of_sizes(m: Any, x: Tensor) -> Tensor:
    y = channels_last(m, x)
    batch, channels, _, _ = y.shape
    return y * F.adaptive_avg_pool2d(y, 1).view(batch, channels, 1, 1)


def gate_behind_rows(m: Any, x: Tensor) -> Tensor:
    """A batch norm of rows lays them out in order, the transposed ones would not be."""
    y = m.rows(m.fc(x.flatten(2).transpose(1, 2)).transpose(1, 2))
    return y * y.mean(2, keepdim=True).view(-1, 4, 1)


def unknown_code(m: Any, x: Tensor) -> Tensor:
    return m.asks(channels_last(m, x))


def scaled_for_unknown_code(m: Any, x: Tensor) -> Tensor:
    return m.asks(m.fc(x.permute(0, 2, 3, 1)).movedim(-1, 1) * m.gamma.view(-1, 1, 1))


@pytest.mark.parametrize(
    "forward",
    [gate, gate_of_a_mean, gate_of_sizes, gate_behind_rows, unknown_code, scaled_for_unknown_code],
    ids=lambda forward: forward.__name__,
)
def test_nobody_sees_that_it_moves(forward: Forward) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0
    assert count_operators(fused, (x,)).multiplications <= 1


def rows_in_order(m: Any, x: Tensor) -> Tensor:
    y = m.rows(m.fc(x.flatten(2).transpose(1, 2)).transpose(1, 2))
    return y.view(y.shape[0], -1)


def rows_for_unknown_code(m: Any, x: Tensor) -> Tensor:
    return m.asks(m.rows(m.fc(x.flatten(2).transpose(1, 2)).transpose(1, 2)))


def other_order(m: Any, x: Tensor) -> Tensor:
    """Neither in order nor with the channels last, so that a batch norm puts it in order."""
    y = m.norm(m.fc(x.permute(0, 3, 2, 1)).permute(0, 3, 2, 1))
    return y.view(y.shape[0], -1)


def batch_inside(m: Any, x: Tensor) -> Tensor:
    """Of a value with the batch inside, one position lies in either order."""
    y = m.rows(m.fc(x[..., 0].permute(2, 0, 1)).permute(1, 2, 0))
    return y[:, :, 0].view(-1)


def product_for_unknown_code(m: Any, x: Tensor) -> Tensor:
    """The value of an equation lies with the channels last, the one of a convolution in order."""
    return m.asks(m.norm(torch.einsum("bihw,oi->bohw", x, m.fc.weight)))


@pytest.mark.parametrize(
    "forward",
    [rows_in_order, rows_for_unknown_code, other_order, batch_inside, product_for_unknown_code],
    ids=lambda forward: forward.__name__,
)
@pytest.mark.parametrize("verify", [True, False])
def test_what_somebody_sees_stays(forward: Forward, verify: bool) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model, x, verify=verify)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 1
    assert any("in memory would change" in row.reason for row in fused.reparam_report.refused)


def backbone(m: Any, x: Tensor) -> Tensor:
    x = x.sin()
    return (m.conv(x) + m.norm(x)).relu()


def tokens(m: Any, x: Tensor) -> Tensor:
    y = backbone(m, x).flatten(2).transpose(1, 2)
    y += m.gamma
    return y


def rows_in_place(m: Any, x: Tensor) -> Tensor:
    y = backbone(m, x)
    size = y.shape[0]
    return y.reshape(size, -1).mul_(2).sub_(y.shape[1])


def written_before(m: Any, x: Tensor) -> Tensor:
    """Unknown code may write to what was reshaped, when nobody reads that any more."""
    y = backbone(m, x)
    return y.reshape(y.shape[0], -1).mean() * m.asks(y)


@pytest.mark.parametrize(
    "forward", [tokens, rows_in_place, written_before], ids=lambda forward: forward.__name__
)
def test_a_write_that_nobody_sees_by_another_name(forward: Forward) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


def read_by_the_first_name(m: Any, x: Tensor) -> Tensor:
    y = backbone(m, x)
    y.reshape(y.shape[0], -1).mul_(2)
    return y * y


def read_by_the_second_name(m: Any, x: Tensor) -> Tensor:
    y = backbone(m, x)
    rows = y.flatten(1)
    y.mul_(2)
    return rows.sin()


def returned_by_both(m: Any, x: Tensor) -> Any:
    y = backbone(m, x)
    rows = y.flatten(2).transpose(1, 2)
    rows += m.gamma
    return rows, y


def written_by_unknown_code(m: Any, x: Tensor) -> Tensor:
    y = backbone(m, x)
    rows = y.reshape(y.shape[0], -1)
    return m.asks(y) + rows


@pytest.mark.parametrize(
    "forward",
    [read_by_the_first_name, read_by_the_second_name, returned_by_both, written_by_unknown_code],
    ids=lambda forward: forward.__name__,
)
def test_a_write_that_another_name_shows(forward: Forward) -> None:
    model, x = network(forward), images()
    fused = reparam.fuse(model)
    for given in (x, x.transpose(2, 3), x.to(memory_format=torch.channels_last)):
        assert relative_error(run(fused, (given,)), run(model, (given,))) <= EXACT
    assert any("lie otherwise in memory" in row.reason for row in fused.reparam_report.refused)


def summed_up(m: Any, x: Tensor) -> Tensor:
    """The 3x3 kernels do not join, since their taps lie elsewhere; the batch norm goes with one."""
    dilated = F.conv2d(x, m.conv.weight, padding=2, dilation=2)
    return (m.conv(x) + dilated + m.norm(x)).relu_()


def test_an_activation_in_place_behind_a_sum() -> None:
    model, x = network(summed_up), images()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    after = count_operators(fused, (x,))
    assert (after.convolutions, after.batch_norms, after.additions) == (2, 0, 1)
