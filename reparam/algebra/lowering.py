"""From a form to the torch module that computes it, and how to run that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from reparam.algebra.affine import AffineConv
from reparam.algebra.axis_composition import pads_value
from reparam.algebra.expressions import evaluate
from reparam.algebra.norms import Norm
from reparam.errors import Refusal

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def lower(
    form: AffineConv, kernel: Tensor, bias: Tensor | None, norm: Norm | None = None
) -> nn.Module:
    """Make the module of a form that `unsupported` has nothing against.

    The kernel becomes the module's weight without a copy where possible.

    Args:
        form: The form.
        kernel: Its kernel.
        bias: Its constant.
        norm: The norm that takes it into its own weight and bias, if one does.

    Returns:
        A convolution, a transposed convolution or a linear layer in eval mode, in the dtype of
        the kernel. What it does not pad by itself, `explicit_padding` says.
    """
    if norm is not None:
        return norm.module(kernel.flatten(), bias)
    held = tensors_of(form, kernel, bias)
    axes = form.axes or ()
    channels: Any = form.in_channels, form.out_channels
    # On the meta device nothing is allocated for weights that are replaced at once.
    settings: dict[str, Any] = {"bias": bias is not None, "device": "meta", "dtype": kernel.dtype}
    module: nn.Module
    if not axes:
        module = nn.Linear(*channels, **settings)
    else:
        groups = form.groups or 1
        settings |= {
            "kernel_size": tuple(axis.kernel for axis in axes),
            "stride": tuple(axis.stride for axis in axes),
            "dilation": tuple(axis.dilation for axis in axes),
            "groups": groups,
        }
        if form.transposed:
            settings["padding"] = tuple(axis.before for axis in axes)
            settings["output_padding"] = tuple(axis.output_padding for axis in axes)
            module = _TRANSPOSED[len(axes) - 1](*channels, **settings)
        else:
            if not explicit_padding(form):
                symmetric = all(axis.before == axis.after for axis in axes)
                padding = tuple(axis.before for axis in axes) if symmetric else "same"
                settings |= {"padding": padding, "padding_mode": _mode(form)}
            module = _CONVOLUTIONS[len(axes) - 1](*channels, **settings)
    for name, tensor in held.items():
        module.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
    return module.eval()


def tensors_of(
    form: AffineConv,
    kernel: Tensor,
    bias: Tensor | None,
    norm: Norm | None = None,
    read: Callable[[Any], Any] = evaluate,
) -> dict[str, Tensor]:
    """The tensors of the module of a form, by name, in float64; see `lower` and `Norm.tensors`."""
    if norm is not None:
        return norm.tensors(kernel.flatten(), bias, read)
    if form.transposed:
        groups = form.groups or 1
        kernel = kernel.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).contiguous()
    return {"weight": kernel} | ({} if bias is None else {"bias": bias})


def run_operator(module: nn.Module, x: Tensor, form: AffineConv) -> Tensor:
    """What the module of a form computes, with the padding that it does not do by itself."""
    for sides in explicit_padding(form):
        x = nn.functional.pad(x, sides, mode=pad_mode(form, sides))
    result: Tensor = module(x)
    return result


def pad_mode(form: AffineConv, sides: Sequence[int]) -> str:
    """The mode of an explicit padding, as ``F.pad`` takes it."""
    mode = _mode(form) if max(sides) > 0 else "zeros"
    return "constant" if mode == "zeros" else mode


def _mode(form: AffineConv) -> str:
    """What all padding of a form holds."""
    return next((axis.mode for axis in form.axes or () if axis.padded), "zeros")


def take_after(module: nn.Module, form: AffineConv) -> None:
    """Round a module's weights once, to the type, layout and device of what it replaces."""
    like = form.like
    if like is None:
        return
    dtype = form.dtype or like.dtype
    for name, parameter in list(module.named_parameters()):
        value = rounded(parameter.detach(), like, dtype)
        fresh = nn.Parameter(value, requires_grad=like.requires_grad)
        module.register_parameter(name, fresh)
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point():
            module.register_buffer(name, rounded(buffer, like, dtype))


