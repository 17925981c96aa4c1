"""A fused model in a file: read into another one of its class, or refused with a reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import reparam
import repvgg
from reparam import ReparamError
from reparam.deployment import state_bytes
from tests.refusals.checking import images, ready

Build = Callable[[], nn.Module]


def small(width: int = 8) -> nn.Module:
    layers = [nn.Conv2d(4, width, 3), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 1)]
    return ready(nn.Sequential(*layers, nn.BatchNorm2d(4))).float()


class Branches(nn.Module):
    """Parts that are traced apart, and one that only training runs."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, width, 3), nn.Conv2d(4, width, 3)
        self.norm, self.layer, self.rows = nn.BatchNorm2d(width), nn.LayerNorm(4), nn.Linear(4, 4)
        self.auxiliary = nn.Conv2d(width, 2, 1)
        self.body = small()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x) + self.second(x))
        if self.training:
            y = y + self.auxiliary(y).mean()
        z = self.rows(self.layer(y.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        while z.mean() > 1e3:  # tells of its numbers, so that it cannot be traced
            z = z / 2
        return self.body(z)


def branches() -> nn.Module:
    return ready(Branches()).float()


def family() -> nn.Module:
    config = repvgg.RepVGGConfig(blocks=(1, 2, 1, 1), channels=(8, 8, 8, 16, 16))
    return ready(repvgg.RepVGG(config)).float()


def expanded() -> nn.Module:
    return reparam.expand(small(), reparam.blocks.acnet())


def dear(operator: reparam.Operator) -> float:
    """A cost that no name tells again."""
    return float(operator.multiply_adds)


def fresh(build: Build) -> nn.Module:
    """Another one, with other weights."""
    model = build()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.1, 2)
    return model


@pytest.mark.parametrize(
    ("build", "options"),
    [
        (small, {}),
        (small, {"keep": "3"}),
        (small, {"keep": nn.BatchNorm2d}),
        (small, {"cost": "memory"}),
        (small, {"cost": dear}),
        (branches, {}),
        (branches, {"drop_unused": True}),
        (branches, {"fold_norms": True}),
        (expanded, {}),
        (family, {}),
    ],
)
@pytest.mark.parametrize("given", [False, True])
def test_what_is_loaded_is_what_was_saved(
    build: Build, options: dict[str, Any], given: bool, tmp_path: Path
) -> None:
    size = (2, 3, 32, 32) if build is family else (2, 4, 9, 8)
    x, path = torch.randn(size), tmp_path / "below" / "fused.safetensors"
    fused = reparam.fuse(build(), x if given else None, **options)
    reparam.save(fused, path)
    model = fresh(build)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loaded = reparam.load(model, path)
    assert torch.equal(loaded(x), fused(x))
    assert {row.place for row in loaded.reparam_report.fused} == {
        row.place for row in fused.reparam_report.fused
    }
    written = load_file(path)
    assert written.keys() == fused.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in before.items())


def test_a_plan_without_some_rows_is_loaded_without_them(tmp_path: Path) -> None:
    path, x = tmp_path / "fused.safetensors", torch.randn(2, 4, 9, 8)
    fused = reparam.plan(small()).without("1").apply()
    reparam.save(fused, path)
    loaded = reparam.load(fresh(small), path)
    assert torch.equal(loaded(x), fused(x))
    assert [row.place for row in loaded.reparam_report.fused] == ["4"]


def test_a_copy_of_another_type_is_saved_as_it_is(tmp_path: Path) -> None:
    path, x = tmp_path / "fused.safetensors", images(4)
    fused = reparam.fuse(small()).double()
    reparam.save(fused, path)
    assert torch.equal(reparam.load(fresh(small).double(), path)(x), fused(x))
    with pytest.raises(ReparamError, match=r"dtype torch.float64 in the file and torch.float32"):
        reparam.load(small(), path)


def test_weights_of_a_program_in_another_order_of_memory_are_written() -> None:
    model = small().to(memory_format=torch.channels_last)
    state = torch.export.export(model, (images().float(),)).state_dict
    assert not all(tensor.is_contiguous() for tensor in state.values())
    read = safetensors.torch.load(state_bytes(state, {}))
    assert read.keys() == state.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in state.items())


