"""Where no sizes are known, positions are bounded; the bounds hold for every size."""

from itertools import product

import pytest

from reparam.algebra.axis_composition import Axis
from reparam.planning.positions import least_ratio, most_ratio

SETTINGS = list(product((1, 2, 3, 5), (1, 2, 3), (1, 2), (0, 1, 2, 3)))


@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding"), SETTINGS)
def test_a_convolution_reads_at_least_so_much(
    kernel: int, stride: int, dilation: int, padding: int
) -> None:
    axis = Axis(kernel, stride, dilation, padding, padding)
    lengths = ((size, (size + axis.excess - 1) // stride + 1) for size in range(1, 60))
    ratios = [size / result for size, result in lengths if result > 0]
    least = least_ratio(axis, transposed=False)
    assert min(ratios) >= least
    if axis.excess > 0:  # padding beyond half of the reach: the bound is met at one position
        assert ratios[0] == least


@pytest.mark.parametrize(("kernel", "stride", "dilation", "padding"), SETTINGS)
def test_a_transposed_convolution_makes_no_less_and_no_more(
    kernel: int, stride: int, dilation: int, padding: int
) -> None:
    axis = Axis(kernel, stride, dilation, padding, padding)
    lengths = ((size, stride * (size - 1) + 1 + axis.transposed_excess) for size in range(1, 60))
    ratios = [result / size for size, result in lengths if result > 0]
    assert least_ratio(axis, transposed=True) <= min(ratios)
    assert max(ratios) <= most_ratio(axis)
