"""Example inputs decide by which kinds of values a forward goes its way; the new code checks it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from tests.refusals.checking import EXACT, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


def by_match(x: Tensor) -> bool:
    match x.ndim:
        case 4:
            return True
        case _:
            return False


KINDS: dict[str, Callable[[Tensor], Any]] = {
    "ndim": lambda x: x.ndim == 4,
    "dim": lambda x: x.dim() > 3,
    "length of the shape": lambda x: len(x.shape) == 4,
    "length of the size": lambda x: len(x.size()) != 3,
    "one of several": lambda x: x.ndim in (4, 5),
    "match": by_match,
    "type": lambda x: x.dtype != torch.float32 and x.dtype == torch.float64,
    "device": lambda x: x.device.type == "cpu" and not x.is_cuda,
    "kind of number": lambda x: x.is_floating_point(),
    "of what is made of it": lambda x: x.mean((-1, -2)).dim() == 2,
}


class Chosen(nn.Module):
    """Which convolution runs, and whether a norm follows, depends on a question."""

    def __init__(self, question: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.image, self.line = nn.Conv2d(4, 6, 3), nn.Conv1d(4, 6, 3)
        self.norm, self.question = nn.BatchNorm2d(6), question

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.image(x)) if self.question(x) else self.line(x)
        return y.relu()


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_are_decided(kind: str) -> None:
    model, x = ready(Chosen(KINDS[kind])), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    for images in (x, x[:1, :, 2:, 1:]):
        assert relative_error(run(fused, (images,)), run(model, (images,))) < EXACT
    counts = count_operators(fused, (x,))
    assert (counts.convolutions, counts.batch_norms) == (1, 0)
    assert not reparam.plan(model).fused, "without inputs nothing decides"


@pytest.mark.parametrize("kind", ["ndim", "length of the shape", "one of several", "match"])
def test_another_kind_is_an_error(kind: str) -> None:
    model, x = ready(Chosen(KINDS[kind])), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    line = x[:, :, 0]
    with pytest.raises(ReparamError, match="the model was fused for inputs of another kind"):
        run(reparam.fuse(model, (x,)), (line,))
    fused = reparam.fuse(model, (line,))
    assert relative_error(run(fused, (line,)), run(model, (line,))) < EXACT
    # Nothing was there to fuse: the code is as it was.
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT


class Joined(nn.Module):
    """Whether a norm follows depends on the rank, of which the convolution takes two."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        return self.norm(y).relu() if y.dim() == 4 else y


class Around(nn.Module):
    """Its part asks, and it asks itself."""

    def __init__(self) -> None:
        super().__init__()
        self.part, self.last = Joined(), nn.Conv2d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.part(x)
        return self.last(y) if x.dim() == 4 else y


@pytest.mark.parametrize("kind", [Joined, Around])
def test_operators_in_their_places_are_guarded_too(kind: Callable[[], nn.Module]) -> None:
    model, x = ready(kind()), torch.randn(2, 4, 9, 8, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert count_operators(fused, (x,)).batch_norms == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) < EXACT
    with pytest.raises(ReparamError, match="was fused for inputs of another kind"):
        run(fused, (x[0],))
    twice = reparam.fuse(fused, (x,))
    assert relative_error(run(twice, (x,)), run(model, (x,))) < EXACT


@pytest.mark.parametrize(
    "question",
    [
        lambda x: x.shape[2] == 9,
        lambda x: x.numel() > 100,
        lambda x: x.max() > 0,
        lambda x: len(x) == 2,
        lambda x: x.ndim == 4 and x.shape[2] == 9,
        lambda x: x[0, 0].sum() > 0 or x.ndim == 4,
    ],
)
def test_sizes_and_numbers_are_not(question: Callable[[Tensor], Any]) -> None:
    model, x = ready(Chosen(question)), torch.randn(2, 4, 9, 8, dtype=torch.float64).abs()
    model.line = nn.Sequential(nn.Conv2d(4, 6, 3), nn.ReLU()).double().eval()
    fused = reparam.fuse(model, (x,))
    for images in (x, x[:1, :, 2:], -x):
        assert relative_error(run(fused, (images,)), run(model, (images,))) < EXACT
