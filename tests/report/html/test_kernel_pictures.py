"""Heat maps are small, right, and said in words."""

import pytest
import torch

from reparam.algebra.affine import AffineConv, identity
from reparam.report.html import kernel_pictures
from reparam.report.html.kernel_pictures import draw, picture


def test_taps_are_means_of_absolute_weights() -> None:
    kernel = torch.zeros(2, 2, 3, 3)
    kernel[:, :, 1, 1] = -2.0
    kernel[0, :, 0, 0] = 2.0
    drawn = picture(kernel, depthwise=False)
    assert drawn is not None
    assert drawn.rows == ("800", "0f0", "000")
    assert drawn.largest == 2.0
    assert drawn.size == "3 × 3 taps"
    assert drawn.spoken == "1 0 0; 0 2 0; 0 0 0"


def test_one_tap_shows_its_channels() -> None:
    drawn = picture(torch.eye(3)[:, :, None, None], depthwise=False)
    assert drawn is not None
    assert drawn.rows == ("f00", "0f0", "00f")


def test_scales_are_one_row() -> None:
    drawn = picture(torch.tensor([1.0, -0.5])[:, None], depthwise=True)
    assert drawn is not None
    assert drawn.rows == ("f8",)


@pytest.mark.parametrize(
    "shape", [(700, 900), (64, 1, 51, 51), (8, 8, 5, 5, 5), (8, 8, 99), (5000, 1)]
)
@pytest.mark.parametrize("depthwise", [False, True])
def test_pictures_are_bounded(shape: tuple[int, ...], depthwise: bool) -> None:
    drawn = picture(torch.randn(shape), depthwise=depthwise)
    assert drawn is not None
    assert sum(map(len, drawn.rows)) <= 24 * 24
    assert len({len(row) for row in drawn.rows}) == 1


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_nothing_and_what_is_not_finite_are_drawn_as_nothing(value: float) -> None:
    drawn = picture(torch.full((2, 2, 3), value), depthwise=False)
    assert drawn is not None
    assert drawn.rows == ("000",)


def test_kernels_without_numbers_have_no_picture() -> None:
    assert picture(torch.empty(2, 2, 3, device="meta"), depthwise=False) is None


def test_large_kernels_are_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    form = identity().convolve(torch.ones(4, 4), axes=())
    assert isinstance(form, AffineConv)
    assert draw(form) is not None
    monkeypatch.setattr(kernel_pictures, "_MOST_ENTRIES", 15)
    assert draw(form) is None
