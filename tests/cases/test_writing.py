"""In-place operators and views: exact whoever reads the memory, before and after."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error

C = 4
Write = Callable[[Tensor, Any], Any]


def plus_equals(y: Tensor, m: Any) -> Tensor:
    y += m.gamma
    return y


def times_equals(y: Tensor, m: Any) -> Tensor:
    y *= m.gamma
    return y


def assigned(y: Tensor, m: Any) -> Tensor:
    y[:, :2] = m.gamma[:2]
    return y


WRITES: dict[str, Write] = {
    "+=": plus_equals,
    "*=": times_equals,
    "add_": lambda y, m: y.add_(m.gamma),
    "mul_": lambda y, m: y.mul_(m.gamma),
    "sub_": lambda y, m: y.sub_(1.5),
    "neg_": lambda y, m: y.neg_(),
    "relu_": lambda y, m: y.relu_(),
    "F.relu(inplace)": lambda y, m: F.relu(y, True),
    "F.relu(inplace=True)": lambda y, m: F.relu(y, inplace=True),
    "ReLU(inplace=True)": lambda y, m: m.relu(y),
    "torch.relu_": lambda y, m: torch.relu_(y),
    "clamp_": lambda y, m: y.clamp_(min=0),
    "zero_": lambda y, m: y.zero_(),
    "copy_": lambda y, m: y.copy_(y.flip(0)),
    "part": lambda y, m: (y[:, :2].mul_(2.0), y)[1],
    "part +=": lambda y, m: (y[:, 1:].__iadd__(1.0), y)[1],
    "setitem": assigned,
    "chunk": lambda y, m: (y.chunk(2, 1)[0].add_(1.0), y)[1],
    "view": lambda y, m: y.flatten(2).mul_(m.gamma.flatten(1)).view_as(y),
    "transpose": lambda y, m: y.transpose(2, 3).mul_(-1.0).transpose(2, 3),
    "out": lambda y, m: torch.mul(y, 2.0, out=y),
    "detach": lambda y, m: y.detach().mul_(3.0),
    "data": lambda y, m: y.data.mul_(3.0),
    "dropout": lambda y, m: F.dropout(y, 0.5, False).mul_(3.0),
    "contiguous": lambda y, m: y.contiguous().mul_(3.0),
    "to": lambda y, m: y.to(torch.float64).mul_(3.0),
    "aten": lambda y, m: torch.ops.aten.mul_.Tensor(y, m.gamma),
    "masked_fill_": lambda y, m: y.masked_fill_(y < 0, 0.5),
    "index_add_": lambda y, m: y.index_add_(
        0, torch.zeros(1, dtype=torch.int64), torch.ones(1, C, 7, 8).double()
    ),
    "foreach": lambda y, m: (torch._foreach_mul_([y], 2.0), y)[1],
}

READS: dict[str, Callable[[Any, Tensor, Write], Any]] = {
    "value before, write after": lambda m, x, w: (
        (y := m.conv(x)), z := m.norm(y), w(y, m), z
    )[-1],
    "value read after": lambda m, x, w: ((y := m.conv(x)), w(y, m), m.norm(y))[-1],
    "result normalised": lambda m, x, w: m.norm(w(m.conv(x), m)),
    "value and result": lambda m, x, w: ((y := m.conv(x)), z := w(y, m), m.norm(z) + y)[-1],
    "branch before": lambda m, x, w: ((y := m.conv(x)), b := m.other(y), w(y, m), b + m.norm(y))[
        -1
    ],
    "branch of the input": lambda m, x, w: (
        (s := x.sigmoid()), a := m.norm(m.conv(s)), w(s, m), a + m.other(s)
    )[-1],
    "the sum itself": lambda m, x, w: ((y := m.conv(x)), z := y + m.other(x), w(y, m), m.norm(z))[
        -1
    ],
    "normalised value": lambda m, x, w: ((y := m.norm(m.conv(x))), v := y[:, :3], w(y, m), v)[-1],
    "returned": lambda m, x, w: ((y := m.norm(m.conv(x))), w(y, m), (y, y * 2))[-1],
}  # fmt: skip


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("write", WRITES)
def test_writing_in_place(write: str, read: str) -> None:
    """FX passes ignore that an operator writes to a value which a second consumer still reads."""
    forward, writing = READS[read], WRITES[write]
    model = ready(
        Network(
            lambda self, x: forward(self, x, writing),
            conv=nn.Conv2d(C, C, 1),
            norm=nn.BatchNorm2d(C),
            other=nn.Conv2d(C, C, 1),
            relu=nn.ReLU(inplace=True),
            gamma=torch.randn(C, 1, 1),
        )
    )
    model.requires_grad_(False)
    assert_exact(model, images(), calls=1)


@pytest.mark.parametrize("write", WRITES)
def test_writing_to_the_input_reaches_the_caller(write: str) -> None:
    """What a network writes to its input, its caller sees."""
    writing = WRITES[write]

    def forward(self: Any, x: Tensor) -> Tensor:
        writing(x, self)
        return self.norm(self.conv(x))

    model = ready(
        Network(
            forward,
            conv=nn.Conv2d(C, C, 1),
            norm=nn.BatchNorm2d(C),
            relu=nn.ReLU(inplace=True),
            gamma=torch.randn(C, 1, 1),
        )
    ).requires_grad_(False)
    fused = assert_exact(model, images())
    one, two = images(), images()
    model(one)
    fused(two)
    assert relative_error(two, one) <= 1e-9


def test_a_fused_network_does_not_write_where_the_original_did_not() -> None:
    """The input of the model, and a value that is returned, keep their numbers."""
    model = ready(
        Network(
            lambda self, x: (y := self.conv(x), self.norm(y).mul_(2.0).relu_(), x),
            conv=nn.Conv2d(C, C, 1),
            norm=nn.BatchNorm2d(C),
        )
    ).requires_grad_(False)
    fused, x = assert_exact(model, images()), images()
    fused(x)
    assert torch.equal(x, images())


def test_an_in_place_residual_is_fused() -> None:
    """`out += identity` in the blocks of many libraries: nobody reads the old value."""

    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.norm(self.conv(x))
        out += x
        return out

    model = ready(Network(forward, conv=nn.Conv2d(C, C, 3, padding=1), norm=nn.BatchNorm2d(C)))
    assert_exact(model, images(), total=1)


def test_an_in_place_activation_on_the_block_input() -> None:
    """A ReLU in place before a residual changes what the residual adds."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.clone()
        return self.norm(self.conv(F.relu(x, inplace=True))) + x

    model = ready(Network(forward, conv=nn.Conv2d(C, C, 3, padding=1), norm=nn.BatchNorm2d(C)))
    fused = assert_exact(model, images())
    assert count_operators(fused, (images(),)).batch_norms == 0


def test_a_buffer_that_forward_writes_to_is_no_constant() -> None:
    """A factor that changes with every call is not folded."""

    class Drifting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
            self.register_buffer("factor", torch.ones(C, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            self.factor.mul_(0.5)
            return self.norm(self.conv(x)) * self.factor

    model = ready(Drifting())
    fused = assert_exact(model, images(), calls=4)
    assert torch.equal(reparam.fuse(model).factor, model.factor)
    assert fused.factor is not model.factor
