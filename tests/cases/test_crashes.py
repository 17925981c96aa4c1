"""Networks on which other libraries raise.

| case | test |
| --- | --- |
| half and bfloat16: a bias created in float32 | `test_half_precision...` |
| batch norms without parts; SyncBatchNorm | `test_batch_norms_without_...` |
| lazy modules not yet initialised | `test_lazy_modules_...` |
| grouped transposed convolution + batch norm | `test_a_grouped_transposed_convolution` |
| fusing twice, fusing a fused model | `test_fusing_again...` |
| minutes for a long stream of residual sums that is asked what it is | `test_a_long_stream...` |
| control flow, iteration, setitem, `len()`, shapes | `test_hostile_code.py` |
"""

from __future__ import annotations

import time
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from tests.cases.checking import answers, assert_exact, assert_left
from tests.refusals.checking import images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4


# -- Half precision -------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kept", [False, True], ids=["all", "norm in float32"])
def test_half_precision(dtype: torch.dtype, bias: bool, kept: bool) -> None:
    """A bias of float32 beside weights of half precision.

    ultralytics/ultralytics#24480 and #20096, Megvii-BaseDetection/YOLOX#1246.
    """
    model = nn.Sequential(nn.Conv2d(C, C, 3, bias=bias), nn.BatchNorm2d(C), nn.Conv2d(C, C, 1))
    exact = ready(model)
    halved = deepcopy(exact).to(dtype)
    if kept:
        halved[1].float()
    x = images().to(dtype)
    for example_inputs in (None, x):
        fused = reparam.fuse(halved, example_inputs)
        assert {parameter.dtype for parameter in fused.parameters()} == {dtype}
        y = run(fused, (x,))
        assert y.dtype == dtype
        reference = run(deepcopy(halved).double(), (x.double(),))
        assert relative_error(y.double(), reference) < 32 * torch.finfo(dtype).eps
    assert count_operators(fused, (x,)).total == 1


def test_half_precision_of_a_linear_layer() -> None:
    """ultralytics/ultralytics#24480, without a convolution."""
    model = ready(nn.Sequential(nn.Linear(C, C, bias=False), nn.Linear(C, C))).bfloat16()
    fused, x = reparam.fuse(model), torch.randn(3, C).bfloat16()
    assert {parameter.dtype for parameter in fused.parameters()} == {torch.bfloat16}
    assert run(fused, (x,)).dtype == torch.bfloat16


# -- Batch norms without some of their parts ------------------------------------------------------


def without(*names: str, **options: Any) -> nn.Module:
    norm = nn.BatchNorm2d(C, **options)
    for name in names:
        setattr(norm, name, None)
    return norm


NORMS = {
    "no affine": without(affine=False),
    "no bias": without("bias"),
    "no weight": without("weight"),
    "neither": without("bias", "weight"),
    "synchronised": nn.SyncBatchNorm(C),
    "synchronised, no affine": nn.SyncBatchNorm(C, affine=False),
    "instance norm with statistics": nn.InstanceNorm2d(C, affine=True, track_running_stats=True),
    "momentum": without(momentum=None),
}
BATCH_STATISTICS = {
    "no statistics": without(track_running_stats=False),
    "statistics removed": without("running_mean", "running_var"),
    "neither": without(affine=False, track_running_stats=False),
    "instance norm": nn.InstanceNorm2d(C),
    "group norm": nn.GroupNorm(2, C),
}


@pytest.mark.parametrize("after", [True, False], ids=["after", "before"])
@pytest.mark.parametrize("name", NORMS)
def test_batch_norms_without_some_of_their_parts(name: str, after: bool) -> None:
    """`affine=False` or a missing bias: the fuse helpers of several projects read None."""
    conv, norm = nn.Conv2d(C, C, 3), deepcopy(NORMS[name])
    model = ready(nn.Sequential(conv, norm) if after else nn.Sequential(norm, conv))
    fused = assert_exact(model, images())
    if "instance" not in name:
        assert count_operators(fused, (images(),)).total == 1


