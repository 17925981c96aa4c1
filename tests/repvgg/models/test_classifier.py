"""The classifier: its names, its parts as other libraries call them, and how it fuses."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, fx, nn

import reparam
from repvgg import RepVGG, RepVGGConfig, SqueezeExcitation
from tests.support.counting import count_operators
from tests.support.errors import FLOAT64_BOUND, float64_inputs, float64_twin, relative_error, run
from tests.support.images import random_images
from tests.support.small_repvgg import CLASSES, CONFIGS, randomise

MORE = {
    **CONFIGS,
    "strides": RepVGGConfig((1, 2, 3, 1), (8, 16, 16, 32, 64), strides=(1, 2, 1, 2, 1)),
}


def build(name: str, seed: int = 0) -> RepVGG:
    torch.manual_seed(seed)
    model = RepVGG(MORE[name], num_classes=CLASSES).eval()
    randomise(model, seed)
    return model


def names_of_norm(prefix: str) -> set[str]:
    values = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{prefix}.{value}" for value in values}


def names_of_block(prefix: str, *, identity: bool, squeeze: bool) -> set[str]:
    names = {f"{prefix}.rbr_dense.conv.weight", f"{prefix}.rbr_1x1.conv.weight"}
    names |= names_of_norm(f"{prefix}.rbr_dense.bn") | names_of_norm(f"{prefix}.rbr_1x1.bn")
    if identity:
        names |= names_of_norm(f"{prefix}.rbr_identity")
    if squeeze:
        names |= {f"{prefix}.se.{c}.{p}" for c in ("down", "up") for p in ("weight", "bias")}
    return names


@pytest.mark.parametrize("squeeze", [False, True])
def test_the_parameters_have_the_names_of_the_official_checkpoints(squeeze: bool) -> None:
    config = RepVGGConfig((1, 2, 1, 1), (16, 16, 16, 16, 16), squeeze_excitation=squeeze)
    expected = {"linear.weight", "linear.bias"}
    for prefix in ("stage0", "stage1.0", "stage2.0", "stage3.0", "stage4.0"):
        expected |= names_of_block(prefix, identity=False, squeeze=squeeze)
    expected |= names_of_block("stage2.1", identity=True, squeeze=squeeze)
    assert set(RepVGG(config).state_dict()) == expected


@pytest.mark.parametrize("name", ["num_classes", "in_chans"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
def test_a_wrong_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(reparam.ReparamError, match=f"`{name}` must be a positive integer"):
        RepVGG(CONFIGS["plain"], **{name: value})  # type: ignore[arg-type]


def test_classes_and_channels_are_the_users() -> None:
    model = RepVGG(CONFIGS["plain"], num_classes=5, in_chans=4).eval()
    assert run(model, [torch.randn(3, 4, 33, 47)]).shape == (3, 5)


@pytest.mark.parametrize("name", MORE)
def test_the_network_can_be_traced(name: str) -> None:
    model = build(name)
    traced = fx.symbolic_trace(model)
    x = random_images(2, 32, seed=2)
    assert torch.equal(run(traced, [x]), run(model, [x]))


@pytest.mark.parametrize("name", MORE)
def test_each_block_fuses_into_one_convolution(name: str) -> None:
    model = build(name)
    fused = reparam.fuse(model)
    assert type(fused) is RepVGG

    squeezes = sum(isinstance(module, SqueezeExcitation) for module in model.modules())
    counts = count_operators(fused, [random_images(2, 32, seed=2)])
    assert counts.convolutions == 1 + sum(model.config.blocks) + 2 * squeezes
    assert (counts.batch_norms, counts.additions) == (0, 0)


@pytest.mark.parametrize("name", MORE)
@pytest.mark.parametrize("seed", [0, 1])
def test_fusing_does_not_change_the_output(name: str, seed: int) -> None:
    model = float64_twin(build(name, seed))
    inputs = float64_inputs([random_images(2, 32, seed)])
    expected = run(model, inputs)
    assert relative_error(run(reparam.fuse(model), inputs), expected) < FLOAT64_BOUND


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("fused", [False, True])
def test_features_and_head_together_are_the_forward(name: str, fused: bool) -> None:
    model = build(name)
    if fused:
        model = reparam.fuse(model)
    x = random_images(2, 64, seed=2)
    with torch.no_grad():
        features = model.forward_features(x)
        pooled = model.forward_head(features, pre_logits=True)
        assert features.shape == (2, model.num_features, 2, 2)
        assert relative_error(pooled, features.double().mean((2, 3))) < 1e-6
        assert torch.equal(model.get_classifier()(pooled), model(x))
        assert torch.equal(model.forward_head(features), model(x))


AUXILIARY = ["stage1_aux", "stage2_aux", "stage3_first_aux"]


@pytest.mark.parametrize("fused", [False, True])
def test_a_repvggplus_has_auxiliary_logits_while_it_trains(fused: bool) -> None:
    model = build("plus").double()
    if fused:
        model = reparam.fuse(model)
    images = random_images(4, 64, seed=2).double()
    assert run(model, [images]).shape == (4, CLASSES)

    taps: dict[str, Tensor] = {}
    for name in AUXILIARY:
        hook = lambda module, args, out, name=name: taps.__setitem__(name, out)  # noqa: E731
        model.get_submodule(name.removesuffix("_aux")).register_forward_hook(hook)
    outputs = run(model.train(), [images])
    assert list(outputs) == ["main", *AUXILIARY]
    assert all(logits.shape == (4, CLASSES) for logits in outputs.values())
    for name in AUXILIARY:
        head = model.get_submodule(name)
        assert relative_error(outputs[name], run(head, [taps[name]])) < 1e-12


def test_the_auxiliary_heads_take_part_in_training() -> None:
    model = build("plus").train()
    outputs = model(random_images(4, 64, seed=2))
    sum(logits.square().mean() for logits in outputs.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_removing_the_auxiliary_heads_leaves_logits_and_nothing_of_them() -> None:
    model = build("plus")
    images = [random_images(4, 64, seed=2)]
    expected = run(model, images)
    model.remove_auxiliary_heads()
    model.remove_auxiliary_heads()  # now there are none
    assert torch.equal(run(model, images), expected)
    assert not any("_aux" in name for name in model.state_dict())
    assert run(model.train(), images).shape == (4, CLASSES)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_classifier_has_other_classes_and_the_models_type(name: str) -> None:
    model = build(name).double()
    before = deepcopy(model.stage1.state_dict())
    model.reset_classifier(3)
    assert model.num_classes == 3
    outputs = run(model.train(), [random_images(4, 64, seed=2).double()])
    for logits in outputs.values() if isinstance(outputs, dict) else [outputs]:
        assert (logits.shape, logits.dtype) == ((4, 3), torch.float64)
    weights = model.stage1.state_dict()
    assert all(torch.equal(weights[name], before[name]) for name in before if "weight" in name)


def test_without_a_classifier_the_pooled_features_are_returned() -> None:
    model = build("plain")
    images = random_images(2, 64, seed=2)
    model.reset_classifier(0)
    with torch.no_grad():
        pooled = model.forward_head(model.forward_features(images), pre_logits=True)
    assert torch.equal(run(model, [images]), pooled)
    assert isinstance(model.get_classifier(), nn.Identity)


@pytest.mark.parametrize("classes", [-1, 2.0, None, False])
def test_a_wrong_number_of_new_classes_is_refused(classes: object) -> None:
    model = build("plain")
    with pytest.raises(reparam.ReparamError, match="`num_classes` must be a positive integer"):
        model.reset_classifier(classes)  # type: ignore[arg-type]
    assert model.num_classes == CLASSES


def test_another_pooling_is_refused() -> None:
    model = build("plain")
    with pytest.raises(reparam.ReparamError, match="pools by the average, not by 'max'"):
        model.reset_classifier(3, "max")
    assert model.linear.weight.shape == (CLASSES, 64)
