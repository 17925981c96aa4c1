"""Hooks, feature extraction and the other ways to look inside a fused model."""

from typing import Any

import pytest
import timm
import torch
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm
from tests.uses.networks import SMALL, fused_network, same


@pytest.mark.parametrize("name", SMALL)
def test_every_module_that_runs_calls_its_hooks(name: str) -> None:
    case = fused_network(name)
    seen: list[str] = []

    def note(path: str) -> Any:
        return lambda module, args, output: seen.append(path)

    for path, module in case.fused.named_modules():
        module.register_forward_hook(note(path))
    expected = run(fused_network(name).fused, (case.x,))
    assert torch.equal(run(case.fused, (case.x,)), expected)
    with_weights = {path.rpartition(".")[0] for path, _ in case.fused.named_parameters()}
    assert with_weights <= set(seen)
    assert "" in seen


@pytest.mark.parametrize("name", SMALL)
def test_a_hook_changes_what_a_fused_module_returns(name: str) -> None:
    case = fused_network(name)
    expected = run(case.fused, (case.x,))
    hook = case.fused.register_forward_hook(lambda module, args, output: output + 1)
    assert torch.equal(run(case.fused, (case.x,)), expected + 1)
    hook.remove()
    assert torch.equal(run(case.fused, (case.x,)), expected)


@pytest.mark.parametrize("name", ["test_byobnet", "test_efficientnet", "test_resnet"])
def test_features_only(name: str) -> None:
    model = timm.create_model(name, features_only=True).eval().double()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    randomise_batch_norm(model, 0, (x,))
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    assert count_operators(fused, (x,)).batch_norms == 0
    assert fused.feature_info.channels() == model.feature_info.channels()
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-9


@pytest.mark.parametrize("name", ["test_byobnet", "test_efficientnet", "test_vit"])
def test_the_methods_of_a_timm_network(name: str) -> None:
    model = timm.create_model(name).eval().double()
    size = model.default_cfg["input_size"][1]
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    randomise_batch_norm(model, 0, (x,))
    fused = reparam.fuse(model)
    with torch.no_grad():
        features, expected = fused.forward_features(x), model.forward_features(x)
        assert relative_error(features, expected) <= 1e-9
        assert relative_error(fused.forward_head(features), model.forward_head(expected)) <= 1e-9
        inner, outer = fused.forward_intermediates(x)[1], model.forward_intermediates(x)[1]
        assert relative_error(inner, outer) <= 1e-9
    assert type(fused) is type(model)
    assert fused.pretrained_cfg == model.pretrained_cfg
    assert type(fused.get_classifier()) is type(model.get_classifier())


def test_create_feature_extractor() -> None:
    case = fused_network("resnet")
    nodes = ["layer1", "layer3", "fc"]
    fused, model = (create_feature_extractor(m, nodes) for m in (case.fused, case.model))
    one, two = run(fused, (case.x,)), run(model, (case.x,))
    assert list(one) == nodes
    assert all(same(one[node], two[node]) for node in nodes)


def test_a_feature_extractor_is_fused() -> None:
    case = fused_network("resnet")
    extractor: nn.Module = create_feature_extractor(case.model.double(), ["layer1", "layer2"])
    fused = reparam.fuse(extractor)
    x = case.x.double()
    assert isinstance(fused, torch.fx.GraphModule)
    assert count_operators(fused, (x,)).batch_norms == 0
    one, two = run(fused, (x,)), run(extractor, (x,))
    assert list(one) == ["layer1", "layer2"]
    assert relative_error(one, two) <= 1e-9
