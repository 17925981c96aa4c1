"""The backbone: which features it returns, that it builds no more, and that it fuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import reparam
import repvgg
from repvgg import RepVGGConfig, RepVGGFeatures
from tests.support.counting import count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error, run
from tests.support.images import random_images
from tests.support.small_repvgg import CONFIGS, build, randomise

INDICES = [(0, 1, 2, 3, 4), (1, 3), (2,), (-1,), (0, -2)]


def build_features(name: str, out_indices: tuple[int, ...]) -> RepVGGFeatures:
    torch.manual_seed(0)
    model = RepVGGFeatures(CONFIGS[name], out_indices=out_indices).eval()
    randomise(model, 0)
    model.double()
    return model


@pytest.mark.parametrize("out_indices", INDICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_features_are_what_the_classifiers_stages_return(
    name: str, out_indices: tuple[int, ...]
) -> None:
    classifier = build(name).double()
    model = build_features(name, out_indices)
    model.load_state_dict({n: classifier.state_dict()[n] for n in model.state_dict()})
    taps: dict[str, Tensor] = {}
    for stage in CONFIGS[name].level_ends:
        hook = lambda module, args, out, stage=stage: taps.__setitem__(stage, out)  # noqa: E731
        classifier.get_submodule(stage).register_forward_hook(hook)
    images = random_images(2, 64, seed=1).double()
    run(classifier, [images])
    features = run(model, [images])
    expected = [taps[CONFIGS[name].level_ends[index]] for index in out_indices]
    assert len(features) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(features, expected, strict=True))


@pytest.mark.parametrize("out_indices", INDICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_the_shapes_are_as_described(name: str, out_indices: tuple[int, ...]) -> None:
    model = build_features(name, out_indices)
    features = run(model, [random_images(2, 64, seed=1).double()])
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [64 // f.shape[2] for f in features] == model.feature_info.reduction()


def test_strides_of_ones_own_are_described() -> None:
    config = RepVGGConfig((1, 1, 1, 1), (8, 8, 8, 8, 8), strides=(1, 2, 2, 1, 1))
    model = RepVGGFeatures(config)
    assert model.feature_info.reduction() == [1, 2, 4, 4, 4]


def test_later_stages_and_the_head_are_not_built() -> None:
    backbone = repvgg.create_model("repvgg_a0", features_only=True, out_indices=(0, 2))
    assert [name for name, _ in backbone.named_children()] == ["stage0", "stage1", "stage2"]
    assert backbone.feature_info.module_name() == ["stage0", "stage2"]


@pytest.mark.parametrize("with_images", [False, True])
@pytest.mark.parametrize("out_indices", INDICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_fusing_changes_no_feature(
    name: str, out_indices: tuple[int, ...], with_images: bool
) -> None:
    model = build_features(name, out_indices)
    images = random_images(2, 64, seed=1).double()
    fused = reparam.fuse(model, images) if with_images else reparam.fuse(model)
    assert type(fused) is RepVGGFeatures
    assert fused.feature_info == model.feature_info
    expected = run(model, [images])
    assert relative_error(run(fused, [images]), expected) < FLOAT64_BOUND
    counts = count_operators(fused, [images])
    assert (counts.batch_norms, counts.additions) == (0, 0)


@pytest.mark.parametrize(
    ("out_indices", "message"),
    [
        ((), r"`out_indices` is \(\); give indices from 0 to 4 in rising order"),
        ((5,), r"`out_indices` is \(5,\), and there are 5 levels; give"),
        ((-6,), "there are 5 levels"),
        ((1, 1), "in rising order"),
        ((3, 1), "in rising order"),
        ((3, -1, -2), "in rising order"),
        (("stage1",), "there are 5 levels"),
        (3, "`out_indices` is 3, and there are 5 levels"),
    ],
)
def test_levels_that_there_are_not_are_refused(out_indices: Any, message: str) -> None:
    with pytest.raises(reparam.ReparamError, match=message):
        RepVGGFeatures(CONFIGS["plain"], out_indices=out_indices)


def test_levels_are_for_features_only() -> None:
    with pytest.raises(reparam.ReparamError, match="give `features_only=True` as well"):
        repvgg.create_model("repvgg_a0", out_indices=(1, 2))  # type: ignore[call-overload]
