"""Operators of a user's own, the rules that teach them, and a network that has one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import reparam

C = 4
ROUNDING = 1e-5


def rescaled(x: Tensor, factor: Tensor) -> Tensor:
    """A plain function, as a kernel of a user's own."""
    if x.sum() > 1e9:
        raise ValueError("too bright")
    return x * factor[:, None, None]


def traceable(x: Tensor, factor: Tensor) -> Tensor:
    return torch.einsum("nchw,c->ncwh", x, factor).transpose(2, 3)


@torch.library.custom_op("reparam_tests::rescaled", mutates_args=())
def custom(x: Tensor, factor: Tensor) -> Tensor:
    return x * factor[:, None, None]


@custom.register_fake
def _(x: Tensor, factor: Tensor) -> Tensor:
    return torch.empty_like(x)


class Rescaled(nn.Module):
    """A module whose forward cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(C))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 1e9:
            raise ValueError("too bright")
        return x * self.gamma.exp()[:, None, None]


class Network(nn.Module):
    """A convolution, an operator and an activation."""

    def __init__(self, operate: Any, part: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, C, 3)
        self.gamma = nn.Parameter(torch.rand(C))
        self.part = part
        self.operate = operate

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.operate(self, self.conv(x)))


def module_rule(module: Rescaled, x: reparam.AffineConv) -> Any:
    return x.scale(module.gamma.exp())


def function_rule(x: reparam.AffineConv, factor: Tensor) -> Any:
    return x.scale(factor, axis=-3)


def method_rule(input: reparam.AffineConv, other: Tensor) -> Any:
    return input.scale(other.flatten(), axis=-3)
