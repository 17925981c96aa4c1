"""Operators that write to what their schema says stays, or to what no name tells."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

import reparam
from tests.refusals.checking import images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error

C = 8


class Functional(nn.BatchNorm2d):
    """Statistics of the batch in eval mode, too."""

    def forward(self, x: Tensor) -> Tensor:
        held = self.running_mean, self.running_var, self.weight, self.bias
        return F.batch_norm(x, *held, True, 0.1, self.eps)


class ByKeyword(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        held = self.weight, self.bias, self.running_mean, self.running_var
        more = {"training": True, "momentum": 0.1, "eps": self.eps, "cudnn_enabled": False}
        return torch.batch_norm(x, *held, **more)


class Native(nn.BatchNorm2d):
    def forward(self, x: Tensor) -> Tensor:
        held = self.weight, self.bias, self.running_mean, self.running_var
        return torch.native_batch_norm(x, *held, True, 0.1, self.eps)[0]


class PerInstance(nn.BatchNorm2d):
    """By default it takes the statistics of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return F.instance_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class ReadsWhatMoves(nn.BatchNorm2d):
    """A scale by a variance that every call changes: no constant."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.batch_norm(x, self.running_mean, self.running_var, None, None, True)
        return x * self.running_var[:, None, None]


def normed(kind: type[nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Conv2d(C, C, 3), kind(C), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))


class Observed(nn.Module):
    """A weight, or an input, that is quantised as an observer in the forward says."""

    def __init__(self, of_weight: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, C, 1, 1))
        self.of_weight = of_weight
        self.register_buffer("on", torch.ones(1, dtype=torch.long))
        self.register_buffer("low", torch.tensor([float("inf")]))
        self.register_buffer("high", torch.tensor([float("-inf")]))
        self.register_buffer("scale", torch.ones(1))
        self.register_buffer("zero", torch.zeros(1, dtype=torch.int32))

    def quantised(self, x: Tensor) -> Tensor:
        held = self.on, self.on, self.low, self.high, self.scale, self.zero
        return torch.fused_moving_avg_obs_fake_quant(x, *held, 0.1, -128, 127, 0, False, False)

    def forward(self, x: Tensor) -> Tensor:
        if self.of_weight:
            return F.conv2d(x, self.quantised(self.weight))
        return F.conv2d(self.quantised(x), self.weight) * self.scale


def observed(of_weight: bool) -> nn.Module:
    return nn.Sequential(Observed(of_weight), nn.BatchNorm2d(C))


class Lookup(nn.Module):
    """Rows of a table that are made shorter when they are read, and the table by another way."""

    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(6, C, max_norm=0.5)
        self.functional = functional
        self.linear, self.norm = nn.Linear(C, C), nn.BatchNorm1d(C)
        nn.init.normal_(self.table.weight, std=9)

    def forward(self, x: Tensor) -> Tensor:
        index = (x[0, 0, :3, :3] > 0).long() + 2
        if self.functional:
            rows = F.embedding(index, self.table.weight, max_norm=0.5)
        else:
            rows = self.table(index)
        y = self.norm(self.linear(rows).transpose(1, 2))
        return y * self.table.weight[2].sum() + self.table.weight[3][:, None]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "functional": lambda: normed(Functional),
    "by keyword": lambda: normed(ByKeyword),
    "native": lambda: normed(Native),
    "per instance": lambda: normed(PerInstance),
    "reads what moves": lambda: normed(ReadsWhatMoves),
    "observed weight": lambda: observed(True),
    "observed input": lambda: observed(False),
    "embedding": lambda: Lookup(False),
    "functional embedding": lambda: Lookup(True),
}

FORMS: dict[str, Callable[[Any, Tensor], Any]] = {
    "eager": lambda model, x: model,
    "graph": lambda model, x: fx.symbolic_trace(model),
    "program": lambda model, x: torch.export.export(model, (x,)),
    "decomposed": lambda model, x: torch.export.export(model, (x,)).run_decompositions(),
}


def state(model: Any) -> dict[str, Tensor]:
    held = model.state_dict if isinstance(model, ExportedProgram) else model.state_dict()
    return {name: tensor.detach().clone() for name, tensor in held.items()}


def changed(model: Any, before: dict[str, Tensor]) -> list[str]:
    now = state(model)
    return [name for name in before if not torch.equal(before[name], now[name])]


def runnable(model: Any) -> Any:
    return model.module() if isinstance(model, ExportedProgram) else model


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MODELS)
def test_what_a_forward_writes_is_as_it_was(name: str, form: str) -> None:
    x = torch.randn(4, C, 9, 9)
    model = FORMS[form](ready(MODELS[name]()).float(), x)
    before = state(model)
    reparam.plan(model)
    assert not changed(model, before)
    reparam.plan(model, x)
    assert not changed(model, before)
    fused = reparam.fuse(model, x)
    assert not changed(model, before)
    if not name.startswith("observed"):
        reparam.verify(model, fused, x)
        assert not changed(model, before)
    run, run_fused = runnable(model), runnable(fused)
    with torch.no_grad():
        for _ in range(3):  # each call finds what the last one wrote
            assert relative_error(run_fused(x), run(x)) <= 1e-4


@pytest.mark.parametrize("form", ["program", "decomposed"])
def test_a_program_captured_in_training_mode_is_as_it_was(form: str) -> None:
    x = torch.randn(4, C, 9, 9)
    layers = nn.Conv2d(C, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
    program = FORMS[form](nn.Sequential(*layers).train(), x)
    before = state(program)
    fused = reparam.fuse(program)
    reparam.verify(program, fused, x)
    assert not changed(program, before)
    run, run_fused = program.module(), fused.module()
    for _ in range(3):
        assert relative_error(run_fused(x).detach(), run(x).detach()) <= 1e-4


@torch.library.custom_op("reparam_tests::counts", mutates_args=())
def counts(x: Tensor, seen: Tensor) -> Tensor:
    """An operator of somebody's that does not say what it writes to."""
    seen.detach().add_(1)
    return x * 2


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return counts(self.norm(self.conv(x)), self.seen)


