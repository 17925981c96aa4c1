"""Code that asks what its parts are, or whether two values are one, and goes on running.

An operator that goes leaves an identity in its place, which has another answer, or none.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.capture.reading import Onlookers
from tests.support.counting import count_operators
from tests.support.errors import relative_error
from tests.support.randomise import randomise_batch_norm

Forward = Callable[[Any, Tensor], Any]
IMAGE = torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Parts(nn.Module):
    """A pair that becomes one operator, and one more of other channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.wide, self.narrow = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.row = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())

    @property
    def width(self) -> int:
        return self.wide.out_channels


def collect(layers: Iterable[nn.Module], x: Tensor) -> list[Tensor]:
    values = []
    for layer in layers:
        x = layer(x)
        if isinstance(layer, nn.BatchNorm2d):
            values.append(x)
    return values


def same(x: Tensor, y: Tensor) -> Tensor:
    return 7 * y if x is y else y


def kind(m: Any, x: Tensor) -> Any:
    y = m.norm(m.conv(x))
    return y if isinstance(m.norm, nn.BatchNorm2d) else y.relu()


def identity(m: Any, x: Tensor) -> Any:
    y = m.norm(m.conv(x))
    return y.relu() if isinstance(m.norm, nn.Identity) else y


def class_name(m: Any, x: Tensor) -> Any:
    y = m.norm(m.conv(x))
    return y.relu() if m.norm.__class__.__name__ == "Identity" else y


def kinds_in_a_row(m: Any, x: Tensor) -> Any:
    return collect(m.row, x)


def attribute(m: Any, x: Tensor) -> Any:
    y = m.narrow(m.wide(x)).relu()
    return y if m.wide.out_channels == 8 else y + 1


def attribute_of_what_goes(m: Any, x: Tensor) -> Any:
    return m.norm(m.conv(x)).relu() + m.norm.eps


def attribute_by_name(m: Any, x: Tensor) -> Any:
    return m.narrow(m.wide(x)).relu() * getattr(m.wide, "out_channels", 1)


def property_(m: Any, x: Tensor) -> Any:
    return m.narrow(m.wide(x)).relu() * m.width


def method(m: Any, x: Tensor) -> Any:
    return m.narrow(m.wide(x)).relu() * sum(p.numel() for p in m.parameters())


def one_object(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = m.norm(y)
    return 7 * z if z is y else z


def one_object_in_a_function(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    return same(y, m.norm(y))


def one_object_of_several(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = m.norm(y)
    return z * (2 if any(value is z for value in [y]) else 1)


def one_object_by_function(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    z = m.norm(y)
    return 7 * z if operator.is_(y, z) else z


FORWARDS = (
    kind,
    identity,
    class_name,
    kinds_in_a_row,
    attribute,
    attribute_of_what_goes,
    attribute_by_name,
    property_,
    method,
    one_object,
    one_object_in_a_function,
    one_object_of_several,
    one_object_by_function,
)


def model_of(forward: Forward) -> nn.Module:
    torch.manual_seed(0)
    of_class = type(forward.__name__, (Parts,), {"forward": forward})
    return randomise_batch_norm(of_class().double().eval(), 0)


def assert_same(model: nn.Module, fused: nn.Module) -> None:
    with torch.no_grad():
        assert relative_error(fused(IMAGE), model(IMAGE)) <= 1e-12


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("forward", FORWARDS)
def test_code_that_looks_gets_the_answers_that_it_got(forward: Forward, verify: bool) -> None:
    model = model_of(forward)
    fused = reparam.fuse(model, verify=verify)
    assert len(fused.reparam_report.fused) == 1
    assert_same(model, fused)


class Reading(nn.Module):
    """Reads of a block, which is its own or another's, how one of its layers is made."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        layer: Any = self.block[0]
        return x.relu() * layer.out_channels


class Around(nn.Module):
    """A block, and what looks into it from outside."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 1))
        self.reading = Reading(self.block)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.reading(F.relu(self.block(x)))
        return y * self.block[0].kernel_size[0]  # type: ignore[operator, index]


def test_code_outside_that_looks_finds_what_it_found() -> None:
    torch.manual_seed(0)
    model = Around().double().eval()
    fused = reparam.fuse(model)
    assert_same(model, fused)
    assert count_operators(fused, (IMAGE,)).convolutions == 1
    assert [row.place for row in fused.reparam_report.frozen] == ["block.0", "block.1"]


def hidden(m: Any, x: Tensor) -> Any:
    def channels(layer: Any) -> int:
        return layer.out_channels  # type: ignore[no-any-return]

    return m.narrow(m.wide(x)).relu() * channels(m.wide)


def test_what_reading_does_not_find_running_does() -> None:
    model = model_of(hidden)
    with pytest.warns(UserWarning, match="the model: with its new code it returns something else"):
        fused = reparam.fuse(model)
    assert not fused.reparam_report.fused
    assert_same(model, fused)


class OnlyCalling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor | None) -> Tensor | None:
        return None if x is None else F.relu(self.norm(self.conv(x)))


def test_code_that_only_calls_its_parts_does_not_look() -> None:
    model = OnlyCalling()
    onlookers = Onlookers([model])
    assert not onlookers.telling_apart
    assert not onlookers.perhaps
    assert not onlookers.of(model.norm)
