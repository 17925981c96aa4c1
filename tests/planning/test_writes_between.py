"""Somebody writes in place to a value inside a region, whatever the region was joined from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam import Axis
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

Forward = Callable[[Any, Tensor], Tensor]


class Writing(nn.Module):
    """Operators for the forwards below."""

    def __init__(self) -> None:
        super().__init__()
        self.c, self.d = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.e, self.f = (nn.Conv2d(4, 4, 1) for _ in range(2))
        self.wide, self.norm = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4)
        self.part = Rectified()
        self.gamma = nn.Parameter(torch.randn(4, 1, 1))


def model_of(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    kind = type(forward.__name__, (Writing,), {"forward": forward})
    return randomise_batch_norm(kind().double().eval(), 0)


class Rectified(nn.Module):
    def forward(self, x: Tensor) -> None:
        x[:, 1:].relu_()


def joined_before(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = y * 2
    z.relu_()
    return m.c(y) + m.norm(m.d(z))


def joined_before_in_a_part(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = y * m.gamma
    m.part(z)
    return m.e(m.c(y)) + m.norm(m.d(z)) + y


def joined_twice(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = m.e(y)
    F.relu(z, inplace=True)
    return m.c(y) + x.cos() + m.norm(m.d(z) * m.gamma) * 2


def a_view_is_written(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = -y
    z.flatten(2)[:, :, 1:].mul_(3)
    return m.norm(m.d(z)) + m.c(y)


def before_a_stack(m: Any, x: Tensor) -> Tensor:
    y = m.e(x.sin())
    y[:, :2].mul_(0.5)
    return m.f(torch.stack([y, y]).sum(0))


def before_a_mean(m: Any, x: Tensor) -> Tensor:
    y = m.e(x.sin())
    m.part(y)
    return m.norm(torch.stack([y, y, y], 1).mean(1))


def before_a_stack_of_two(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    z = m.c(y)
    y.relu_()
    return torch.stack([z, m.d(y)]).sum(0)


def before_a_concatenation(m: Any, x: Tensor) -> Tensor:
    y = m.e(x.sin())
    y.relu_()
    return m.wide(torch.cat([y, y], 1))


def before_parts_of_it(m: Any, x: Tensor) -> Tensor:
    y = m.e(x.sin())
    first, last = y.chunk(2, 1)
    first.relu_()
    return m.f(torch.cat([last, first], 1))


def before_addcmul(m: Any, x: Tensor) -> Tensor:
    y = m.e(x.sin())
    y.detach().relu_()
    return m.f(torch.addcmul(y, y, m.gamma))


def what_a_term_shares(m: Any, x: Tensor) -> Tensor:
    """The term that takes another one in shares its memory with a value that is written to."""
    y = x.sin()
    z = m.c(y)
    same = F.dropout(z, 0.5, False)
    z.relu_()
    return (same + x.cos()) + m.d(y)


def what_stands_for_a_sum(m: Any, x: Tensor) -> Tensor:
    """A sum that loses a term would be the value in place before it, which is read later."""
    y, z = x.cos(), x.sin()
    total = z.add_(m.c(y)) + y
    return total.relu_() * z


WRITING = (
    joined_before, joined_before_in_a_part, joined_twice, a_view_is_written,
    before_a_stack, before_a_mean, before_a_stack_of_two, before_a_concatenation,
    before_parts_of_it, before_addcmul, what_a_term_shares,
    what_stands_for_a_sum,
)  # fmt: skip


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("forward", WRITING, ids=lambda forward: forward.__name__)
def test_what_is_written_between_is_read(forward: Forward, verify: bool) -> None:
    model = model_of(forward)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(model, verify=verify)  # a warning would be an error
    assert not any("cannot be traced" in row.reason for row in fused.reparam_report.refused)
    assert relative_error(run(fused, (x.clone(),)), run(model, (x.clone(),))) <= 1e-12


def afterwards(m: Any, x: Tensor) -> Tensor:
    """Nothing is written before it is read: all but the sine becomes one convolution."""
    y = x.sin()
    z = y * 2
    total = m.c(y) + m.norm(m.d(z))
    z.relu_()
    return total


def test_a_write_after_the_last_read_is_none_between() -> None:
    model = model_of(afterwards)
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    assert "conv 3x3, 4 -> 4" in str(fused.reparam_report)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    assert relative_error(run(fused, (x.clone(),)), run(model, (x.clone(),))) <= 1e-12


def doubled(m: Any, x: Tensor) -> Tensor:
    """The gradient of the convolution needs what was doubled, not what is written to."""
    y = x.sin()
    z: Tensor = m.c(y + y)
    y.sub_(1)
    return z + m.f(y)


def scaled_by_a_number(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    return y.add_(m.norm(m.c(y * 0.5)))


def padded(m: Any, x: Tensor) -> Tensor:
    """A copy is what the convolution reads, though there are parameters before it."""
    y = F.conv2d(x, m.c.weight).sin()
    z: Tensor = m.d(F.pad(y, (1, 1, 1, 1)))
    y.sub_(1)
    return z.sum() * y


def normalised(m: Any, x: Tensor) -> Tensor:
    """The gradient of the norm needs what is written to: nobody can train this."""
    y = x.sin()
    z: Tensor = m.c(m.norm(y))
    y.sub_(1)
    return z + y


@pytest.mark.parametrize("forward", [doubled, scaled_by_a_number, padded], ids=lambda f: f.__name__)
def test_what_a_gradient_needs_is_not_written_to_later(forward: Forward) -> None:
    model = model_of(forward)
    fused = reparam.fuse(model)
    x, inputs, outputs = torch.randn(2, 4, 9, 8, dtype=torch.float64), [], []
    for trained in (model, fused):
        inputs.append(x.clone().requires_grad_())
        outputs.append(trained(inputs[-1]))
        outputs[-1].square().sum().backward()
    assert relative_error(outputs[1].detach(), outputs[0].detach()) <= 1e-12
    assert relative_error(inputs[1].grad, inputs[0].grad) <= 1e-12


def test_why_a_base_that_is_written_to_later_stays() -> None:
    report = reparam.fuse(model_of(doubled)).reparam_report
    assert any("gradients would need it as it was" in row.reason for row in report.refused)


def test_what_no_gradient_could_be_of_is_fused() -> None:
    model = model_of(normalised)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(torch.randn(2, 4, 9, 8, dtype=torch.float64)).sum().backward()
    assert "gradients would need it" not in str(reparam.fuse(model).reparam_report)


class EverySecond(nn.Module):
    """A view of its input, of which a rule tells."""

    def forward(self, x: Tensor) -> Tensor:
        return x[..., ::2, ::2]


def every_second(module: nn.Module, x: Any) -> Any:
    return x.convolve(torch.ones(4, 1, 1, 1), groups=4, axes=[Axis(1, stride=2)] * 2)


def through_views(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    y = x.sin()
    z = m.second(m.second(y))
    z.mul_(3)
    return z.relu(), y


@pytest.mark.parametrize("verify", [True, False])
def test_a_view_that_is_written_to_later_stays_one(verify: bool) -> None:
    """An operator in its place would have memory of its own, and the write would not be seen."""
    model, x = model_of(through_views), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    model.second = EverySecond().eval()
    fused = reparam.fuse(model, rules={EverySecond: every_second}, verify=verify)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
    assert any("shares memory" in row.reason for row in fused.reparam_report.refused)


def into_what_is_kept(m: Any, x: Tensor) -> Tensor:
    y = x.sin()
    total = m.kept.add_(m.c(y))
    return total + m.d(y)


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_written_to_a_buffer_is_there_in_the_next_call(verify: bool) -> None:
    model, x = model_of(into_what_is_kept), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    model.register_buffer("kept", torch.zeros_like(x))
    fused = reparam.fuse(model, verify=verify)
    for _ in range(3):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
    assert relative_error(fused.kept, model.kept) <= 1e-12
