"""Layers of which code asks what they are stay, for an expanded one is of another class."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import blocks
from tests.refusals.checking import ready
from tests.support.errors import relative_error, run


class Layers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(6, 6, 1)


class AsksIsinstance(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.c(x * (2 if isinstance(self.b, nn.Linear) else 3))


class AsksType(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.c(self.b(x) if type(self.b) is nn.Linear else x)


class AsksName(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.c(x * 2 if self.b.__class__.__name__ == "Linear" else x)


class AsksWhereDataDecide(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        if x.sum() < 1e9:
            x = self.b(x) if isinstance(self.b, nn.Linear) else -x
        return self.c(x)


class AsksForTheWeight(Layers):
    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x))
        return self.c(x * (2 if hasattr(self.b, "weight") else 3))


ASKING = [AsksIsinstance, AsksType, AsksName, AsksWhereDataDecide, AsksForTheWeight]


def expand(model: nn.Module) -> tuple[list[str], dict[str, str]]:
    """What was expanded, and why others were not; asserts that the function is the same."""
    x = torch.randn(2, 6, 8, 8, dtype=torch.float64)
    expanded = reparam.expand(model, blocks.lora(2))
    assert relative_error(run(expanded, (x,)), run(model, (x,))) < 1e-12
    report = expanded.reparam_report
    return [row.place for row in report.expanded], {r.place: r.reason for r in report.refused}


@pytest.mark.parametrize("kind", ASKING)
def test_the_layer_stays_and_the_others_do_not(kind: type[nn.Module]) -> None:
    places, reasons = expand(ready(kind()))
    assert places == ["a", "c"]
    assert reasons["b"] in ("code asks of what kind it is", "code reads its weights")


class Chooses(nn.Module):
    """Calls its layers one after the other, those of a kind otherwise."""

    def __init__(self) -> None:
        super().__init__()
        layers = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(8, 8), nn.Conv2d(6, 6, 1)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if x.sum() < 1e9:
                x = layer(x) if isinstance(layer, vars(nn)["Conv2d"]) else -layer(x)
        return x


class ChoosesTraced(Chooses):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x) if isinstance(layer, nn.Conv2d) else -layer(x)
        return x


class ChoosesNorms(Chooses):
    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if x.sum() < 1e9:
                x = layer(x, x) if isinstance(layer, (nn.BatchNorm2d, nn.ReLU)) else -layer(x)
        return x


def test_only_an_answer_that_changes_keeps_a_layer() -> None:
    assert expand(ready(ChoosesTraced()))[0] == ["layers.1"]
    assert expand(ready(ChoosesNorms()))[0] == ["layers.0", "layers.1", "layers.2"]


def test_classes_that_are_not_known_may_be_any() -> None:
    with pytest.raises(reparam.ReparamError, match="no layer can be expanded"):
        expand(ready(Chooses()))
