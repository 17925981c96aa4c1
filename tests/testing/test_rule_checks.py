"""`rulecheck` accepts right rules, and says what is wrong with wrong ones."""

from __future__ import annotations

import copy
import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.algebra.axis_composition import Axis
from reparam.testing.rule_checks import RuleCheckError, rulecheck
from tests.support.thinning import thinned

EXACT = 1e-12


class Affine(nn.Module):
    """A scale and a shift per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))
        self.beta = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.exp()[:, None, None] + self.beta[:, None, None]


class Blur(nn.Module):
    """A depthwise kernel behind a padding of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.rand(channels, 1, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), "reflect"), self.kernel, groups=len(self.kernel))


class Variance(nn.Module):
    """Division by the root of a buffer, which must stay positive."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("variance", torch.ones(channels))
        self.register_buffer("count", torch.tensor(3))
        self.training_calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.training_calls += self.training
        return x / self.variance.sqrt()[:, None, None]


class Tokens(nn.Module):
    """A scale of the last axis."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def affine(module: Affine, x: reparam.AffineConv) -> Any:
    return x.scale(module.gamma.exp()).shift(module.beta)


def blur(mode: Any, sides: int = 1) -> Any:
    def rule(module: Blur, x: reparam.AffineConv) -> Any:
        axes = [Axis(3, before=sides, after=sides, mode=mode)] * 2
        return x.convolve(module.kernel, axes=axes, groups=len(module.kernel))

    return rule


def variance(module: Variance, x: reparam.AffineConv) -> Any:
    return x.scale(module.variance.rsqrt())


IMAGES, TOKENS = (2, 8, 6, 7), (2, 5, 8)


@pytest.mark.parametrize(
    ("module", "rule", "shape"),
    [
        (Affine(8), affine, IMAGES),
        (Affine(8), affine, (1, 8, 8, 8)),
        (Blur(8), blur("reflect"), IMAGES),
        (Variance(8), variance, IMAGES),
        (Tokens(8), lambda module, x: x.scale(module.gamma), TOKENS),
        (Tokens(8), lambda module, x: x.scale(module.gamma, axis=-1), (2, 3, 3, 8)),
    ],
)
def test_a_right_rule_passes(module: nn.Module, rule: Any, shape: tuple[int, ...]) -> None:
    result = rulecheck(module, shape, rules={type(module): rule})
    assert result.compared >= 18
    assert result.error < EXACT
    assert result.refusals == ()
    assert f"{result.compared} comparisons" in str(result)


WRONG = {
    "scale axis": (Affine(8), lambda m, x: x.scale(m.gamma.exp(), axis=-1).shift(m.beta), IMAGES),
    "scale axis, equal sizes": (
        Affine(8),
        lambda m, x: x.scale(m.gamma.exp(), axis=-1),
        (2, 8, 6, 8),
    ),
    "scale axis of tokens": (Tokens(8), lambda m, x: x.scale(m.gamma, axis=-2), (2, 8, 8)),
    "forgotten bias": (Affine(8), lambda m, x: x.scale(m.gamma.exp()), IMAGES),
    "invented bias": (Tokens(8), lambda m, x: x.scale(m.gamma).shift(m.gamma), TOKENS),
    "another bias": (Affine(8), lambda m, x: affine(m, x).shift(1.0), IMAGES),
    "padding mode": (Blur(8), blur("zeros"), IMAGES),
    "no padding": (Blur(8), blur("reflect", 0), IMAGES),
    "factor": (Affine(8), lambda m, x: x.scale(m.gamma).shift(m.beta), IMAGES),
    "order": (Affine(8), lambda m, x: x.scale(m.gamma.exp().flip(0)).shift(m.beta), IMAGES),
    "kernel": (Blur(8), lambda m, x: x.scale(2.0), IMAGES),
    "no affine operator": (nn.ReLU(), lambda m, x: x, IMAGES),
    "scale and bias": (Affine(8), lambda m, x: x, IMAGES),
}
SAID = {
    "scale axis": r"the scale axis \(the rule's form has 8 channels along axis -1, .* has 7\)",
    "scale axis, equal sizes": r"the scale axis \(forward scales along axis -3, the rule along "
    r"axis -1\)",
    "scale axis of tokens": r"the scale axis \(forward scales along axis -1, the rule along axis "
    r"-2\)",
    "forgotten bias": r"is the constant \(forward adds a bias that the rule forgets\); .*index \(",
    "invented bias": r"is the constant \(the rule adds a bias that forward does not\)",
    "another bias": r"is the constant \(the rule adds|is the constant \(forward and the rule add",
    "padding mode": r"is the border \(far from it they agree: the padding, or its mode",
    "no padding": r"is the border \(forward returns the shape \(2, 8, 6, 7\), .* \(2, 8, 4, 5\)",
    "factor": r"is the scale per channel \(channel \d of forward is 2\.718 times",
    "order": r"is the scale per channel \(channel . of forward is .* times",
    "kernel": r"is the kernel \(the weights",
    "no affine operator": r"is forward itself \(it is not affine in its input, so that .* refuse",
    "scale and bias": r"is the scale per channel .*, and the constant \(forward adds a bias",
}


