"""A network around a RepVGG: it learns, and is fused with its head, batch norms and all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reparam
from repvgg import RepVGGConfig, RepVGGFeatures
from repvgg.models.segmentation import PyramidPooling, Segmenter
from tests.support.counting import count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error, run
from tests.support.images import random_images
from tests.support.randomise import randomise_batch_norm

CONFIGS = {
    "plain": RepVGGConfig((1, 1, 2, 1), (8, 8, 16, 16, 32), strides=(2, 2, 2, 1, 1)),
    "plus": RepVGGConfig((1, 1, 2, 1), (8, 8, 16, 16, 32), strides=(2, 2, 1, 1, 1), plus=True),
}


def build(name: str, **options: Any) -> Segmenter:
    torch.manual_seed(0)
    return Segmenter(RepVGGFeatures(CONFIGS[name], out_indices=(2, 4)), 3, channels=16, **options)


def randomised(name: str) -> Segmenter:
    segmenter = build(name).eval()
    randomise_batch_norm(segmenter, 0, [random_images(4, 64, seed=0)])
    segmenter.double()
    return segmenter


def test_the_pyramid_is_the_features_and_their_means_over_grids() -> None:
    torch.manual_seed(0)
    pyramid = PyramidPooling(8, (1, 2)).double().eval()
    randomise_batch_norm(pyramid, 0)
    x = torch.randn(2, 8, 6, 8, dtype=torch.float64)
    out = run(pyramid, [x])
    assert out.shape == (2, pyramid.out_channels, 6, 8)
    assert torch.equal(out[:, :8], x)

    whole, quarters = (grid[1:] for grid in pyramid.grids)
    mean = run(whole, [x.mean((2, 3), keepdim=True)])
    assert relative_error(out[:, 8:12], mean.expand(-1, -1, 6, 8)) < 1e-12
    cells = x.unflatten(3, (2, 4)).unflatten(2, (2, 3)).mean((3, 5))
    corners = run(quarters, [cells])
    assert relative_error(out[:, 12:, ::5, ::7], corners) < 1e-12


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("with_images", [False, True])
def test_fusing_takes_all_batch_norms_and_changes_nothing(name: str, with_images: bool) -> None:
    segmenter = randomised(name)
    images = random_images(2, 56, seed=1).double()
    expected = run(segmenter, [images])
    assert expected.shape == (2, 3, 56, 56)
    fused = reparam.fuse(segmenter, images) if with_images else reparam.fuse(segmenter)
    assert type(fused) is Segmenter
    assert relative_error(run(fused, [images]), expected) < FLOAT64_BOUND
    counts = count_operators(fused, [images])
    assert (counts.batch_norms, counts.additions) == (0, 0)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())


def test_the_fused_segmenter_takes_pictures_of_every_size() -> None:
    segmenter = randomised("plain")
    fused = reparam.fuse(segmenter)
    for height, width in ((48, 48), (65, 97)):
        images = torch.randn(2, 3, height, width, dtype=torch.float64)
        assert relative_error(run(fused, [images]), run(segmenter, [images])) < FLOAT64_BOUND


@pytest.mark.parametrize("name", CONFIGS)
def test_training_lets_the_loss_fall(name: str) -> None:
    segmenter = build(name).train()
    images = random_images(4, 48, seed=1)
    smooth = F.avg_pool2d(images.mean(1), 5, stride=1, padding=2)
    labels = torch.bucketize(smooth, torch.tensor([-0.3, 0.3]))  # dark, middling and bright places
    optimizer = torch.optim.SGD(segmenter.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(25):
        loss = F.cross_entropy(segmenter(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    segmenter.eval().double()
    expected = run(segmenter, [images.double()])
    fused = reparam.fuse(segmenter)
    assert relative_error(run(fused, [images.double()]), expected) < FLOAT64_BOUND


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 0}, "`num_classes` must be a positive integer, got 0"),
        ({"channels": -1}, "`channels` must be a positive integer, got -1"),
        ({"grids": (1, 0)}, "`grids` must be a positive integer, got 0"),
        ({"grids": ()}, "`grids` has 0 sizes: give at least one"),
        ({"grids": (1,) * 33}, "no more than the 32 channels"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    backbone = RepVGGFeatures(CONFIGS["plain"])
    with pytest.raises(reparam.ReparamError, match=message):
        Segmenter(backbone, **{"num_classes": 3, **options})
