"""Scales move into the operands of sums and concatenations, where all of them can take a share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, assert_reported, fused_no_dearer, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Any]


def network(forward: Forward) -> nn.Module:
    """Two values that no affine operator leads to, and what may be done with them."""
    return ready(
        Network(
            forward,
            a=nn.Conv2d(4, 8, 3, padding=1),
            b=nn.Conv2d(4, 8, 1, bias=False),
            c=nn.Conv2d(4, 8, 5, padding=2),
            depthwise=nn.Conv2d(4, 4, 3, padding=1, groups=4),
            single=nn.Conv2d(4, 1, 1),
            dropout=nn.Dropout(),
            inner=nn.Identity(),
            norm=nn.BatchNorm2d(8),
            other=nn.BatchNorm2d(8),
            wide=nn.BatchNorm2d(16),
            three=nn.BatchNorm2d(24),
            uneven=nn.BatchNorm2d(12),
            gamma=torch.linspace(0.5, 2, 8)[:, None, None],
            last=nn.Conv2d(8, 4, 3, padding=1),
        )
    )


def fused(forward: Forward, **options: Any) -> tuple[nn.Module, nn.Module]:
    model = network(forward)
    result, _ = fused_no_dearer(model, **options)
    return model, result


SUMS: dict[str, tuple[Forward, int]] = {
    "two values": (lambda m, x: m.norm(m.a(x.sin()) + m.b(x.cos())), 0),
    "norms of their own": (
        lambda m, x: m.norm(m.other(m.a(x.sin())) + m.b(x.cos())),
        0,
    ),
    "three values": (lambda m, x: m.norm(m.a(x.sin()) + m.b(x.cos()) + m.c(x.tanh())), 0),
    "a factor after the norm": (
        lambda m, x: m.norm(m.a(x.sin()) + m.b(x.cos())) * m.gamma,
        0,
    ),
    "a factor for all": (lambda m, x: (m.a(x.sin()) + m.b(x.cos())) / 2, 0),
    "a scale that is a sum": (
        lambda m, x: m.norm(y := m.a(x.sin()) + m.b(x.cos())) + 2 * y + y * m.gamma,
        0,
    ),
    "a norm in the operators of an export": (
        lambda m, x: torch.ops.aten._native_batch_norm_legit_no_training.default(
            m.a(x.sin()) + m.b(x.cos()),
            m.norm.weight,
            m.norm.bias,
            m.norm.running_mean,
            m.norm.running_var,
            0.1,
            1e-5,
        )[0],
        0,
    ),
    "a residual outside": (
        lambda m, x: m.norm(m.a(x.sin()) + m.b(x.cos())) + m.c(x.tanh()),
        0,
    ),
    "terms over one value": (
        lambda m, x: m.norm(m.a(y := x.sin()) + m.b(x.cos()) + m.c(y)),
        0,
    ),
    "one value, where one kernel would cost more": (
        lambda m, x: m.norm(torch.cat([m.depthwise(y := x.sin()), m.b(y)], 1)[:, :8]),
        1,
    ),
    "a difference": (lambda m, x: m.norm(m.a(x.sin()) - m.b(x.cos())), 0),
    "a difference whose first term is a multiple": (
        lambda m, x: m.norm(torch.add(-m.a(x.sin()), m.c(x.cos()), alpha=0.3)),
        0,
    ),
    "a difference whose first operand is subtracted": (
        lambda m, x: m.norm(torch.rsub(m.a(x.sin()), m.b(x.cos()))),
        0,
    ),
    "a constant for no term": (
        lambda m, x: m.norm(2 - m.a(x.sin()) - m.b(x.cos())),
        0,
    ),
    "identities in between": (
        lambda m, x: m.norm(m.dropout(m.inner(m.a(x.sin())) + m.b(x.cos()).contiguous())),
        0,
    ),
    "added in place": (lambda m, x: m.norm(m.a(x.sin()).add_(m.b(x.cos()))), 0),
    "added in place in turn": (
        lambda m, x: m.norm(m.a(x.sin()).add_(m.b(x.cos())).sub_(m.c(x.tanh()))).relu_(),
        0,
    ),
    "activation in place": (lambda m, x: F.relu_(m.norm(m.a(x.sin()) + m.b(x.cos()))), 0),
}
STACKS: dict[str, tuple[Forward, int]] = {
    "two values": (lambda m, x: m.wide(torch.cat([m.a(x.sin()), m.b(x.cos())], 1)), 0),
    "parts of different width": (
        lambda m, x: m.uneven(torch.cat([m.depthwise(x.sin()), m.b(x.cos())], 1)),
        0,
    ),
    "three values": (
        lambda m, x: m.three(torch.cat((m.a(x.sin()), m.b(x.cos()), m.c(x.tanh())), dim=1)),
        0,
    ),
    "norms of their own": (
        lambda m, x: m.wide(torch.cat([m.norm(m.a(x.sin())), m.b(x.cos())], 1)),
        0,
    ),
    "parts of one value": (
        lambda m, x: m.wide(torch.cat([m.a(y := x.sin()), m.c(y)], 1)),
        0,
    ),
    "read by a convolution": (
        lambda m, x: m.last(m.wide(torch.cat([m.a(x.sin()), m.b(x.cos())], 1)).relu()[:, 2:10]),
        0,
    ),
    "a sum among them": (
        lambda m, x: m.wide(torch.cat([m.a(x.sin()) + m.b(x.cos()), m.c(x.tanh())], 1)),
        0,
    ),
    "a sum among them, and one constant for all": (
        lambda m, x: m.other(
            (torch.cat([m.a(x.sin()) + m.b(x.cos()), m.c(x.tanh())], 1) * 2 + 1)[:, 4:12].relu()
        ),
        1,
    ),
    "a sum of them": (
        lambda m, x: m.wide(
            torch.cat([m.a(x.sin()), m.b(x.cos())], 1)
            - torch.cat([m.b(x.tanh()), m.c(x.sigmoid())], 1)
        ),
        0,
    ),
    "some among others": (
        lambda m, x: m.three(
            torch.cat([m.a(x.sin()), torch.cat([m.b(x.cos()), m.c(x.tanh())], 1)], axis=1)
        ),
        0,
    ),
    "by another function": (
        lambda m, x: m.wide(torch.hstack([m.a(x.sin()), m.b(x.cos())])),
        0,
    ),
    "an identity in between": (
        lambda m, x: m.wide(m.inner(torch.cat([m.a(x.sin()), m.b(x.cos())], 1))),
        0,
    ),
    "a scale, a shift, and an identity before them": (
        lambda m, x: torch.cat([m.a(x.sin()), m.b(x.cos())], 1).contiguous() * 2 + 1,
        0,
    ),
    "a norm of what is over one value, and an identity": (
        lambda m, x: m.wide(m.inner(torch.cat([m.a(y := x.sin()), m.b(y)], 1)) * 2),
        0,
    ),
    "a shape read in between": (
        lambda m, x: m.wide(y := torch.cat([m.a(x.sin()), m.b(x.cos())], 1)).flatten(y.ndim - 2),
        0,
    ),
}


@pytest.mark.parametrize("case", SUMS)
def test_scales_of_sums(case: str) -> None:
    forward, left = SUMS[case]
    _, result = fused(forward)
    counts = count_operators(result, (images(),))
    assert counts.batch_norms == left, result.reparam_report
    assert counts.multiplications == 0


@pytest.mark.parametrize("case", STACKS)
def test_scales_of_values_side_by_side(case: str) -> None:
    forward, left = STACKS[case]
    _, result = fused(forward)
    counts = count_operators(result, (images(),))
    assert counts.batch_norms == left, result.reparam_report
    assert counts.multiplications == 0


STAYS: dict[str, tuple[Forward, str]] = {
    "the sum is read elsewhere": (
        lambda m, x: (y := m.a(x.sin()) + m.b(x.cos()), m.norm(y)),
        "add is also read by output",
    ),
    "a term is read elsewhere": (
        lambda m, x: m.norm(m.a(x.sin()) + (y := m.b(x.cos()))) + y,
        "b is also read by add_1",
    ),
    "a term is no convolution": (
        lambda m, x: m.norm(m.a(x.sin()) + x.cos().repeat(1, 2, 1, 1)),
        "repeat is no convolution and no linear layer, which could take it in",
    ),
    "a part is no convolution": (
        lambda m, x: m.norm(torch.cat([x.sin(), m.depthwise(x.cos())], 1)),
        "sin is no convolution and no linear layer, which could take it in",
    ),
    "along the batch": (
        lambda m, x: m.norm(torch.cat([m.a(x.sin()), m.b(x.cos())], 0)),
        "values side by side, or a part of them, along the batch",
    ),
    "along the height": (
        lambda m, x: m.norm(torch.cat([m.a(x.sin()), m.b(x.cos())], 2)),
        "cat puts values side by side along another axis",
    ),
    "a term is read by the other": (
        lambda m, x: m.norm((y := m.a(x.sin())) + y.relu()),
        "a is also read by relu",
    ),
    "a product": (lambda m, x: m.norm(m.a(x.sin()) * m.b(x.cos())), ""),
    "a term of one channel for all": (
        lambda m, x: m.norm(m.a(x.sin()) + m.single(x.cos())),
        "add adds values of different numbers of channels",
    ),
    "a term is returned that the sum is written to": (
        lambda m, x: (y := m.a(x.sin()), m.norm(y.add_(m.b(x.cos()))).relu()),
        "",
    ),
    "an identity of the sum is read elsewhere": (
        lambda m, x: (y := m.inner(m.a(x.sin()) + m.b(x.cos())), m.norm(y)),
        "",
    ),
    "all terms are multiples": (
        lambda m, x: m.norm(torch.rsub(m.a(x.sin()), y := m.b(x.cos())) - y),
        "b is also read by",
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_cannot_be_shared_stays(case: str) -> None:
    forward, reason = STAYS[case]
    _, result = fused(forward)
    assert count_operators(result, (images(),)).batch_norms == 1
    assert_reported(result.reparam_report, "norm", reason)


def blend(first: Tensor, second: Tensor, weight: float) -> Tensor:
    """Somebody's own function, of which a rule tells."""
    return 2 * first + weight * second