@pytest.mark.parametrize("mistake", WRONG)
def test_a_wrong_rule_is_told_what_is_wrong(mistake: str) -> None:
    module, rule, shape = WRONG[mistake]
    if mistake == "scale and bias":
        with torch.no_grad():
            module.beta.fill_(1)
    with pytest.raises(RuleCheckError, match=SAID[mistake]) as caught:
        rulecheck(module, shape, rules={type(module): rule})
    assert f"of {type(module).__name__}" in str(caught.value)


def test_channels_in_another_order() -> None:
    conv = nn.Conv2d(4, 4, 3)

    def reversed_rows(module: nn.Conv2d, x: reparam.AffineConv) -> Any:
        return x.convolve(module.weight.flip(0), module.bias)

    with pytest.raises(RuleCheckError, match=r"the order of the channels .*\[3, 2, 1, 0\]"):
        rulecheck(conv, (2, 4, 6, 7), rules={nn.Conv2d: reversed_rows})


def test_the_place_and_the_weights_are_said() -> None:
    module = Affine(8)
    with pytest.raises(RuleCheckError) as caught:
        rulecheck(module, IMAGES, rules={Affine: lambda m, x: x.scale(m.gamma.exp())})
    text = str(caught.value)
    assert "found by itself, with an input of shape (2, 8, 6, 7) and random weights" in text


def test_a_rule_that_is_wrong_between_neighbours_only() -> None:
    """Its form depends on what flows in: alone it knows that there are 4 axes."""

    def rule(module: Affine, x: reparam.AffineConv) -> Any:
        return affine(module, x) if str(x.base) == "x" else x.scale(module.gamma)

    with pytest.raises(RuleCheckError, match=r"found (after|before) (Conv2d|BatchNorm2d)\("):
        rulecheck(Affine(8), IMAGES, rules={Affine: rule})


@pytest.mark.parametrize(
    ("module", "shape"),
    thinned(
        [
            (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 9)),
            (nn.Conv2d(4, 6, 3, 2, 1, bias=False), (2, 4, 6, 7)),
            (nn.Conv2d(4, 8, 3, padding=2, dilation=2, groups=4), (2, 4, 6, 7)),
            (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), (2, 4, 6, 7)),
            (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 6)),
            (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1), (2, 4, 6, 7)),
            (nn.Linear(4, 6), (3, 4)),
            (nn.Linear(4, 6), (2, 5, 4)),
            (nn.BatchNorm1d(4), (3, 4)),
            (nn.BatchNorm2d(4), (2, 4, 6, 7)),
            (nn.AvgPool2d(2), (2, 4, 6, 7)),
            (nn.AvgPool2d(3, 1, 1, count_include_pad=False), (2, 4, 6, 7)),
            (nn.ZeroPad2d((1, 2, 0, 1)), (2, 4, 6, 7)),
            (nn.ReflectionPad2d(2), (2, 4, 6, 7)),
            (nn.Flatten(2), (2, 4, 6, 7)),
            (nn.AdaptiveAvgPool2d(1), (2, 4, 6, 7)),
            (nn.Upsample(scale_factor=2), (2, 4, 6, 7)),
            (nn.Identity(), (2, 4, 6, 7)),
        ],
        4,
    ),
)
def test_the_rules_of_torchs_own_modules_pass(module: nn.Module, shape: tuple[int, ...]) -> None:
    result = rulecheck(module, shape, draws=1)
    assert result.compared
    assert result.error < EXACT


