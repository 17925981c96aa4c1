"""What eval mode never needs goes, at the user's wish."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from tests.refusals.checking import EXACT, ready
from tests.support.errors import relative_error, run


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result


class WithAuxiliary(nn.Module):
    """A head for training only, one of a list that is never run, and one that a method runs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), Head()
        self.auxiliary, self.teacher = Head(), Head()
        self.heads = nn.ModuleList([Head(), Head()])

    def forward(self, x: Tensor) -> Any:
        y = self.body(x).relu()
        z = self.head(y) + self.heads[1](y)
        if self.training:
            return z, self.auxiliary(y), self.heads[0](y)
        return z

    def distill(self, x: Tensor) -> Tensor:
        result: Tensor = self.teacher(self.body(x))
        return result


class Dual(nn.Module):
    """Both heads run; eval mode returns what one of them makes."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.main, self.coarse = nn.Conv2d(3, 4, 3), Head(), Head()

    def forward(self, x: Tensor) -> Any:
        y = self.body(x).relu()
        coarse = self.coarse(y)
        z = self.main(y)
        return (z, coarse) if self.training else z


class WithFlag(nn.Module):
    """Another call runs what this one does not."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra, self.point = nn.Conv2d(3, 4, 3), Head(), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor, extra: bool = False) -> Tensor:
        y = self.body(x).relu()
        return self.extra(y) + self.point(y) if extra else y


def images() -> Tensor:
    return torch.randn(2, 3, 7, 6, dtype=torch.float64)


def test_auxiliary_heads_go() -> None:
    model, x = ready(WithAuxiliary()), images()
    fused = reparam.fuse(model, drop_unused=True)
    assert [row.place for row in fused.reparam_report.dropped] == ["auxiliary", "heads.0"]
    (row, _) = fused.reparam_report.dropped
    assert row.operator == "Head"
    assert "auxiliary.conv.weight" in row.parameters
    assert "auxiliary" in str(fused.reparam_report)
    assert not any(name.startswith(("auxiliary.", "heads.0.")) for name in fused.state_dict())
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
    assert relative_error(fused.distill(x).detach(), model.distill(x).detach()) < EXACT


def test_nothing_goes_unasked() -> None:
    fused = reparam.fuse(ready(WithAuxiliary()))
    assert not fused.reparam_report.dropped
    assert fused.auxiliary is not None


@pytest.mark.parametrize("inplace", [False, True])
def test_what_computes_for_nobody_goes(inplace: bool) -> None:
    model, x = ready(Dual()), images()
    exact = run(model, (x,))
    fused = reparam.fuse(model, drop_unused=True, inplace=inplace)
    names = {name.split(".")[0] for name in fused.state_dict()}
    assert "coarse" not in names
    assert {row.place.split(".")[0] for row in fused.reparam_report.dropped} == {"coarse"}
    assert relative_error(run(fused, (x,)), exact) < EXACT


def test_what_other_calls_run_stays() -> None:
    model, x = ready(WithFlag()), images()
    fused = reparam.fuse(model, drop_unused=True)
    assert not fused.reparam_report.dropped
    assert relative_error(fused(x, extra=True).detach(), model(x, extra=True).detach()) < EXACT


def test_a_model_without_anything_unused() -> None:
    model, x = ready(Head()), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    fused = reparam.fuse(model, drop_unused=True)
    assert not fused.reparam_report.dropped
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


def test_refreshed_without_what_went() -> None:
    model, x = ready(WithAuxiliary()), images()
    fused = reparam.fuse(model, drop_unused=True)
    with torch.no_grad():
        model.head.norm.weight.mul_(2)
    reparam.refresh(fused, model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


def test_a_live_model_keeps_all() -> None:
    with pytest.raises(ReparamError, match="a live model is trained"):
        reparam.fuse(ready(WithAuxiliary()), live=True, drop_unused=True)