def blended(first: Any, second: Any, weight: float) -> Any:
    return first.scale(2.0).plus(second.scale(weight))


@pytest.mark.parametrize("weight", [1.0, 3.0])
@pytest.mark.parametrize("verify", [True, False])
def test_a_term_that_is_multiplied_takes_no_constant(weight: float, verify: bool) -> None:
    """If all are, there is nothing that could take it."""

    def forward(m: Any, x: Tensor) -> Tensor:
        normalised: Tensor = m.norm(blend(m.a(x.sin()), m.b(x.cos()), weight))
        return normalised

    _, result = fused(forward, rules={blend: blended}, verify=verify)
    counts = count_operators(result, (images(),))
    assert counts.batch_norms == (weight != 1)
    if weight != 1:
        assert_reported(result.reparam_report, "norm", "no term that could take its constant")


def test_the_modules_keep_their_places() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 8, 3), nn.Conv2d(4, 8, 3, bias=False)
            self.norm = nn.BatchNorm2d(16)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(torch.cat([self.first(x.sin()), self.second(x.cos())], 1))
            return result

    model = ready(nn.Sequential(Branches(), nn.ReLU()))
    result = reparam.fuse(model)
    assert not any("forward" in vars(module) for module in result.modules())
    assert isinstance(result[0].norm, nn.Identity)
    assert result[0].second.bias is not None
    assert relative_error(run(result, (images(),)), run(model, (images(),))) <= EXACT


