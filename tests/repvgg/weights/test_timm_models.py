"""The models are timm's, too: created, described, trained and fused like its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import timm.data
import timm.optim
import torch
from torch import nn

import reparam
import repvgg
from tests.support.errors import FLOAT64_BOUND, relative_error, run
from tests.support.images import random_images
from tests.support.randomise import randomise_batch_norm

NAME = "reparam_repvgg_a0"


def create(name: str = NAME, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, **options)


@pytest.mark.parametrize("first", ["timm", "repvgg"])
def test_the_models_are_registered_in_whatever_order_of_imports(first: str) -> None:
    second = "repvgg" if first == "timm" else "timm"
    program = f"""
import tests.conftest
import sys
import {first}
print("timm" in sys.modules)
import {second}
print(len(timm.list_models("reparam_*")))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert result.stdout.split() == [str(first == "timm"), str(len(repvgg.list_models()))]


def test_all_variants_are_listed_under_a_name_of_their_own() -> None:
    names = {f"reparam_{name}" for name in repvgg.list_models()}
    assert set(timm.list_models("reparam_*")) == names


def test_a_model_is_the_packages() -> None:
    model = create(num_classes=5, in_chans=1)
    assert type(model) is repvgg.RepVGG
    assert model.num_classes == 5
    assert run(model.eval(), [random_images(2, 64, seed=0, channels=1)]).shape == (2, 5)


def test_without_classes_a_model_returns_pooled_features() -> None:
    model = create(num_classes=0).eval()
    assert run(model, [random_images(2, 64, seed=0)]).shape == (2, 1280)


@pytest.mark.parametrize("name", repvgg.list_models())
def test_the_images_that_a_model_expects_are_described(name: str) -> None:
    with torch.device("meta"):
        model = create(f"reparam_{name}", in_chans=1)
    described = timm.data.resolve_model_data_config(model)
    assert described["mean"] == timm.data.IMAGENET_DEFAULT_MEAN
    classifier = model.get_submodule(model.pretrained_cfg["classifier"])
    assert classifier is model.get_classifier()
    for conv in model.pretrained_cfg["first_conv"]:
        assert model.get_submodule(conv).in_channels == 1
    if timm.is_model(name):
        expected = timm.get_pretrained_cfg(name)
        assert model.pretrained_cfg["hf_hub_id"] == expected.hf_hub_id
        assert described["input_size"][1:] == expected.input_size[1:]


def test_a_repvggplus_trains_on_logits_alone() -> None:
    with torch.device("meta"):
        model = create("reparam_repvggplus_l2pse")
        assert model(torch.empty(2, 3, 64, 64)).shape == (2, 1000)


@pytest.mark.parametrize("source", ["timm", "official"])
def test_pretrained_weights_are_renamed_and_fit_to_the_images(tmp_path: Path, source: str) -> None:
    torch.manual_seed(1)
    network = timm.create_model("repvgg_a0").eval()
    randomise_batch_norm(network, 0, [random_images(4, 64, seed=0)])
    state = network.state_dict()
    if source == "official":
        state = repvgg.convert_state_dict(state, to="official")
    torch.save(state, tmp_path / "a.pth")

    from_file = {"pretrained_cfg_overlay": {"file": str(tmp_path / "a.pth")}}
    model = create(pretrained=True, **from_file).eval()
    images = [random_images(2, 64, seed=1)]
    assert relative_error(run(model, images), run(network, images)) < 1e-5

    other = create(pretrained=True, num_classes=5, in_chans=1, **from_file).eval()
    grey = random_images(2, 64, seed=1, channels=1)
    with torch.no_grad():
        expected = network.forward_features(grey.expand(-1, 3, -1, -1))
        assert relative_error(other.forward_features(grey), expected) < 1e-5


@pytest.mark.parametrize("name", [NAME, "reparam_repvggplus_l2pse"])
@pytest.mark.parametrize("coarse", [False, True])
def test_parameters_are_grouped_from_the_image_to_the_classifier(name: str, coarse: bool) -> None:
    with torch.device("meta"):
        model = create(name)
    groups = timm.models.group_parameters(model, model.group_matcher(coarse=coarse))
    order = [name for group in groups.values() for name in group]
    forward = [name for name, _ in model.named_parameters()]
    assert order == forward
    blocks = 1 + sum(model.config.blocks)
    assert len(groups) == (len(model.stage_names) if coarse else blocks) + 1


def test_a_step_of_training_as_timms_script_takes_it() -> None:
    model = create(num_classes=3, drop_rate=0.0)
    model.set_grad_checkpointing(enable=True)
    optimizer = timm.optim.create_optimizer_v2(
        model, opt="sgd", lr=0.01, weight_decay=1e-4, layer_decay=0.9
    )
    decayed = {
        id(parameter)
        for group in optimizer.param_groups
        if group["weight_decay"]
        for parameter in group["params"]
    }
    named = {name for name, parameter in model.named_parameters() if id(parameter) in decayed}
    kernels = {name for name, p in model.named_parameters() if p.dim() > 1}
    assert named == kernels  # neither biases nor batch norms, as in the paper
    before = model.stage1[1].rbr_1x1[0].weight.detach().clone()
    images, labels = random_images(4, 32, seed=0), torch.tensor([0, 1, 2, 1])
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
    assert not torch.equal(model.stage1[1].rbr_1x1[0].weight, before)


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (1, 3)])
def test_features_are_those_of_the_package_and_fuse(out_indices: tuple[int, ...]) -> None:
    features = create(features_only=True, out_indices=out_indices).eval()
    randomise_batch_norm(features, 0, [random_images(4, 64, seed=0)])
    features.double()
    ours = repvgg.create_model("repvgg_a0", features_only=True, out_indices=out_indices)
    ours.double().eval().load_state_dict(features.state_dict())
    assert features.feature_info.channels() == ours.feature_info.channels()
    assert features.feature_info.reduction() == ours.feature_info.reduction()
    assert features.feature_info.module_name() == ours.feature_info.module_name()
    images = [random_images(2, 64, seed=1).double()]
    expected = run(features, images)
    assert relative_error(run(ours, images), expected) == 0
    assert relative_error(run(reparam.fuse(features), images), expected) < FLOAT64_BOUND


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drop_rate": 0.1}, "has no dropout"),
        ({"drop_path_rate": 0.1}, "has no dropout"),
        ({"global_pool": "max"}, "pools by the average, not by 'max'"),
        ({"num_classes": -1}, "`num_classes` must be a positive integer"),
    ],
)
def test_what_a_repvgg_does_not_have_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(reparam.ReparamError, match=message), torch.device("meta"):
        create(**options)


def test_a_model_without_weights_says_so() -> None:
    with pytest.raises(RuntimeError, match="No pretrained weights"), torch.device("meta"):
        create("reparam_repvgg_b1g2", pretrained=True)