class Named(nn.Module):
    """Takes something that is no tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.body = small()

    def forward(self, x: Tensor, mode: str = "a") -> Tensor:
        return self.body(x) if mode == "a" else x


def named() -> nn.Module:
    return Named().eval()


def test_what_a_file_cannot_hold_is_asked_for(tmp_path: Path) -> None:
    path, x = tmp_path / "fused.safetensors", torch.randn(2, 4, 9, 8)
    fused = reparam.fuse(named(), (x, "a"))
    reparam.save(fused, path)
    with pytest.raises(ReparamError, match="pass some as example_inputs"):
        reparam.load(named(), path)
    loaded = reparam.load(fresh(named), path, example_inputs=(x, "a"))
    assert torch.equal(loaded(x), fused(x))

    rules = {nn.ReLU: None}
    reparam.save(reparam.fuse(small(), rules=rules), path)
    with pytest.raises(ReparamError, match="pass the same as rules="):
        reparam.load(small(), path)
    assert torch.isfinite(reparam.load(small(), path, rules=rules)(x)).all()


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (small, "fused.pt", "must end with .safetensors"),
        (lambda: reparam.fuse(small(), live=True), "fused.safetensors", "live"),
        (
            lambda: torch.export.export(small(), (torch.randn(1, 4, 9, 9),)),
            "a.safetensors",
            "export",
        ),
        (small, "a.safetensors", "was not fused"),
        (lambda: 3, "a.safetensors", "expected a torch.nn.Module"),
    ],
)
def test_what_is_not_saved(model: Build, name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ReparamError, match=reason):
        reparam.save(model(), tmp_path / name)
    assert not [*tmp_path.iterdir()]


def first_layers() -> nn.Module:
    return small()[:3].eval()


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (partial(small, 6), "in this model|has the shape"),
        (lambda: small().train(), "training mode"),
        (branches, "holds a Sequential, and the model is a Branches"),
        (first_layers, "cannot be fused at 4"),
    ],
)
def test_another_model_than_the_one_in_the_file(model: Build, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "fused.safetensors"
    reparam.save(reparam.fuse(small()), path)
    with pytest.raises(ReparamError, match=reason):
        reparam.load(model(), path)


def rewritten(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Write a file again that tells something else."""
    reparam.save(reparam.fuse(small(), torch.randn(1, 4, 9, 9)), path)
    with safe_open(path, "pt") as file:
        told = json.loads(file.metadata()["reparam"])
    change(told)
    save_file(load_file(path), path, {"reparam": json.dumps(told)})


@pytest.mark.parametrize(
    "change",
    [
        lambda told: told.update(version=2),
        lambda told: told.pop("options"),
        lambda told: told["options"].update(keep=[3]),
        lambda told: told["options"].update(inputs=[["", [9**9, 9**9], "float32"]]),
        lambda told: told["options"].update(inputs=[["", [1, 4, 9, 9], "os"]]),
        lambda told: told["options"].update(fold_norms="yes"),
        lambda told: told.update(operators=["1"]),
    ],
)
def test_a_file_that_tells_nonsense(
    change: Callable[[dict[str, Any]], object], tmp_path: Path
) -> None:
    rewritten(tmp_path / "a.safetensors", change)
    with pytest.raises(ReparamError, match="damaged, or was written by a later version"):
        reparam.load(small(), tmp_path / "a.safetensors")


def test_files_of_others(tmp_path: Path) -> None:
    save_file(small().state_dict(), tmp_path / "weights.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for name, reason in [
        ("weights", "not written by reparam.save"),
        ("broken", "damaged"),
        ("missing", "there is no file"),
    ]:
        with pytest.raises(ReparamError, match=reason):
            reparam.load(small(), tmp_path / f"{name}.safetensors")


def test_numbers_of_a_file_that_are_others_than_those_of_the_code(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    rewritten(path, lambda told: told["operators"].update({"4": "Conv2d(9, 9)"}))
    with pytest.raises(ReparamError, match=r"4 is Conv2d\(9, 9\) in .* in this model"):
        reparam.load(small(), path)