def rounded(tensor: Tensor, like: Tensor, dtype: torch.dtype) -> Tensor:
    """A tensor in some type, and in the layout and on the device of another one."""
    layout = torch.contiguous_format
    for rank, candidate in ((4, torch.channels_last), (5, torch.channels_last_3d)):
        if like.dim() == rank and not like.is_contiguous():
            layout = candidate if like.is_contiguous(memory_format=candidate) else layout
    kept = layout if tensor.dim() == like.dim() else torch.preserve_format
    return tensor.to(device=like.device, dtype=dtype, memory_format=kept)


def loses_digits(
    module: nn.Module, rounded: Mapping[str, Tensor], exact: Mapping[str, Tensor]
) -> bool:
    """Whether rounded weights are so small that they lose digits that the type has.

    A value of size s is rounded by about r(s) = u max(s, t), with u the rounding of the type and t
    its smallest normal number, whatever computes it: below t, digits go. So a model makes that
    error itself. What rounding the weights of a channel adds to its value may be four times as
    much, if what it reads is of size 1: |W - rounded W| <= 4 r(|W| + |c|).

    Args:
        module: The module of a form.
        rounded: Its parameters by name, rounded.
        exact: The same as they were computed.
    """
    if "weight" not in exact:
        return False  # a norm that has none
    rows, computed = _rows(module, rounded["weight"]), _rows(module, exact["weight"])
    limits = torch.finfo(rows.dtype)
    # Entries of normal size lose nothing: of most kernels their norm says that they are.
    if bool((_norms(rows) >= rows.shape[1] ** 0.5 * limits.smallest_normal).all()):
        return False
    size = _norms(computed)
    if "bias" in exact:
        size = size + exact["bias"].abs()
    rounding = limits.eps / 12**0.5 * size.clamp_min(limits.smallest_normal)
    return bool((_norms(rows - computed) > 4 * rounding).any())


def _rows(module: Any, weight: Tensor) -> Tensor:
    """The weights of each output channel."""
    if isinstance(module, _TRANSPOSED):
        weight = weight.unflatten(0, (module.groups, -1)).transpose(1, 2).flatten(0, 1)
    return weight.detach().flatten(1) if weight.dim() > 1 else weight.detach()[:, None]


def _norms(rows: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(rows, dim=1)
    return norms


def operators(form: AffineConv) -> int:
    """How many operators compute a form: itself, and the padding that it does not do by itself."""
    return 0 if form.identity else 1 + len(explicit_padding(form))


def explicit_padding(form: AffineConv) -> list[tuple[int, ...]]:
    """The paddings, as ``F.pad`` takes them, that a convolution module cannot do by itself."""
    axes = form.axes or ()
    if form.transposed or pads_same(form):
        return []
    if all(axis.before == axis.after >= 0 for axis in axes):
        return []
    sides = [side for axis in reversed(axes) for side in (axis.before, axis.after)]
    zeros = all(axis.mode == "zeros" for axis in axes if axis.padded)
    if min(sides) >= 0 or (zeros and not any(axis.padded and axis.cropped for axis in axes)):
        return [tuple(sides)]
    # In one go torch crops first: other modes would repeat something else, and of a short input
    # there may be less than it crops.
    return [tuple(max(side, 0) for side in sides), tuple(min(side, 0) for side in sides)]


def pads_same(form: AffineConv) -> bool:
    """Whether torch's ``padding="same"`` says it."""
    return all(
        axis.stride == 1
        and axis.before == axis.reach // 2
        and axis.after == axis.reach - axis.reach // 2
        for axis in form.axes or ()
    )


def unsupported(form: AffineConv) -> Refusal | None:
    """Why no torch module computes a form, if none does."""
    axes = form.axes or ()
    if form.columns is not None:
        return Refusal("it reads a part of the channels, or in another order")
    if len(axes) > 3:
        return Refusal(f"torch has no convolution over {len(axes)} axes")
    if any(map(pads_value, axes)):
        return Refusal("padding with a value other than zero is no convolution")
    if form.transposed and not all(
        axis.before == axis.after >= 0
        and 0 <= axis.output_padding < max(axis.stride, axis.dilation)
        for axis in axes
    ):
        return Refusal("torch has no transposed convolution of this size")
    return None
