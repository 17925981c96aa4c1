"""The decay of equivalent kernels is that of the authors' formula, and reaches the branches."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import reparam
from reparam import ReparamError
from repvgg.models import RepVGG, RepVGGBlock, RepVGGConfig
from repvgg.training.kernel_decay import KernelDecay
from repvgg.training.optimization import make_optimizer
from repvgg.training.recipes import Recipe

SHAPE = RepVGGConfig(blocks=(2, 1, 2, 1), channels=(8, 8, 8, 16, 16), groups=2)
PLUS = replace(SHAPE, groups=1, plus=True)


def network(config: RepVGGConfig = SHAPE) -> RepVGG:
    """A network whose norms do something, and whose identities would be noticed."""
    torch.manual_seed(0)
    model = RepVGG(config, num_classes=3).double()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 2)
    return model


def written_out(model: RepVGG) -> Tensor:
    """The formula, summed over all blocks."""
    total = torch.zeros((), dtype=torch.float64)
    for block in model.modules():
        if isinstance(block, RepVGGBlock):
            dense, point = block.rbr_dense.conv.weight, block.rbr_1x1.conv.weight
            t3, t1 = (
                (branch.bn.weight / (branch.bn.running_var + branch.bn.eps).sqrt()).detach()
                for branch in (block.rbr_dense, block.rbr_1x1)
            )
            around = torch.ones(3, 3, dtype=torch.float64)
            around[1, 1] = 0
            total = total + (dense * around).square().sum()
            for out, (factor3, factor1) in enumerate(zip(t3, t1, strict=True)):
                centre = factor3 * dense[out, :, 1, 1] + factor1 * point[out, :, 0, 0]
                total = total + centre.square().sum() / (factor3**2 + factor1**2)
    return total


def gradients(loss: Tensor, model: nn.Module) -> dict[str, Tensor]:
    """The gradients by the names of the parameters that have one."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


@pytest.mark.parametrize("config", [SHAPE, PLUS], ids=["grouped", "plus"])
def test_it_is_the_formula_of_the_authors_and_so_are_its_gradients(config: RepVGGConfig) -> None:
    model = network(config)
    decay = KernelDecay(model, weight_decay=0.5)
    expected = 0.25 * written_out(model)
    torch.testing.assert_close(decay(), expected, rtol=1e-12, atol=0)
    actual, wanted = gradients(decay(), model), gradients(expected, model)
    assert actual.keys() == wanted.keys()
    for name, gradient in actual.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-12, atol=1e-12)


def test_it_follows_training() -> None:
    model = network()
    decay = KernelDecay(model, weight_decay=1.0)
    optimizer = make_optimizer(model, Recipe(), decayed_elsewhere=decay.covered)
    before = decay().detach()
    for _ in range(2):
        model.train()
        (model(torch.randn(4, 3, 32, 32, dtype=torch.float64)).square().mean() + decay()).backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.testing.assert_close(decay(), 0.5 * written_out(model), rtol=1e-12, atol=0)
    assert decay().detach() != before


def test_a_branch_that_counts_nothing_is_no_division_by_nothing() -> None:
    model = network()
    block = model.stage0
    for branch in (block.rbr_dense, block.rbr_1x1):
        nn.init.zeros_(branch.bn.weight)
    assert KernelDecay(model, weight_decay=1.0)().isfinite()


def test_what_is_covered_decays_in_no_other_way() -> None:
    model = network(PLUS)
    decay = KernelDecay(model, weight_decay=1e-4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    covered = {names[id(parameter)] for parameter in decay.covered}
    kernels = {name for name in names.values() if ".rbr_" in name and ".conv." in name}
    assert covered == kernels
    decayed, _ = make_optimizer(model, Recipe(), decayed_elsewhere=decay.covered).param_groups
    others = {names[id(parameter)] for parameter in decayed["params"]}
    assert not others & kernels
    assert {"linear.weight", "stage1_aux.0.conv.weight"} <= others


@pytest.mark.parametrize("block", [reparam.blocks.rep_vgg(), reparam.blocks.mobile_one(2)])
def test_of_expanded_layers_it_is_the_decay_of_what_is_deployed(block: object) -> None:
    fused = reparam.fuse(network().eval())
    model = reparam.expand(fused, block, where="*fused_conv")
    decay = KernelDecay(model, weight_decay=1.0)
    deployed = sum(
        weight.square().sum()
        for name, weight in fused.named_parameters()
        if name.endswith("fused_conv.weight")
    )
    torch.testing.assert_close(decay(), 0.5 * deployed, rtol=1e-12, atol=0)
    reached = gradients(decay(), model)
    assert all("fused_conv" in name for name in reached)
    assert {id(model.get_parameter(name)) for name in reached} == {id(p) for p in decay.covered}


def test_norms_in_expanded_layers_are_refused() -> None:
    fused = reparam.fuse(network().eval())
    images = [torch.randn(4, 3, 32, 32, dtype=torch.float64)]
    model = reparam.expand(
        fused, reparam.blocks.rep_vgg(), where="*fused_conv", norm="each", calibrate=images
    )
    with pytest.raises(ReparamError, match="`custom_l2` has no formula for stage0"):
        KernelDecay(model, weight_decay=1.0)
