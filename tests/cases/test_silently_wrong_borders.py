"""Kernels, paddings and branches of every geometry: exact, or refused.

The rows of `test_silently_wrong.py` that are about borders.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, differs, images, ready
from tests.support.counting import count_operators
from tests.support.thinning import thinned

C = 4
MODES = ("zeros", "reflect", "circular", "replicate")


# -- Padding --------------------------------------------------------------------------------------


class Padding(NamedTuple):
    """An explicit padding."""

    sides: tuple[int, int, int, int]
    mode: str = "constant"
    value: float = 0.0

    def __call__(self, x: Tensor) -> Tensor:
        if self.mode == "constant":
            return F.pad(x, self.sides, value=self.value)
        return F.pad(x, self.sides, mode=self.mode)


PADDINGS = {
    "even": Padding((1, 1, 1, 1)),
    "wide": Padding((3, 2, 0, 1)),
    "one side": Padding((0, 1, 0, 1)),
    "crop": Padding((-1, -1, -1, -1)),
    "crop and pad": Padding((-1, 2, 1, -2)),
    "value": Padding((1, 1, 1, 1), value=0.5),
    "minus infinity": Padding((1, 1, 1, 1), value=-1e30),
    "reflect": Padding((1, 2, 2, 1), "reflect"),
    "replicate": Padding((1, 2, 2, 1), "replicate"),
    "circular": Padding((1, 2, 2, 1), "circular"),
}
READERS: dict[str, Callable[[], nn.Module]] = {
    "convolution": lambda: nn.Conv2d(C, C, 3),
    "padded convolution": lambda: nn.Conv2d(C, C, 3, padding=1),
    "strided convolution": lambda: nn.Conv2d(C, C, 2, stride=2, padding=1),
    "reflecting convolution": lambda: nn.Conv2d(C, C, 3, padding=1, padding_mode="reflect"),
    "dilated convolution": lambda: nn.Conv2d(C, C, 3, dilation=2, groups=2),
    "transposed convolution": lambda: nn.ConvTranspose2d(C, C, 3, 2, 1),
    "average pool": lambda: nn.AvgPool2d(3, 1),
    "padded pool": lambda: nn.AvgPool2d(3, 1, 1),
    "pool without its padding": lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
    "pool over the border": lambda: nn.AvgPool2d(3, 2, ceil_mode=True),
    "pool with a divisor": lambda: nn.AvgPool2d(2, divisor_override=3),
    "maximum pool": lambda: nn.MaxPool2d(3, 1, 1),
}


@pytest.mark.parametrize(
    ("padding", "reader", "constant"),
    thinned(product(PADDINGS, READERS, ("plain", "bias")), 5),
)
def test_padding_before_every_operator(padding: str, reader: str, constant: str) -> None:
    """microsoft/onnxruntime#22177 and microsoft/onnxscript#2838: a pad fused into its reader."""
    pad = PADDINGS[padding]
    model = ready(
        Network(
            lambda self, x: self.norm(self.reader(pad(self.point(x)))),
            point=nn.Conv2d(C, C, 1, bias=constant == "bias"),
            reader=READERS[reader](),
            norm=nn.BatchNorm2d(C),
        )
    )
    assert_exact(model, images(), calls=1)


def test_padding_before_a_pool_that_does_not_count_it() -> None:
    """microsoft/onnxruntime#22177: padding moved into a pool is not counted any more."""
    model = ready(nn.Sequential(nn.ZeroPad2d(1), nn.AvgPool2d(3, 1, count_include_pad=False)))
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    assert differs(pool, model, images())
    assert_exact(model, images())


def test_padding_before_a_convolution_moves_into_it() -> None:
    """microsoft/onnxscript#2838: the same move where it is right."""
    model = ready(nn.Sequential(nn.ZeroPad2d(1), nn.Conv2d(C, C, 3, padding=1)))
    fused = assert_exact(model, images())
    assert count_operators(fused, (images(),)).total == 1


# -- Two convolutions -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Kernel:
    """The options of one convolution."""

    kernel: int
    padding: int
    stride: int = 1
    dilation: int = 1
    mode: str = "zeros"

    def __str__(self) -> str:
        return "-".join(map(str, vars(self).values()))

    def module(self, bias: bool) -> nn.Module:
        return nn.Conv2d(
            C, C, self.kernel, self.stride, self.padding, self.dilation, bias=bias,
            padding_mode=self.mode,
        )  # fmt: skip


