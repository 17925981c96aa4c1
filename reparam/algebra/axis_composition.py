r"""Where the taps of a kernel lie along one spatial axis, and when two such axes compose.

Along an axis a kernel acts as ``v[o] = c + sum over t of K[t] * x~[s * o + t]``: ``x~`` is x
extended by its padding mode, ``t = index * dilation - before`` runs over the taps, s is the
stride. The number ``excess = before + after - dilation * (kernel - 1)`` decides the size of the
result, ``floor((n + excess - 1) / s) + 1``, so kernels of equal stride and equal excess may be
added, and ``excess = T1 + s1 * T2`` for a sequence is exact through both floors.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import gcd
from typing import Literal

from reparam.algebra.kernels import lattice
from reparam.errors import Refusal

PaddingMode = Literal["zeros", "reflect", "circular", "replicate", "value"]
"""The padding modes of ``torch.nn.Conv2d``, and "value": a constant per channel."""


@dataclass(frozen=True, slots=True)
class Axis:
    """The taps of a kernel along one spatial axis.

    Args:
        kernel: Number of taps.
        stride: Distance between two outputs; between two inputs if transposed.
        dilation: Distance between two taps.
        before: Padding at the low end; a crop if negative.
        after: Padding at the high end; a crop if negative.
        mode: What the padding holds.
        output_padding: Extra size of the result of a transposed convolution.
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0
    after: int = 0
    mode: PaddingMode = "zeros"
    output_padding: int = 0

    @property
    def reach(self) -> int:
        """Distance between the first and the last tap."""
        return self.dilation * (self.kernel - 1)

    @property
    def excess(self) -> int:
        """How much longer than the input the result of stride 1 is."""
        return self.before + self.after - self.reach

    @property
    def transposed_excess(self) -> int:
        """How much longer than ``stride * (n - 1) + 1`` a transposed result is."""
        return self.reach - self.before - self.after + self.output_padding

    @property
    def padded(self) -> bool:
        """Whether anything outside the input is read."""
        return self.before > 0 or self.after > 0

    @property
    def cropped(self) -> bool:
        """Whether a border of the input is never read."""
        return self.before < 0 or self.after < 0

    @property
    def pointwise(self) -> bool:
        """Whether every output position reads exactly the input at its own position."""
        return self.kernel == 1 and self.stride == 1 and self.before == 0 == self.after

    @property
    def taps(self) -> tuple[int, int, int]:
        """First offset, distance and number of the taps, as `kernels.lattice` wants them."""
        return -self.before, self.dilation, self.kernel


def common_mode(axes: tuple[Axis, ...]) -> PaddingMode | Refusal:
    """The one padding mode of all axes that pad."""
    modes = {axis.mode for axis in axes if axis.padded}
    if len(modes) > 1:
        return Refusal(f"its padding modes differ ({', '.join(sorted(modes))})")
    return modes.pop() if modes else "zeros"


def add_axes(first: Axis, second: Axis, *, transposed: bool) -> Axis | Refusal:
    """The axis of a sum, on the coarsest lattice that holds the taps of both."""
    if first.stride != second.stride:
        return Refusal(
            f"branches with different strides ({first.stride} and {second.stride}) do not add up "
            "to one convolution"
        )
    if transposed:
        excess, other = first.transposed_excess, second.transposed_excess
    else:
        excess, other = first.excess, second.excess
    if excess != other:
        return Refusal(
            "the branches differ in size (kernel, dilation and padding do not match), so their sum "
            "broadcasts or fails"
        )
    mode = common_mode((first, second))
    if isinstance(mode, Refusal):
        return Refusal(f"branches with different padding modes do not add up: {mode}")
    start, dilation, kernel = lattice(first.taps, second.taps)
    reach = dilation * (kernel - 1)
    if not transposed:
        return Axis(kernel, first.stride, dilation, -start, excess + reach + start, mode)
    # As in torch, both sides lose the same padding and output_padding makes up for the rest.
    return Axis(kernel, first.stride, dilation, -start, -start, mode, excess - reach - 2 * start)


def compose_axes(inner: Axis, outer: Axis, *, inner_constant: bool) -> Axis | Refusal:
    """The axis of a sequence, or why the two are no single convolution along it.

    An outer kernel that reads outside the inner value sees its own padding there, while the
    formula continued outside gives something else, but for four cases: see the comments.
    """
    mode = inner.mode
    before, after = inner.before, inner.after
    one_tap = inner.kernel == 1
    if not outer.padded:
        pass  # 1. The outer kernel stays inside: whatever the inner one does composes.
    elif outer.mode == "zeros":
        # 2. Outside, the inner formula must give the zeros that the outer kernel sees.
        if inner_constant:
            return Refusal("zero padding after a bias: the border would differ")
        if inner.padded and inner.mode != "zeros":
            return Refusal(f"zero padding after {inner.mode} padding: the border would differ")
        # Output -1 reads up to input reach - stride - before, which must be negative. The output
        # after the last one reads from input n + after - reach on at the earliest, since the floor
        # in the size may leave no slack, and that must be n or more.
        needs_before, needs_after = inner.reach - inner.stride + 1, inner.reach
        if (outer.before > 0 and before < needs_before) or (
            outer.after > 0 and after < needs_after
        ):
            if inner.cropped:
                return Refusal("zero padding after a crop: the border would differ")
            return Refusal(
                "zero padding between two kernels: the first one's formula is not zero outside"
            )
        mode = "zeros"
    elif outer.mode == "value":
        # 3. The padded value equals the inner formula outside (`laws` compares the values).
        if not one_tap or inner.cropped or (inner.padded and inner.mode != "zeros"):
            return Refusal("padding with a value after a kernel of several taps or a crop")
        mode = "zeros"
    elif not (one_tap and inner.stride == 1 and before == 0 == after):
        return Refusal(
            f"{outer.mode} padding after a kernel of several taps, a stride or a padding"
        )
    else:
        mode = outer.mode  # 4. The inner value is extended as its input is.
    dilation = gcd(_spacing(inner), inner.stride * _spacing(outer)) or 1
    return Axis(
        (inner.reach + inner.stride * outer.reach) // dilation + 1,
        inner.stride * outer.stride,
        dilation,
        before + inner.stride * outer.before,
        after + inner.stride * outer.after,
        mode,
    )


def pads_value(axis: Axis) -> bool:
    """Whether a value that is not zero is read outside the input."""
    return axis.mode == "value" and axis.padded


def _spacing(axis: Axis) -> int:
    """Distance between two taps; 0 where there is only one."""
    return axis.dilation if axis.kernel > 1 else 0