def test_somebodys_operator_that_says_nothing_is_not_believed() -> None:
    x, model = torch.randn(2, C, 5, 5), ready(Counts()).float()
    before = state(model)
    fused = reparam.fuse(model, x)
    assert len(fused.reparam_report.fused) == 1
    reparam.verify(model, fused, x)
    assert not changed(model, before)


def test_a_norm_in_eval_mode_is_still_fused() -> None:
    """Only where it takes the statistics of the batch it writes."""

    class Evaluated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            held = self.running_mean, self.running_var, self.weight, self.bias
            return F.batch_norm(x, *held, self.training, 0.1, self.eps)

    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), Evaluated(C)))
    assert len(reparam.plan(model).fused) == 1
    looked_up = nn.Sequential(nn.Embedding(6, C), nn.Linear(C, C), nn.Linear(C, C))
    assert len(reparam.plan(looked_up.eval()).fused) == 1


class Adds(nn.Module):
    """Adds rows to one of its two arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows()

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        added: Tensor = self.rows(y)
        return added


class Rows(nn.Module):
    """Shortens the rows of a table that it adds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(C, 1, max_norm=0.5)
        nn.init.normal_(self.table.weight, std=9)

    def forward(self, x: Tensor) -> Tensor:
        rows: Tensor = self.table(torch.arange(x.shape[1], device=x.device))
        return x + rows[:, :, None]


class LooksUpForNobody(nn.Module):
    """Shortens the rows of a table, and reads them later only."""

    def __init__(self) -> None:
        super().__init__()
        self.adds = Adds()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        self.adds(x, x)
        norm, y = self.norm, self.conv(x)
        held = norm.running_mean, norm.running_var, norm.weight, norm.bias
        return F.batch_norm(y, *held, False, 0.1, norm.eps)  # the code around it becomes new


def test_a_table_is_shortened_although_nobody_reads_its_rows() -> None:
    model, x = ready(LooksUpForNobody()), images(C)
    fused: Any = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    for network in (model, fused):
        network(x)
    assert torch.equal(fused.adds.rows.table.weight, model.adds.rows.table.weight)
    assert float(fused.adds.rows.table.weight.detach().norm(dim=1).max()) < 1
