"""Values that a part returns, or puts into an object, and that its caller does not read.

Its caller may read them with other arguments, and a user who calls the part.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.errors import relative_error


class Part(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.left, self.right = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 3, padding=1)
        self.gamma = nn.Parameter(torch.rand(6, 1, 1) + 0.5)


class Chain(Part):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.first(x)
        return y, self.norm(y)


class Concatenation(Part):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = torch.cat([self.left(x), self.right(x)], 1)
        return {"before": y, "after": self.norm(y)}


class Nested(Part):
    def forward(self, x: Tensor) -> list[Tensor]:
        y = torch.cat([self.left(x), self.right(x)], 1)
        return [y, torch.cat([self.left(x), y], 1) * self.gamma]


class Returning(nn.Module):
    """Reads the last value of its part, and with an option all."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor, every: bool = False) -> Any:
        values = self.part(x)
        several = list(values.values()) if isinstance(values, dict) else values
        return values if every else several[-1]


class Bag:
    """An object of no class that a graph could hold."""


class Filling(Part):
    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, kept: Any) -> Tensor:
        y = self.first(x)
        if self.kind is list:
            kept.append(y)
        elif self.kind is dict:
            kept["y"] = y
        else:
            kept.y = y
        result: Tensor = self.norm(y)
        return result


class Filled(nn.Module):
    """Gives its part an object to fill, and returns it with an option."""

    def __init__(self, kind: type) -> None:
        super().__init__()
        self.kind, self.part = kind, Filling(kind)

    def forward(self, x: Tensor, every: bool = False) -> Any:
        kept = self.kind()
        y = self.part(x, kept)
        return (entries(kept), y) if every else y


def entries(kept: Any) -> list[Tensor]:
    if isinstance(kept, list):
        return kept
    return list((kept if isinstance(kept, dict) else vars(kept)).values())


def assert_alike(actual: Any, expected: Any) -> None:
    for new, old in zip(tensors(actual), tensors(expected), strict=True):
        assert relative_error(new, old) <= EXACT


def tensors(values: Any) -> list[Tensor]:
    if isinstance(values, Tensor):
        return [values]
    parts = values.values() if isinstance(values, dict) else values
    return [tensor for part in parts for tensor in tensors(part)]


@torch.no_grad()
@pytest.mark.parametrize("kind", [Chain, Concatenation, Nested])
def test_what_a_part_returns_besides(kind: type[nn.Module]) -> None:
    model, x = ready(Returning(kind())), images()
    fused = reparam.fuse(model)  # a warning would be an error
    assert_alike(fused(x), model(x))
    assert_alike(fused(x, every=True), model(x, every=True))
    assert_alike(fused.get_submodule("part")(x), model.get_submodule("part")(x))


@torch.no_grad()
@pytest.mark.parametrize("kind", [list, dict, Bag])
def test_what_a_part_puts_into_an_object(kind: type) -> None:
    model, x = ready(Filled(kind)), images()
    fused = reparam.fuse(model)
    assert_alike(fused(x), model(x))
    assert_alike(fused(x, every=True), model(x, every=True))
    actual, expected = kind(), kind()
    assert_alike(fused.get_submodule("part")(x, actual), model.get_submodule("part")(x, expected))
    assert_alike(entries(actual), entries(expected))


def test_a_part_whose_result_is_not_read_at_all_is_fused_by_itself() -> None:
    """There, nothing says which of its values somebody else would read: all are what they were."""

    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part, self.head = Chain(), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Any:
            self.part(x)
            return self.head(x)

    model, x = ready(Idle()), images()
    fused = reparam.fuse(model)
    with torch.no_grad():
        assert_alike(fused(x), model(x))
        assert_alike(fused.get_submodule("part")(x), model.get_submodule("part")(x))
