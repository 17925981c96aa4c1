"""Weights change their layout, and stay the weights of the same network."""

from __future__ import annotations

from itertools import pairwise

import pytest
import timm
import torch
from timm.models.byobnet import ByoBlockCfg
from torch import Tensor

import reparam
import repvgg
from repvgg.weights.layouts import find_layout
from tests.support.official import OFFICIAL, fuse_by_hand
from tests.support.small_repvgg import CONFIGS, build, build_official

TIMM = ["repvgg_a0", "repvgg_b1g4", "repvgg_d2se"]


def shapes(state: dict[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in actual.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", OFFICIAL)
def test_a_variant_has_the_names_and_shapes_of_the_official_files(name: str) -> None:
    with torch.device("meta"):
        model = repvgg.create_model(name)
        trained, deployed = OFFICIAL[name].build(deploy=False), OFFICIAL[name].build(deploy=True)
    assert shapes(model.state_dict()) == shapes(trained.state_dict())
    model.remove_auxiliary_heads()
    fused = reparam.fuse(model.eval()).state_dict()
    converted = repvgg.convert_state_dict(fused, to="official_fused")
    assert shapes(converted) == shapes(deployed.state_dict())


@pytest.mark.parametrize("name", TIMM)
def test_a_variant_has_the_names_and_shapes_of_timms_files(name: str) -> None:
    with torch.device("meta"):
        state = repvgg.create_model(name).state_dict()
        trained = timm.create_model(name).state_dict()
    assert shapes(repvgg.convert_state_dict(state, to="timm")) == shapes(trained)
    assert shapes(repvgg.convert_state_dict(trained, to="official")) == shapes(state)


def test_the_names_of_timms_feature_extractors_are_known() -> None:
    with torch.device("meta"):
        trained = timm.create_model("repvgg_a0", features_only=True).state_dict()
        expected = repvgg.create_model("repvgg_a0", features_only=True).state_dict()
    assert shapes(repvgg.convert_state_dict(trained, to="official")) == shapes(expected)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_fused_weights_are_those_that_the_formulas_give(name: str, dtype: torch.dtype) -> None:
    trained = build_official(name).to(dtype).state_dict()
    by_hand = fuse_by_hand(trained)
    fused = repvgg.convert_state_dict(trained, to="official_fused")
    assert fused.keys() == by_hand.keys()
    for key, tensor in fused.items():
        bound = 2 * torch.finfo(dtype).eps * by_hand[key].abs().max()
        assert tensor.dtype == dtype
        assert (tensor - by_hand[key]).abs().max() <= bound, key


@pytest.mark.parametrize("name", CONFIGS)
def test_fused_weights_are_exactly_those_of_the_fused_model(name: str) -> None:
    model = build(name)
    converted = repvgg.convert_state_dict(model.state_dict(), to="reparam_fused")
    model.remove_auxiliary_heads()
    assert_equal(converted, reparam.fuse(model).state_dict())


@pytest.mark.parametrize("name", ["plain", "groups", "squeeze"])
@pytest.mark.parametrize(
    "layouts", [("official", "timm"), ("official_fused", "timm_fused", "reparam_fused")]
)
def test_names_change_both_ways(name: str, layouts: tuple[repvgg.Layout, ...]) -> None:
    state = build(name).state_dict()
    for first, second in pairwise([*layouts, layouts[0]]):
        there = repvgg.convert_state_dict(state, to=first)
        assert find_layout(there) == first
        other = repvgg.convert_state_dict(there, to=second)
        assert_equal(repvgg.convert_state_dict(other, to=first), there)


def test_the_names_of_timms_fused_form_are_known() -> None:
    torch.manual_seed(0)
    blocks = [ByoBlockCfg("rep", 2, 16)] * 4
    model = timm.create_model("repvgg_d2se", stem_chs=16, blocks=blocks).eval()
    expected = timm.utils.reparameterize_model(model).state_dict()
    fused = repvgg.convert_state_dict(model.state_dict(), to="timm_fused")
    assert shapes(fused) == shapes(expected)


def test_tensors_that_only_change_their_name_are_not_copied() -> None:
    state = build("plain").state_dict()
    converted = repvgg.convert_state_dict(state, to="timm")
    name, new = "stage2.1.rbr_1x1.conv.weight", "stages.1.1.conv_1x1.conv.weight"
    assert converted[new].data_ptr() == state[name].data_ptr()


@pytest.mark.parametrize("to", ["official", "timm"])
@pytest.mark.parametrize("layout", ["official_fused", "timm_fused", "reparam_fused"])
def test_fused_weights_cannot_go_back(layout: repvgg.Layout, to: repvgg.Layout) -> None:
    fused = repvgg.convert_state_dict(build("plain").state_dict(), to=layout)
    with pytest.raises(reparam.ReparamError, match=f"fused .{layout}.*cannot become {to}"):
        repvgg.convert_state_dict(fused, to=to)


def test_timm_has_no_repvggplus() -> None:
    with pytest.raises(reparam.ReparamError, match="timm has no RepVGGplus"):
        repvgg.convert_state_dict(build("plus").state_dict(), to="timm")


def test_an_unknown_layout_is_refused() -> None:
    with pytest.raises(reparam.ReparamError, match="unknown layout 'deploy'; known: official, "):
        repvgg.convert_state_dict(build("plain").state_dict(), to="deploy")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({}, "of the 0 names"),
        ({"fc.weight": torch.zeros(1)}, r"\(fc.weight\) the layout cannot be told: none that"),
        (
            {f"stage0.{x}.weight": torch.zeros(1) for x in ("rbr_reparam", "conv_kxk")},
            "names of official_fused and timm",
        ),
    ],
)
def test_names_of_something_else_are_refused(state: dict[str, Tensor], message: str) -> None:
    with pytest.raises(reparam.ReparamError, match=message):
        repvgg.convert_state_dict(state, to="official")


@pytest.mark.parametrize("part", ["rbr_dense.conv.weight", "rbr_1x1.bn.running_var"])
def test_a_block_with_a_part_missing_is_not_fused(part: str) -> None:
    state = build("plain").state_dict()
    del state[f"stage2.1.{part}"]
    with pytest.raises(reparam.ReparamError, match=r"^stage2\.1 "):
        repvgg.convert_state_dict(state, to="official_fused")
