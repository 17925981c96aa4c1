"""The block and the network: what they compute, what their checkpoints look like, how they fuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import reparam
from repvgg import RepVGG, RepVGGBlock, RepVGGConfig, SqueezeExcitation
from tests.support.counting import count_operators
from tests.support.errors import FLOAT64_BOUND, float64_inputs, float64_twin, relative_error, run
from tests.support.images import random_images
from tests.support.randomise import randomise_batch_norm

SMALL: dict[str, Any] = {"blocks": (1, 2, 3, 1), "channels": (8, 16, 16, 32, 64)}
CONFIGS = {
    "plain": RepVGGConfig(**SMALL),
    "strides": RepVGGConfig(**SMALL, strides=(1, 2, 1, 2, 1)),
    "groups": RepVGGConfig(**SMALL, groups=4),
    "squeeze": RepVGGConfig((1, 2, 1, 1), (16, 16, 32, 32, 64), squeeze_excitation=True),
}


def build(config: RepVGGConfig, seed: int = 0) -> RepVGG:
    torch.manual_seed(seed)
    model = RepVGG(config, num_classes=7).eval()
    randomise_batch_norm(model, seed, [random_images(4, 32, seed)])
    return model


def norm(module: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """Batch norm by its definition."""
    assert module.running_mean is not None
    assert module.running_var is not None
    per_channel = (module.running_mean, module.running_var + module.eps, module.weight, module.bias)
    mean, variance, weight, bias = (values[:, None, None] for values in per_channel)
    return (x - mean) / variance.sqrt() * weight + bias


def block_of(**arguments: Any) -> RepVGGBlock:
    torch.manual_seed(1)
    block = RepVGGBlock(32, 32, **arguments).double().eval()
    randomise_batch_norm(block, 1)
    return block


@torch.no_grad()
def branches(block: RepVGGBlock, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
    state = block.state_dict()
    dense, one = block.rbr_dense[1], block.rbr_1x1[1]
    assert isinstance(dense, nn.BatchNorm2d)
    assert isinstance(one, nn.BatchNorm2d)
    total = norm(
        dense, F.conv2d(x, state["rbr_dense.conv.weight"], None, stride, 1, groups=groups)
    ) + norm(one, F.conv2d(x, state["rbr_1x1.conv.weight"], None, stride, groups=groups))
    return total if block.rbr_identity is None else total + norm(block.rbr_identity, x)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_block_is_the_sum_of_its_branches(stride: int, groups: int) -> None:
    block = block_of(stride=stride, groups=groups)
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    expected = branches(block, x, stride, groups).relu()
    assert relative_error(run(block, [x]), expected) < 1e-14


def test_squeeze_and_excitation_stands_before_the_relu() -> None:
    block = block_of(squeeze_excitation=True)
    x = torch.randn(2, 32, 9, 8, dtype=torch.float64)
    total = branches(block, x)
    state = block.state_dict()
    means = total.mean((2, 3), keepdim=True)
    hidden = F.conv2d(means, state["se.down.weight"], state["se.down.bias"]).relu()
    assert hidden.shape == (2, 2, 1, 1)  # 32 channels, reduced 16 times
    factors = F.conv2d(hidden, state["se.up.weight"], state["se.up.bias"]).sigmoid()
    assert relative_error(run(block, [x]), (total * factors).relu()) < 1e-14


@pytest.mark.parametrize(
    ("in_channels", "out_channels", "stride", "expected"),
    [(8, 8, 1, True), (8, 8, 2, False), (8, 16, 1, False)],
)
def test_only_a_block_that_keeps_the_shape_has_the_identity(
    in_channels: int, out_channels: int, stride: int, expected: bool
) -> None:
    block = RepVGGBlock(in_channels, out_channels, stride=stride)
    assert (block.rbr_identity is not None) is expected


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


def test_every_second_block_is_grouped_counted_over_the_whole_network() -> None:
    config = RepVGGConfig((4, 6, 16, 1), (64, 64, 64, 64, 64), groups=4)
    with torch.device("meta"):
        model = RepVGG(config)
    blocks = [module for module in model.modules() if isinstance(module, RepVGGBlock)]
    assert len(blocks) == 28
    grouped = {
        layer
        for layer, block in enumerate(blocks)
        if [m.groups for m in block.modules() if isinstance(m, nn.Conv2d)] == [4, 4]
    }
    assert grouped == set(range(2, 27, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"blocks": (1, 1, 1)}, r"`blocks` needs 4 numbers, got \(1, 1, 1\)"),
        ({"channels": (8, 8, 8, 8)}, "`channels` needs 5 numbers"),
        ({"strides": (2, 2)}, "`strides` needs 5 numbers"),
        ({"blocks": (1, 0, 1, 1)}, "`blocks` must be a positive integer, got 0"),
        ({"channels": (8, 8, 8, 8, 8.0)}, r"`channels` must be a positive integer, got 8\.0"),
        ({"groups": 0}, "`groups` must be a positive integer, got 0"),
        ({"groups": 3}, "8 channels cannot be split into 3 groups"),
        ({"squeeze_excitation": True}, "a stage of 8 has too few"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(reparam.ReparamError, match=message):
        RepVGGConfig(**{**SMALL, **changes})


@pytest.mark.parametrize("name", ["num_classes", "in_chans"])
@pytest.mark.parametrize("value", [0, -1, 2.0, "3", None, True])
def test_a_wrong_number_is_refused(name: str, value: object) -> None:
    with pytest.raises(reparam.ReparamError, match=f"`{name}` must be a positive integer"):
        RepVGG(CONFIGS["plain"], **{name: value})  # type: ignore[arg-type]


def test_classes_and_channels_are_the_users() -> None:
    model = RepVGG(CONFIGS["plain"], num_classes=5, in_chans=4).eval()
    assert run(model, [torch.randn(3, 4, 33, 47)]).shape == (3, 5)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_network_can_be_traced(name: str) -> None:
    model = build(CONFIGS[name])
    traced = fx.symbolic_trace(model)
    x = random_images(2, 32, seed=2)
    assert torch.equal(run(traced, [x]), run(model, [x]))


@pytest.mark.parametrize("name", CONFIGS)
def test_each_block_fuses_into_one_convolution(name: str) -> None:
    config = CONFIGS[name]
    model = build(config)
    fused = reparam.fuse(model)
    assert type(fused) is RepVGG

    squeezes = sum(isinstance(module, SqueezeExcitation) for module in model.modules())
    counts = count_operators(fused, [random_images(2, 32, seed=2)])
    assert counts.convolutions == 1 + sum(config.blocks) + 2 * squeezes
    assert (counts.batch_norms, counts.additions) == (0, 0)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("seed", [0, 1])
def test_fusing_does_not_change_the_output(name: str, seed: int) -> None:
    model = float64_twin(build(CONFIGS[name], seed))
    inputs = float64_inputs([random_images(2, 32, seed)])
    expected = run(model, inputs)
    assert relative_error(run(reparam.fuse(model), inputs), expected) < FLOAT64_BOUND
