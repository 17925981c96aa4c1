"""Modules that stay as they are, and rows that a plan does without."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ReparamError, blocks
from tests.refusals.checking import EXACT, ready
from tests.support.errors import relative_error, run


class Block(nn.Module):
    """Two branches and a norm after their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x) + self.point(x)).relu()
        return result


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.blocks = nn.Sequential(Block(), Block())

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.blocks(self.stem_norm(self.stem(x)).relu())
        return result


def images() -> Tensor:
    return torch.randn(2, 3, 7, 6, dtype=torch.float64)


def test_a_norm_stays_while_its_branches_join() -> None:
    model, x = ready(Net()), images()
    fused = reparam.fuse(model, keep="blocks.*.norm")
    norms = [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    convolutions = [m for m in fused.modules() if isinstance(m, nn.Conv2d)]
    assert (len(norms), len(convolutions)) == (2, 3)
    for kept, own in zip(norms, [model.blocks[0].norm, model.blocks[1].norm], strict=True):
        assert all(map(torch.equal, kept.state_dict().values(), own.state_dict().values()))
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
    reasons = {row.place: row.reason for row in fused.reparam_report.refused}
    assert "keep=" in reasons["blocks.0.norm"]


def test_a_block_stays_with_all_in_it() -> None:
    model, x = ready(Net()), images()
    fused = reparam.fuse(model, keep="blocks.0")
    kept = fused.blocks[0]
    assert type(kept).forward is Block.forward
    assert "forward" not in vars(kept)
    assert [type(part) for part in kept.children()] == [nn.Conv2d, nn.Conv2d, nn.BatchNorm2d]
    assert sum(isinstance(part, nn.Conv2d) for part in fused.blocks[1].modules()) == 1
    assert not any(isinstance(part, nn.BatchNorm2d) for part in fused.blocks[1].modules())
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


@pytest.mark.parametrize(
    "keep",
    [nn.BatchNorm2d, ["stem_norm", Block], lambda path, module: path.startswith("blocks")],
)
def test_keep_takes_types_and_functions(keep: Any) -> None:
    model, x = ready(Net()), images()
    plan = reparam.plan(model, keep=keep)
    assert len(plan.fused) < len(reparam.plan(model).fused) or keep is nn.BatchNorm2d
    fused = plan.apply()
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


class Scaled(nn.Module):
    """A block whose own code computes."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor + 0.5


def test_code_of_a_kept_module_stays() -> None:
    model = ready(nn.Sequential(nn.Conv2d(3, 4, 3), Scaled()))
    fused = reparam.fuse(model, keep=Scaled)
    assert type(fused[1]) is Scaled
    assert torch.equal(fused[0].weight, model[0].weight)
    assert not reparam.plan(model, keep="1").fused
    assert reparam.plan(model).fused


class UsedByFunction(nn.Module):
    """Code that normalises by the tensors of a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        y = nn.functional.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias
        )
        return y.relu()


def test_what_uses_the_tensors_of_a_kept_module_stays() -> None:
    model = ready(UsedByFunction())
    assert len(reparam.plan(model).fused) == 1
    assert not reparam.plan(model, keep="norm").fused


def test_a_wrong_path_names_near_ones() -> None:
    with pytest.raises(ReparamError, match=r"keep='blcks.0' means no module; did you mean 'blocks"):
        reparam.plan(ready(Net()), keep="blcks.0")
    program = torch.export.export(ready(Net()), (images(),))
    with pytest.raises(ReparamError, match="an exported program has none"):
        reparam.plan(program, keep="stem")


def test_expand_keeps() -> None:
    report = reparam.expand(ready(Net()), blocks.acnet(), keep="blocks.1").reparam_report
    places = [row.place for row in report.expanded]
    assert places == ["stem", "blocks.0.conv"]
    assert {row.place for row in report.refused if "keep=" in row.reason} >= {"blocks.1.conv"}


def test_expanded_layers_are_kept() -> None:
    model, x = ready(Net()), images()
    expanded = reparam.expand(model, blocks.dbb(), where="stem")
    fused = reparam.fuse(expanded, keep="stem")
    assert isinstance(fused.stem, reparam.expansion.ExpandedLayer)
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


def test_a_plan_does_without_a_row() -> None:
    model, x = ready(Net()), images()
    plan = reparam.plan(model)
    places = [row.place for row in plan.fused]
    less = plan.without(places[0])
    assert [row.place for row in less.fused] == places[1:]
    assert [row.place for row in plan.fused] == places
    fused = less.apply()
    assert [row.place for row in fused.reparam_report.fused] == places[1:]
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
    with torch.no_grad():
        model.stem.weight.mul_(2)
    again = less.apply()
    assert [row.place for row in again.reparam_report.fused] == places[1:]
    assert relative_error(run(again, (x,)), run(model, (x,))) < EXACT
    with pytest.raises(ReparamError, match="no row of the plan has the place 'stm_norm'; did you"):
        plan.without("stm_norm")
