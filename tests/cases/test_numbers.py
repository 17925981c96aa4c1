"""Numbers that other libraries hide or lose trust over.

| case | test |
| --- | --- |
| "the result is not the same" | `test_both_errors_are_shown_against_float64` |
| statistics and weights at the edge | `test_statistics_...`, `test_weights_...` |
| float16 that overflows when folded | `test_weights_that_overflow_...` |
| int8 with one scale per tensor collapses | `test_one_scale_per_channel_...` |
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import assert_reported, images, ready
from tests.support.blocks import ThreeBranches
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 8


@pytest.mark.parametrize("depth", [1, 4, 16])
def test_both_errors_are_shown_against_float64(depth: int) -> None:
    """Users compare float32 outputs of two deep networks by absolute difference.

    DingXiaoH/RepVGG#23, onnx/optimizer#255, open-mmlab/mmcv#747.
    """
    model = ready(nn.Sequential(*(ThreeBranches(C) for _ in range(depth)))).float()
    x = images(C).float()
    fused = reparam.fuse(model)
    result = reparam.verify(model, fused, x)
    exact = run(ready(nn.Sequential(*(ThreeBranches(C) for _ in range(depth)))), (x.double(),))
    assert exact.shape == run(fused, (x,)).shape
    assert 0 < result.original[0] < 1e-4
    assert 0 < result.fused[0] < 1e-4
    assert result.fused[0] < 10 * result.original[0]
    text = str(result)
    assert "float64" in text
    assert f"{result.original[0]:.1e}" in text
    assert f"{result.fused[0]:.1e}" in text


EXTREMES = [0.0, 5e-324, 1e-300, 1e-45, 1e10, 1e30, 1e200]


@pytest.mark.parametrize("value", [*EXTREMES, -1.0, -1e-3, -1e30])
@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_statistics_at_the_edge(name: str, value: float) -> None:
    """A variance of zero or denormal, γ of zero or negative, huge statistics: exact or reported."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    with torch.no_grad():
        getattr(model[1], name)[::2] = value
    x = images(C)
    if not run(model, (x,)).isfinite().all():  # a negative variance
        fused = reparam.fuse(model)
        assert torch.equal(run(fused, (x,)).isfinite(), run(model, (x,)).isfinite())
        assert_reported(fused.reparam_report, "1", "NaN or infinite")
        return
    fused = assert_exact(model, x)
    assert fused.reparam_report.fused or fused.reparam_report.refused
    for channel in range(C):  # a channel at the edge does not hide the others
        y, expected = (run(network, (x,))[:, channel] for network in (fused, model))
        assert relative_error(y, expected) <= 1e-9


@pytest.mark.parametrize("eps", [0.0, 1e-300, 1e-12, 1e-3, 1.0])
@pytest.mark.parametrize("variance", [1e-30, 1.0, 1e30])
def test_statistics_with_any_eps(eps: float, variance: float) -> None:
    """The eps is that of the layer, however small."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C, eps=eps)))
    model[1].running_var.fill_(variance)
    assert_exact(model, images(C), total=1)


def test_statistics_without_any_variance() -> None:
    """A variance and an eps of zero divide by zero: left alone, and reported."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C, eps=0.0)))
    model[1].running_var[0] = 0.0
    fused, x = reparam.fuse(model), images(C)
    assert torch.equal(run(fused, (x,)).isfinite(), run(model, (x,)).isfinite())
    assert_reported(fused.reparam_report, "1", "NaN or infinite")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["0.weight", "0.bias", "1.weight", "1.running_var", "3.weight"])
def test_weights_that_are_no_numbers_spoil_their_own_layer_only(place: str, value: float) -> None:
    """NaN or inf in a weight: the layer is left alone and reported, the others are fused."""
    pair = (nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))
    model = ready(nn.Sequential(*pair, nn.ReLU(), nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)))
    model.state_dict()[place].view(-1)[0] = value
    fused, x = reparam.fuse(model), images(C)
    actual, expected = run(fused, (x,)), run(model, (x,))
    assert torch.equal(actual.isfinite(), expected.isfinite())
    if place == "1.running_var" and value == float("inf"):  # a channel that is multiplied by zero
        assert relative_error(actual, expected) <= 1e-9
        return
    assert_reported(fused.reparam_report, "1" if place[0] in "01" else "4", "NaN or infinite")
    assert len(fused.reparam_report.fused) == 1


def test_weights_that_overflow_float16_name_their_layer() -> None:
    """A folded weight beyond 65504: a warning names the layer, and it stays."""
    block = nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))
    model = ready(nn.Sequential(block, nn.ReLU(), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)))
    with torch.no_grad():
        model[0][0].weight.fill_(1000.0)
        model[0][1].weight.fill_(1000.0)
    with pytest.warns(UserWarning, match=r"^0\.1: .*overflow torch\.float16"):
        fused = reparam.fuse(model.half())
    assert_reported(fused.reparam_report, "0.1", "overflow")
    assert isinstance(fused[0][1], nn.BatchNorm2d)
    assert isinstance(fused[3], nn.Identity)


# -- Quantisation ---------------------------------------------------------------------------------


def quantised(weight: Tensor, *, per_channel: bool) -> Tensor:
    """A weight rounded to int8 and back."""
    largest: Any = weight.abs().amax((1, 2, 3), keepdim=True) if per_channel else weight.abs().max()
    scale = largest / 127
    return (weight / scale).round().clamp(-128, 127) * scale


def test_one_scale_per_channel_survives_fusing() -> None:
    """γ/σ differs between channels and branches, so the fused kernel has outlier channels.

    RepVGG's quantisation guide and QARepVGG: with one scale per tensor the accuracy collapses. The
    limitations advise one scale per channel; this is why.
    """
    model = ready(ThreeBranches(C))
    with torch.no_grad():
        for norm in (model.dense[1], model.point[1], model.skip):
            norm.running_var.copy_(torch.logspace(-6, 2, C).double())
            norm.running_mean.zero_()
            norm.bias.zero_()
    x = images(C)
    fused = assert_exact(model, x)
    assert count_operators(fused, (x,)).convolutions == 1
    (conv,) = [module for module in fused.modules() if isinstance(module, nn.Conv2d)]
    expected, exact = run(model, (x,)), conv.weight.detach().clone()

    def error(per_channel: bool) -> Tensor:
        with torch.no_grad():
            conv.weight.copy_(quantised(exact, per_channel=per_channel))
        difference = (run(fused, (x,)) - expected).abs().amax((0, 2, 3))
        return difference / expected.abs().amax((0, 2, 3))

    assert error(per_channel=True).max() < 0.05
    assert error(per_channel=False).median() > 0.2