KERNELS = [
    Kernel(1, 0), Kernel(1, 1), Kernel(1, 0, stride=2), Kernel(2, 1), Kernel(3, 0), Kernel(3, 1),
    Kernel(3, 2), Kernel(3, 1, stride=2), Kernel(3, 2, dilation=2), Kernel(3, 1, mode="reflect"),
    Kernel(3, 1, mode="circular"),
]  # fmt: skip


@pytest.mark.parametrize(("first", "constant"), thinned(product(KERNELS, ("plain", "bias")), 3))
def test_two_convolutions_in_a_row(first: Kernel, constant: str) -> None:
    """ROCm/AMDMIGraphX#394: two convolutions merged although there is padding between them."""
    for second in KERNELS:
        model = ready(nn.Sequential(first.module(constant == "bias"), second.module(True)))
        assert_exact(model, images(size=9), calls=1)


def test_two_convolutions_of_one_tap_are_one() -> None:
    """ROCm/AMDMIGraphX#394: the same merge where it is right."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3)))
    assert_exact(model, images(), total=1)


# -- Branches of any geometry ---------------------------------------------------------------------


BRANCHES: dict[str, tuple[Callable[[], list[nn.Module]], bool]] = {
    "1x1 and 3x3 of stride 2": (
        lambda: [nn.Conv2d(C, C, 1, 2), nn.Conv2d(C, C, 3, 2, 1), nn.BatchNorm2d(C)], True
    ),
    "pool and 3x3 of stride 2": (
        lambda: [nn.AvgPool2d(1, 2), nn.Conv2d(C, C, 3, 2, 1), nn.BatchNorm2d(C)], True
    ),
    "even kernels": (lambda: [nn.Conv2d(C, C, 2, 2), nn.Conv2d(C, C, 4, 2, 1)], True),
    "even kernel beside odd": (lambda: [nn.Conv2d(C, C, 4, 2, 1), nn.Conv2d(C, C, 2, 2)], True),
    "different sizes by floor": (lambda: [nn.Conv2d(C, C, 2, 2), nn.Conv2d(C, C, 3, 2, 1)], False),
    "same, even": (
        lambda: [nn.Conv2d(C, C, 4, padding="same"), nn.Conv2d(C, C, 1), nn.Identity()], True
    ),
    "same, dilated": (
        lambda: [nn.Conv2d(C, C, (2, 3), padding="same", dilation=(1, 2)), nn.Conv2d(C, C, 1)],
        True,
    ),
    "asymmetric": (
        lambda: [
            nn.Sequential(nn.ZeroPad2d((2, 0, 0, 1)), nn.Conv2d(C, C, (2, 3))), nn.Conv2d(C, C, 1)
        ],
        True,
    ),
    "asymmetric, strided": (
        lambda: [
            nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(C, C, 3, 2)),
            nn.Conv2d(C, C, 2, 2),
        ],
        True,
    ),
    "rows and columns": (
        lambda: [
            nn.Conv2d(C, C, (1, 3), padding=(0, 1)), nn.Conv2d(C, C, (3, 1), padding=(1, 0)),
            nn.Conv2d(C, C, 3, padding=1),
        ],
        True,
    ),
    "groups": (
        lambda: [nn.Conv2d(C, C, 3, padding=1, groups=2), nn.Conv2d(C, C, 1, groups=C)], True
    ),
    **{
        f"{mode}, twice": (
            lambda mode=mode: [
                nn.Conv2d(C, C, 3, padding=1, padding_mode=mode), nn.Conv2d(C, C, 1),
                nn.Conv2d(C, C, 3, padding=1, padding_mode=mode), nn.BatchNorm2d(C),
            ],
            True,
        )
        for mode in MODES
    },
    **{
        f"{mode}, even": (
            lambda mode=mode: [
                nn.Conv2d(C, C, 2, padding="same", padding_mode=mode), nn.Conv2d(C, C, 1)
            ],
            True,
        )
        for mode in MODES
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", BRANCHES)
def test_branches_of_every_geometry(name: str) -> None:
    """1×1 with stride 2 next to 3×3, even kernels, asymmetric and same padding, other modes."""
    branches, one = BRANCHES[name]
    model = Network(lambda self, x: sum(branch(x) for branch in self.branches),
                    branches=nn.ModuleList(branches()))  # fmt: skip
    if "stride 2" in name:  # the batch norm of a block that halves the image comes after the sum
        *convolutions, norm = branches()
        model.branches = nn.ModuleList(convolutions)
        model = nn.Sequential(model, norm)
    x = images(size=8)[..., :8].contiguous()
    fused = assert_exact(ready(model), x)
    assert count_operators(fused, (x,)).convolutions == (1 if one else 2)
