"""A value of which only sizes are read may go, where what comes instead has the same sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


class Projections(nn.Module):
    """Two linear layers, and the sizes of the value between them."""

    def __init__(self, sizes: Callable[[Tensor], Any], width: int = 8) -> None:
        super().__init__()
        self.a, self.qkv = nn.Linear(6, width), nn.Linear(width, 24)
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        sizes = self.sizes(y)
        q, k, v = self.qkv(y).reshape(*sizes, 3, 8).unbind(2)
        return q * k + v


def rows(y: Tensor) -> Any:
    batch, length, _ = y.shape
    return batch, length


KEPT = {
    "unpacked": rows,
    "sizes": lambda y: (y.size(0), y.size(1)),
    "slices": lambda y: (y.shape[:2][0], y.size()[1:2][0]),
    "from the end": lambda y: (y.shape[-3], y.size()[-2]),
}


@pytest.mark.parametrize("how", KEPT)
def test_sizes_that_stay_do_not_keep_a_value(how: str) -> None:
    model, x = ready(Projections(KEPT[how])), torch.randn(2, 5, 6, dtype=torch.float64)
    for fused in (reparam.fuse(model, (x,)), reparam.fuse(model)):
        assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).linears == 1
    other = torch.randn(3, 4, 6, dtype=torch.float64)
    assert relative_error(run(fused, (other,)), run(model, (other,))) < EXACT


def test_the_number_of_features_keeps_a_value() -> None:
    model = ready(Projections(lambda y: (*rows(y)[:1], y.shape[2] - 3), width=8))
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).linears == 2
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


class Convolutions(nn.Module):
    """Two convolutions, the first of which may change the size of what the second reads."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.a = nn.Conv2d(4, 4, 1, **options)
        self.b = nn.Conv2d(4, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        result: Tensor = self.b(y).flatten(2) * y.shape[-1] + y.size(2)
        return result


@pytest.mark.parametrize(("options", "joined"), [({}, 1), ({"stride": 2}, 2), ({"padding": 1}, 2)])
def test_sizes_of_images_that_stay(options: dict[str, Any], joined: int) -> None:
    model = ready(Convolutions(bias=False, **options))
    x = torch.randn(2, 4, 7, 6, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
    if joined == 1:
        assert count_operators(fused, (x,)).convolutions == 1


class Strided(nn.Module):
    """A value whose sizes are read goes into what follows, before that joins what is before."""

    def __init__(self, transposed: bool) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.first = kind(3, 3, 1, stride=2)
        self.norm, self.last = nn.BatchNorm2d(3), nn.Conv2d(3, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        height, width = y.shape[2:]
        return self.last(y).view(y.shape[0], 3, 4, height * width)


@pytest.mark.parametrize("transposed", [True, False])
def test_sizes_of_what_went_are_read_of_what_has_them(transposed: bool) -> None:
    model, x = ready(Strided(transposed)), torch.randn(2, 3, 5, 7, dtype=torch.float64)
    for fused in (reparam.fuse(model, x), reparam.fuse(model)):
        assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
        assert count_operators(fused, (x,)).batch_norms == 0
