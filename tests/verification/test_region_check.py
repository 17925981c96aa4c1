"""Rules that are wrong by little: what a region computes besides does not hide it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import images, ready
from tests.support.errors import relative_error, run


class Taught(nn.Module):
    """What a rule tells of, since it cannot be traced."""

    def __init__(self, factor: Tensor, constant: float = 0.0) -> None:
        super().__init__()
        self.factor, self.constant = nn.Parameter(factor), constant

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("no images")
        return x * self.factor.view(-1, 1, 1) + self.constant


class Cropping(Taught):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)[..., 1:]


def loud() -> Taught:
    return Taught(torch.tensor([1e8, 1.0, 1.0, 1.0]))


def scaled(module: Any, x: Any) -> Any:
    return x.scale(module.factor)


def scaled_wrongly(module: Any, x: Any) -> Any:
    """Wrong in the last channel alone."""
    wrong = 1 + 1e-4 * torch.tensor([0.0, 0.0, 0.0, 1.0])
    return x.scale(module.factor * wrong).shift(module.constant)


WRONG: dict[str, tuple[Callable[[], Taught], Callable[..., Any]]] = {
    "beside a large constant": (lambda: Taught(torch.ones(4), 1e6), scaled_wrongly),
    "beside a loud channel": (loud, scaled_wrongly),
    "of another size": (lambda: Cropping(torch.ones(4)), scaled),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_rule_is_noticed(name: str) -> None:
    make, rule = WRONG[name]
    model, x = ready(nn.Sequential(nn.Conv2d(4, 4, 3), make())), images()
    with pytest.warns(UserWarning, match="was left alone"):
        fused = reparam.fuse(model, rules={type(model[1]): rule})
    assert torch.equal(run(fused, (x,)), run(model, (x,)))


def test_a_right_rule_is_not_blamed_for_rounding() -> None:
    """A constant a million times as large as what varies is rounded, too."""
    model, x = ready(nn.Sequential(nn.Conv2d(4, 4, 3), Taught(torch.ones(4), 1e6))), images()
    rules = {Taught: lambda module, x: x.scale(module.factor).shift(module.constant)}
    fused = reparam.fuse(model, rules=rules)
    assert len(fused.reparam_report.fused) == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-9
