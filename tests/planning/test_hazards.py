"""What a region may not do although it is exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

IMAGE = torch.randn(2, 4, 9, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Checkpointing(nn.Module):
    """An operator, and a block that is computed again in the backward pass."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.first, self.block = nn.Conv2d(4, 4, 1), block

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.block, self.first(x), use_reentrant=False)


class Rectified(nn.Module):
    """Writes to what an operator of its own made."""

    def __init__(self, norm: nn.Module, rectify: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.rectify = norm, rectify

    def forward(self, x: Tensor) -> Tensor:
        return self.rectify(self.norm(x))


def whole() -> nn.Module:
    """A block with operators of its own."""
    return nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))


class PerhapsCheckpointing(Checkpointing):
    """Does so to save memory in training, at its owner's wish, as DenseNets do."""

    saving = False

    def forward(self, x: Tensor) -> Any:
        return super().forward(x) if self.saving else self.block(self.first(x))


def test_what_could_be_checkpointed_and_is_not_joins() -> None:
    torch.manual_seed(0)
    block = Rectified(nn.BatchNorm2d(4), torch.relu_)
    model = randomise_batch_norm(PerhapsCheckpointing(block), 0).double().eval()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (IMAGE,)), run(model, (IMAGE,))) <= 1e-12
    assert count_operators(fused, (IMAGE,)).batch_norms == 0


@pytest.mark.parametrize(
    ("block", "operators"),
    [
        (lambda: Rectified(nn.BatchNorm2d(4), torch.relu_), 2),
        (lambda: Rectified(nn.Conv2d(4, 4, 3), torch.relu_), 2),
        (lambda: Rectified(nn.BatchNorm2d(4), torch.relu), 1),
        (lambda: nn.Sequential(nn.ReLU(), whole()), 2),
    ],
    ids=["norm", "convolution", "nothing written", "all inside"],
)
def test_what_checkpointing_computes_again_is_as_it_was(
    block: Callable[[], nn.Module], operators: int
) -> None:
    torch.manual_seed(0)
    model = randomise_batch_norm(Checkpointing(block()), 0).double().eval()
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (IMAGE,)), run(model, (IMAGE,))) <= 1e-12
    counts = count_operators(fused, (IMAGE,))
    assert counts.convolutions + counts.batch_norms == operators
    gradients = []
    for each in (model, fused):
        image = IMAGE.clone().requires_grad_()
        each(image).sin().sum().backward()  # raises where an argument was written to
        gradients.append(image.grad)
    assert relative_error(*gradients) <= 1e-12
