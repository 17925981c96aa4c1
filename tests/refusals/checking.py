"""What every refusal promises, and the fusion that a careless library would have made."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

EXACT = 1e-12
VISIBLE = 1e-2


class Network(nn.Module):
    """A forward over named parts, so that a test reads like the network it is about."""

    def __init__(self, forward: Callable[..., Any], **parts: Any) -> None:
        super().__init__()
        self.function = forward
        for name, part in parts.items():
            if isinstance(part, Tensor):
                part = nn.Parameter(part.double())
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def ready(model: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode and float64, with statistics and scales at which mistakes show."""
    return randomise_batch_norm(model.double().eval(), seed)


def images(channels: int = 4, size: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(channels)
    return torch.randn(2, channels, size, size + 1, dtype=torch.float64, generator=generator)


def fused_no_dearer(model: nn.Module, **options: Any) -> tuple[nn.Module, OperatorCounts]:
    """A fused model, which computes the same with no more work, and the work that it does."""
    result, x = reparam.fuse(model, **options), images()
    assert relative_error(run(result, (x,)), run(model, (x,))) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(result, (x,))
    assert after.macs <= before.macs
    assert after.total <= before.total
    return result, after


def assert_gradients_and_states_agree(model: nn.Module) -> None:
    """Asserts that a fused model's state is an ordinary one, and that gradients pass it alike."""
    result = reparam.fuse(copy.deepcopy(model))
    first, second = (images().requires_grad_() for _ in range(2))
    model(first).sum().backward()
    result(second).sum().backward()
    assert first.grad is not None
    assert second.grad is not None
    assert torch.allclose(first.grad, second.grad, atol=1e-10)
    again = reparam.fuse(copy.deepcopy(model))
    again.load_state_dict(result.state_dict())
    assert torch.equal(again(images()), result(images()))
    assert max(reparam.verify(model, result, images()).fused) < EXACT


def differs(naive: Callable[..., Any], model: nn.Module, x: Tensor) -> bool:
    """Whether two networks differ by an amount that a user sees, or in the shape."""
    with torch.no_grad():
        actual, expected = naive(x.clone()), model(x.clone())
    if isinstance(expected, Tensor) and actual.shape != expected.shape:
        return True
    return relative_error(actual, expected) > VISIBLE


def assert_reported(report: Any, place: str, reason: str) -> None:
    rows = [row for row in report.refused if row.place == place]
    assert [row for row in rows if reason in row.reason], f"no such row in\n{report}"


def assert_refused(
    model: nn.Module,
    x: Tensor,
    place: str,
    reason: str,
    *,
    naive: Callable[..., Any],
    example_inputs: Any = None,
) -> None:
    """Nothing is fused, the report says where and why, and fusing would have been wrong.

    Args:
        model: The network.
        x: Its input.
        place: Where the report must say so.
        reason: Words of the reason.
        naive: The network as a careless library would have fused it.
        example_inputs: For `reparam.fuse`.
    """
    fused = reparam.fuse(model, example_inputs)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)) == count_operators(model, (x,))
    assert_reported(fused.reparam_report, place, reason)
    assert differs(naive, model, x)


class PaddedConvolution(nn.Module):
    """One convolution behind one padding."""

    def __init__(self, weight: Tensor, bias: Tensor, stride: int, sides: Any, mode: str) -> None:
        super().__init__()
        self.weight, self.bias, self.stride = weight, bias, stride
        self.sides, self.mode = sides, mode

    def forward(self, x: Tensor) -> Tensor:
        before, after = self.sides
        x = F.pad(x, (before, after) * 2, self.mode)
        return F.conv2d(x, self.weight, self.bias, self.stride)


def one_convolution(
    model: nn.Module,
    channels: int,
    kernel: int,
    sides: tuple[int, int],
    *,
    stride: int = 1,
    mode: str = "constant",
) -> nn.Module:
    """The one convolution that does what a network does far from every border.

    Its weights are read off the network: what an impulse at each input of a middle position gives.

    Args:
        model: A network that is affine and, but for its borders, moves with its input.
        channels: Channels of the input.
        kernel: Size of the kernel.
        sides: Padding before and after.
        stride: Stride of the network.
        mode: Padding mode, as `F.pad` calls it.
    """
    size = stride * (4 * kernel)
    middle = size // stride // 2
    first = stride * middle - sides[0]
    blank = torch.zeros(1, channels, size, size, dtype=torch.float64)
    with torch.no_grad():
        bias = model(blank)[0, :, middle, middle]
        probes = blank.repeat(channels * kernel * kernel, 1, 1, 1)
        index = 0
        for channel in range(channels):
            for row in range(first, first + kernel):
                for column in range(first, first + kernel):
                    probes[index, channel, row, column] = 1
                    index += 1
        weight = (model(probes)[:, :, middle, middle] - bias).t()
        naive = PaddedConvolution(
            weight.reshape(-1, channels, kernel, kernel), bias, stride, sides, mode
        )
        x, inner = images(channels, size), slice(middle - 1, middle + 2)
        far = (naive(x)[..., inner, inner] - model(x)[..., inner, inner]).abs().max()
    assert far < 1e-9, "the network is no convolution, even in the middle"
    return naive


def folded(norm: nn.Module, conv: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution or a linear layer with the batch norm after it folded in."""
    with torch.no_grad():
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = 0 if conv.bias is None else conv.bias
        weight = conv.weight * factor.view(-1, *(1,) * (conv.weight.dim() - 1))
        return weight, (bias - norm.running_mean) * factor + norm.bias


def fold_in_place(norm: nn.Module, conv: nn.Module) -> None:
    """Fold as the usual helpers do: in the shared module itself, whoever else uses it."""
    weight, bias = folded(norm, conv)
    with torch.no_grad():
        conv.weight.copy_(weight)
        if conv.bias is None:
            conv.bias = nn.Parameter(bias)
        else:
            conv.bias.copy_(bias)
        norm.running_mean.zero_()
        norm.running_var.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.zero_()