def test_a_block_that_is_called_twice() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 5, padding=2)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            first, second = x.relu().chunk(2, 1)
            result: Tensor = self.norm(torch.cat([self.a(first), self.b(second)], 1))
            return result

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start, self.mixed = nn.Conv2d(4, 4, 1), Mixed()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.mixed(self.mixed(self.start(x)))
            return result

    model = ready(Twice())
    result = reparam.fuse(model)
    assert count_operators(result, (images(),)).batch_norms == 0
    assert relative_error(run(result, (images(),)), run(model, (images(),))) <= EXACT
    with torch.no_grad():
        assert relative_error(result.mixed(images()), model.mixed(images())) <= EXACT


def test_a_block_whose_norm_lies_outside_and_differs_by_call() -> None:
    class Outside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
            self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            for norm in self.norms:
                x = norm(self.a(x.sin()) + self.b(x.cos()))
            return x

    model = ready(Outside())
    result = reparam.fuse(model)
    assert relative_error(run(result, (images(),)), run(model, (images(),))) <= EXACT


def test_with_example_inputs() -> None:
    fused(STACKS["two values"][0], example_inputs=images())


def test_fusing_again_changes_nothing() -> None:
    _, result = fused(STACKS["two values"][0])
    assert not reparam.plan(result).fused


def test_a_hook_sees_what_it_saw() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.norm(m.inner(m.a(x.sin()) + m.b(x.cos())))
        return result

    model = network(forward)
    seen: list[Tensor] = []
    model.get_submodule("inner").register_forward_hook(lambda m, args, y: seen.append(y))
    result = reparam.fuse(model)
    run(model, (images(),))
    run(result, (images(),))
    assert len(seen) == 2
    assert relative_error(seen[1], seen[0]) <= EXACT