@pytest.mark.parametrize("name", BATCH_STATISTICS)
def test_norms_of_the_batch_stay(name: str) -> None:
    """`track_running_stats=False`: there is nothing to fold."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 3), deepcopy(BATCH_STATISTICS[name])))
    fused = assert_exact(model, images())
    assert fused.reparam_report.fused == []
    if "norm" not in name:
        assert_left(model, images(), place="1", reason="statistics of the batch")


@pytest.mark.parametrize("model", [
    nn.Sequential(nn.LazyConv2d(C, 3), nn.BatchNorm2d(C)),
    nn.Sequential(nn.Conv2d(C, C, 3), nn.LazyBatchNorm2d()),
    nn.Sequential(nn.Flatten(), nn.LazyLinear(C)),
], ids=["convolution", "norm", "linear"])  # fmt: skip
def test_lazy_modules_that_never_ran(model: nn.Module) -> None:
    """Fuse helpers read the shape of an uninitialised parameter."""
    model.double().eval()
    with pytest.raises(reparam.ReparamError, match="is lazy and was never run"):
        reparam.fuse(model)
    model(images())
    assert_exact(ready(model), images())


# -- Transposed convolutions ----------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, C])
@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1, "output_padding": 1}])
def test_a_grouped_transposed_convolution(axes: int, groups: int, options: dict[str, Any]) -> None:
    """`torch.nn.utils.fusion` raises a shape error for groups (measured)."""
    up = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[axes - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[axes - 1]
    model = ready(nn.Sequential(up(C, 2 * C, 3, groups=groups, **options), norm(2 * C)))
    assert_exact(model, torch.randn(2, C, *(4,) * axes, dtype=torch.float64), total=1)


# -- Fusing again ---------------------------------------------------------------------------------


def branches() -> nn.Module:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))
            self.b = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))

        def forward(self, x: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
            return (self.a(x) + self.b(x)).relu() * scale

    return ready(nn.Sequential(Branches(), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Branches()))


@pytest.mark.parametrize("inplace", [False, True])
def test_fusing_again_changes_nothing(inplace: bool) -> None:
    """`model.fuse()` twice raises in ultralytics and others."""
    model, x = branches(), images()
    expected = answers(model, x)
    once = reparam.fuse(model, inplace=inplace)
    structure, counts = repr(once), count_operators(once, (x,))
    again = reparam.fuse(once, inplace=inplace)
    assert again.reparam_report.fused == []
    assert (repr(again), count_operators(again, (x,))) == (structure, counts)
    assert relative_error(answers(again, x), expected) <= 1e-9


def test_fusing_again_after_a_change() -> None:
    """A fused network in a new one, and a fused network that got one more batch norm."""
    fused = reparam.fuse(branches())
    assert_exact(ready(nn.Sequential(fused, nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))), images())
    changed = reparam.fuse(ready(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C))))
    changed.append(nn.BatchNorm2d(C))
    assert_exact(ready(changed), images(), total=1)


def test_fusing_again_a_copy_that_was_saved(tmp_path: Any) -> None:
    """A fused network that was saved, loaded and fused once more."""
    torch.save(reparam.fuse(nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C)).double().eval()),
               tmp_path / "fused.pt")  # fmt: skip
    loaded = torch.load(tmp_path / "fused.pt", weights_only=False)
    assert reparam.fuse(loaded).reparam_report.fused == []
    assert_exact(loaded, images())


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x))
        for _ in range(40):
            x = x * 0.5 + x
        return y + x if isinstance(x, torch.Tensor) else y


def test_a_long_stream_of_residual_sums() -> None:
    """What a value is follows from what it is made of, of which each is asked once."""
    start = time.perf_counter()
    reparam.plan(ready(Stream()))
    assert time.perf_counter() - start < 30
