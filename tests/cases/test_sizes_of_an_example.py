"""A crop that takes all of the example inputs is no identity: others may be larger."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

Crop = Callable[[Tensor], Tensor]


class Cropped(nn.Module):
    """A convolution, a crop that takes all rows of an example, and a norm."""

    def __init__(self, crop: Crop) -> None:
        super().__init__()
        self.conv, self.norm, self.crop = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8), crop

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.crop(self.conv(x)))


CROPS: dict[str, Crop] = {
    "narrow": lambda y: y.narrow(2, 0, 8),
    "narrow of the last": lambda y: y.narrow(-1, 0, 8),
    "getitem": lambda y: y[:, :, :8],
    "getitem of both": lambda y: y[:, :, :8, :8],
    "split": lambda y: y.split(8, 2)[0],
    "index_select": lambda y: y.index_select(2, torch.arange(8)),
    "narrow of the batch": lambda y: y.narrow(0, 0, 1),
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS)
def test_a_crop_is_no_identity(crop: Crop, verify: bool) -> None:
    model = randomise_batch_norm(Cropped(crop).double().eval(), 0)
    example = torch.randn(1, 4, 8, 8, dtype=torch.float64)
    fused = reparam.fuse(model, (example,), verify=verify)  # a warning would be an error
    for shape in ((1, 4, 8, 8), (2, 4, 12, 9), (1, 4, 9, 12)):
        x = torch.randn(shape, dtype=torch.float64)
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


class Tokens(nn.Module):
    """All tokens of the example, of which others may have more, and all padded features."""

    def __init__(self, padded: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 4)
        self.padded = padded

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.padded:
            return self.second(nn.functional.pad(y, (1, 1)).narrow(2, 0, 8))
        return self.second(y.narrow(1, 0, 5))


@pytest.mark.parametrize("examples", [True, False])
@pytest.mark.parametrize("padded", [True, False])
def test_tokens_are_no_channels(padded: bool, examples: bool) -> None:
    model = Tokens(padded).double().eval()
    inputs = (torch.randn(1, 5, 4, dtype=torch.float64),) if examples else None
    fused = reparam.fuse(model, inputs, verify=False)
    x = torch.randn(2, 7, 4, dtype=torch.float64)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


class Pooled(nn.Module):
    """Weights fix how many channels there are, through a pool, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.pool, self.norm = nn.Conv2d(4, 8, 1), nn.MaxPool2d(2), nn.BatchNorm2d(8)
        self.last = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.pool(self.conv(x))[:, :8]))


@pytest.mark.parametrize("examples", [True, False])
def test_channels_behind_a_pool_are_known(examples: bool) -> None:
    model = randomise_batch_norm(Pooled().double().eval(), 0)
    x = torch.randn(2, 4, 8, 9, dtype=torch.float64)
    fused = reparam.fuse(model, (x,) if examples else None)
    assert len(fused.reparam_report.fused) == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
