"""What was taken for granted of a value, checked where a fused model reads it.

A value's number of axes is not in the weights. Where a fusion rests on one that is only likely, or
that only the example inputs had, the fused model raises an error for any other. So it does where a
module was fused for a caller that gives it one value twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.errors import ReparamError


@dataclass(frozen=True)
class Assumed:
    """What a fusion takes for granted of a value.

    Args:
        place: Who reads it.
        axes: How many axes it has; 0 for any number.
        channel_axis: Which axis holds the channels, counted from the end.
        channels: How many channels it has; 0 for any number.
    """

    place: str
    axes: int = 0
    channel_axis: int = -1
    channels: int = 0

    @property
    def text(self) -> str:
        """What is said of another value."""
        wanted = [f"{self.axes} axes"] if self.axes else []
        if self.channels:
            wanted.append(f"{self.channels} channels along axis {self.channel_axis}")
        return (
            f"{self.place} was fused for values of {' and '.join(wanted)}; fuse the model with "
            "example_inputs like those that it is to get"
        )

    @property
    def arguments(self) -> tuple[int, int, int, str]:
        """What `checked_axes` is told."""
        return self.axes, self.channel_axis, self.channels, self.text


def checked_axes(x: Any, axes: int, channel_axis: int, channels: int, text: str) -> Any:
    """A value, if it is one as was taken for granted.

    Args:
        x: The value.
        axes: How many axes it must have; 0 for any number.
        channel_axis: Which axis holds the channels, counted from the end.
        channels: How many channels it must have; 0 for any number.
        text: What is said of another value.

    Raises:
        ReparamError: If it is another one.
    """
    if isinstance(x, fx.Proxy):
        arguments = x, axes, channel_axis, channels, text
        return x.tracer.create_proxy("call_function", checked_axes, arguments, {})
    wrong = bool(axes) and x.dim() != axes
    if channels and not torch.jit.is_tracing():  # where sizes are no numbers
        wrong = wrong or x.shape[channel_axis] != channels
    if wrong:
        raise ReparamError(f"{text} (it got one of shape {tuple(x.shape)})")
    return x


def checked_sizes(x: Any, axes: int, sizes: tuple[int, ...], place: str) -> Any:
    """A value, if its last axes have the sizes that were taken for granted.

    Args:
        x: The value.
        axes: How many axes it must have.
        sizes: The sizes of its last axes.
        place: Who reads it.

    Raises:
        ReparamError: If it is another one.
    """
    if isinstance(x, fx.Proxy):
        arguments = x, axes, sizes, place
        return x.tracer.create_proxy("call_function", checked_sizes, arguments, {})
    wrong = x.dim() != axes
    if not torch.jit.is_tracing():  # where sizes are no numbers
        wrong = wrong or tuple(x.shape[-len(sizes) :]) != tuple(sizes)
    if wrong:
        raise ReparamError(
            f"{place} was fused for values of {axes} axes, the last of sizes {tuple(sizes)}; fuse "
            "the model with example_inputs like those that it is to get (it got one of shape "
            f"{tuple(x.shape)})"
        )
    return x


def checked_same(first: Any, second: Any, text: str) -> Any:
    """The first of two values, if the second one is equal.

    Raises:
        ReparamError: If it is not, with the text.
    """
    if first is second:  # as its caller in the model hands them on
        return first
    if isinstance(first, fx.Proxy):
        return first.tracer.create_proxy("call_function", checked_same, (first, second, text), {})
    tensors = isinstance(first, Tensor) and isinstance(second, Tensor)
    if not (torch.equal(first, second) if tensors else first == second):
        raise ReparamError(text)
    return first


def decided(value: Any, answer: bool | int, where: str) -> None:
    """Check that a value that code asks for is what example inputs decided.

    Raises:
        ReparamError: If it does not.
    """
    if value != answer:
        raise ReparamError(
            f"{where} was fused for inputs of another kind (number of axes, type or device), for "
            "which its code goes another way; fuse the model with example_inputs like those that "
            "it is to get"
        )


class CheckedIdentity(nn.Identity):
    """Stands where a fused operator was, and checks what that would have read."""

    def __init__(self, assumed: Assumed) -> None:
        super().__init__()
        self.axes, self.channel_axis, self.channels, self.text = assumed.arguments

    def forward(self, input: Tensor) -> Tensor:
        """The value, if it is one as was taken for granted."""
        if torch.jit.is_scripting():  # which knows no proxies
            if self.axes > 0 and input.dim() != self.axes:
                raise RuntimeError(self.text)
            if self.channels > 0 and input.size(self.channel_axis) != self.channels:
                raise RuntimeError(self.text)
            return input
        checked: Tensor = checked_axes(
            input, self.axes, self.channel_axis, self.channels, self.text
        )
        return checked