@pytest.mark.parametrize(
    ("target", "arguments"),
    [
        (torch.add, (torch.rand(4, 1, 1),)),
        (torch.Tensor.mul, (torch.rand(4, 1, 1),)),
        (torch.ops.aten.div, (torch.tensor(3.0),)),
        (F.avg_pool2d, (2,)),
        (F.conv2d, (torch.rand(6, 4, 3, 3), torch.rand(6), 1, 1)),
        (torch.ops.aten.flatten, (2,)),
    ],
)
def test_functions_are_checked_with_their_arguments(target: Any, arguments: Any) -> None:
    result = rulecheck(target, (2, 4, 6, 7), *arguments, draws=1)
    assert result.compared
    assert result.error < EXACT


def test_a_wrong_rule_of_a_function_is_found() -> None:
    def wrong(input: Any, other: Any) -> Any:
        return input.scale(other)

    with pytest.raises(RuleCheckError, match=r"wrong of add does not say"):
        rulecheck(torch.add, (2, 4, 6, 7), torch.rand(4, 1, 1), rules={torch.add: wrong})


def test_a_refusal_is_fine_and_said() -> None:
    result = rulecheck(Affine(8), IMAGES, rules={Affine: lambda m, x: reparam.Refusal("too hard")})
    assert (result.compared, result.refusals) == (0, ("too hard",))
    assert "refused: too hard" in str(result)
    result = rulecheck(Affine(8), IMAGES, rules={Affine: lambda m, x: NotImplemented})
    assert result.refusals == ("it is not about such a call",)


def test_that_nothing_could_be_compared_is_said() -> None:
    result = rulecheck(nn.ConstantPad2d(1, 0.5), (2, 4, 6, 7))
    assert (result.compared, result.refusals) == (0, ("no network that was tried fuses with it",))


def test_nothing_else_is_touched() -> None:
    module = Variance(8)
    before = copy.deepcopy(module.state_dict()), dict(vars(module))
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    rulecheck(module, IMAGES, rules={Variance: variance})
    assert module.training
    assert all(torch.equal(before[0][key], value) for key, value in module.state_dict().items())
    assert vars(module) == before[1]
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()


def test_equal_seeds_give_equal_results() -> None:
    results = [rulecheck(Affine(8), IMAGES, rules={Affine: affine}, seed=s) for s in (0, 0, 1)]
    assert results[0] == results[1]
    assert results[0].error != results[2].error


def test_one_size_only() -> None:
    class Fixed(Affine):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-2:] != (6, 7):
                raise ValueError("another size")
            return super().forward(x)

    result = rulecheck(Fixed(8), IMAGES, rules={Fixed: affine})
    assert 3 < result.compared < rulecheck(Affine(8), IMAGES, rules={Affine: affine}).compared
    with pytest.raises(reparam.ReparamError, match=r"does not run in float64 .*another size"):
        rulecheck(Fixed(8), (2, 8, 7, 7), rules={Fixed: affine})


@pytest.mark.parametrize(
    ("target", "shape", "said"),
    [
        (Affine, IMAGES, "needs a module, not the class Affine"),
        (Affine(8), IMAGES, "Affine has no rule"),
        (nn.Linear(8, 8), "big", "input_shape must be sizes"),
        ("conv", IMAGES, "'conv' cannot have a rule"),
        (nn.Conv2d(8, 8, 3), (2, 7, 6, 7), "does not run in float64"),
        (torch.chunk, IMAGES, "forward returns a tuple, not a tensor"),
    ],
)
def test_bad_input(target: Any, shape: Any, said: str) -> None:
    arguments = (2, 1) if target is torch.chunk else ()
    with pytest.raises(reparam.ReparamError, match=said):
        rulecheck(target, shape, *arguments)


def test_what_is_wrong_with_a_rule_itself_is_said() -> None:
    with pytest.raises(reparam.ReparamError, match=r"of Affine, in rulecheck, returned None"):
        rulecheck(Affine(8), IMAGES, rules={Affine: lambda module, x: None})
