"""One rule serves every spelling of an operator: module, function, method, in place, ATen.

Each network below says the same in another way. All must fuse to the same operators.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

aten = torch.ops.aten
EXACT = 1e-12
C = 4
Spelling = Callable[[Any, Tensor], Tensor]
POINT, IMAGE = partial(nn.Conv2d, C, C, 1), partial(nn.Conv2d, C, C, 3)


@dataclass(frozen=True)
class Family:
    """Ways to write one operator.

    Args:
        spellings: The ways; each is given the network, whose parts it may use, and a value.
        parts: What the network consists of besides a convolution before and one after.
        shape: Shape of the input.
        total: Operators that are left.
        before: What comes before the operator.
        after: What comes after it.
    """

    spellings: dict[str, Spelling]
    parts: Callable[[], dict[str, nn.Module | Tensor]] = dict
    shape: tuple[int, ...] = (2, C, 6, 7)
    total: int = 1
    before: Callable[[], nn.Module] = POINT
    after: Callable[[], nn.Module] = IMAGE


class Network(nn.Module):
    def __init__(self, family: Family, spelling: Spelling) -> None:
        super().__init__()
        self.spelling = spelling
        self.before, self.after = family.before(), family.after()
        for name, part in family.parts().items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.spelling(self, self.before(x)))


def convolution() -> dict[str, nn.Module | Tensor]:
    return {"op": nn.Conv2d(C, 2 * C, 3, 2, padding=(0, 0), dilation=2, groups=2)}


class Numbers(nn.Module):
    """Numbers of channels, as a network keeps them."""

    def __init__(self, *numbers: int) -> None:
        super().__init__()
        self.register_buffer("index", torch.tensor(numbers))


def pair() -> dict[str, nn.Module | Tensor]:
    return {"op": nn.Conv2d(C, 3, 3), "other": nn.Conv2d(C, 5, 3, bias=False)}


def transposed() -> dict[str, nn.Module | Tensor]:
    return {"op": nn.ConvTranspose2d(C, 2 * C, 3, 2, 1, 1, groups=2)}


def weights(m: Any) -> tuple[Tensor, Tensor]:
    return m.op.weight, m.op.bias


def statistics(m: Any) -> tuple[Tensor, ...]:
    return m.op.running_mean, m.op.running_var, m.op.weight, m.op.bias


def gamma() -> dict[str, nn.Module | Tensor]:
    return {"gamma": torch.rand(C, 1, 1) + 0.5}


def branch() -> dict[str, nn.Module | Tensor]:
    return {"op": nn.Conv2d(C, C, 1)}


def outer(m: Any) -> Tensor:
    return m.op.weight.t()


def tokens_by_shape(m: Any, x: Tensor) -> Tensor:
    b, c, h, w = x.shape
    return x.reshape(b, c, h * w).permute(0, 2, 1)


OPERATORS = {
    "convolution": Family(
        {
            "module": lambda m, x: m.op(x),
            "module, keyword": lambda m, x: m.op(input=x),
            "F": lambda m, x: F.conv2d(x, *weights(m), 2, 0, 2, 2),
            "F, tuples": lambda m, x: F.conv2d(x, *weights(m), (2, 2), (0, 0), (2, 2), 2),
            "F, keywords": lambda m, x: F.conv2d(
                input=x, groups=2, stride=2, bias=m.op.bias, dilation=[2], weight=m.op.weight
            ),
            "F, valid": lambda m, x: F.conv2d(x, *weights(m), 2, "valid", 2, 2),
            "torch": lambda m, x: torch.conv2d(x, *weights(m), 2, 0, 2, 2),
            "torch.convolution": lambda m, x: torch.convolution(
                x, *weights(m), [2, 2], [0, 0], [2, 2], False, [0, 0], 2
            ),
            "aten.conv2d": lambda m, x: aten.conv2d(
                x, *weights(m), [2, 2], [0, 0], [2, 2], 2
            ),
            "aten.conv2d.default": lambda m, x: aten.conv2d.default(
                x, *weights(m), [2, 2], [0, 0], [2, 2], 2
            ),
            "aten.convolution.default": lambda m, x: aten.convolution.default(
                x, *weights(m), [2, 2], [0, 0], [2, 2], False, [0, 0], 2
            ),
        },
        convolution,
        (2, C, 11, 12),
        after=partial(nn.Conv2d, 2 * C, 1, 1),
    ),
    "transposed convolution": Family(
        {
            "module": lambda m, x: m.op(x),
            "F": lambda m, x: F.conv_transpose2d(x, *weights(m), 2, 1, 1, 2),
            "F, keywords": lambda m, x: F.conv_transpose2d(
                x, m.op.weight, m.op.bias, groups=2, output_padding=1, padding=1, stride=(2, 2)
            ),
            "torch": lambda m, x: torch.conv_transpose2d(x, *weights(m), 2, 1, 1, 2),
            "aten": lambda m, x: aten.conv_transpose2d.input(
                x, *weights(m), [2, 2], [1, 1], [1, 1], 2
            ),
            "aten.convolution": lambda m, x: aten.convolution.default(
                x, *weights(m), [2, 2], [1, 1], [1, 1], True, [1, 1], 2
            ),
        },
        transposed,
        before=nn.Identity,
        after=partial(nn.BatchNorm2d, 2 * C),
    ),
    "batch norm": Family(
        {
            "module": lambda m, x: m.op(x),
            "module, keyword": lambda m, x: m.op(input=x),
            "F": lambda m, x: F.batch_norm(x, *statistics(m), False, 0.1, m.op.eps),
            "F, keywords": lambda m, x: F.batch_norm(
                running_var=m.op.running_var, bias=m.op.bias, eps=m.op.eps, input=x,
                weight=m.op.weight, running_mean=m.op.running_mean,
            ),
            "torch": lambda m, x: torch.batch_norm(
                x, *weights(m), m.op.running_mean, m.op.running_var, False, 0.1, m.op.eps, False
            ),
            "aten": lambda m, x: aten.batch_norm.default(
                x, *weights(m), m.op.running_mean, m.op.running_var, False, 0.1, m.op.eps, False
            ),
            "formula": lambda m, x: (x - m.op.running_mean[:, None, None])
            * (m.op.weight / (m.op.running_var + m.op.eps).sqrt())[:, None, None]
            + m.op.bias[:, None, None],
        },
        lambda: {"op": nn.BatchNorm2d(C, eps=1e-3)},
    ),
    "instance norm by fixed statistics": Family(
        {
            "module": lambda m, x: m.op(x),
            "F": lambda m, x: F.instance_norm(
                x, *statistics(m), use_input_stats=False, eps=m.op.eps
            ),
            "torch": lambda m, x: torch.instance_norm(
                x, *weights(m), m.op.running_mean, m.op.running_var, False, 0.1, m.op.eps, False
            ),
            "aten": lambda m, x: aten.instance_norm.default(
                x, *weights(m), m.op.running_mean, m.op.running_var, False, 0.1, m.op.eps, False
            ),
        },
        lambda: {"op": nn.InstanceNorm2d(C, 1e-3, affine=True, track_running_stats=True)},
    ),
    "scale by a number": Family(
        {
            "*": lambda m, x: x * 1.5,
            "number first": lambda m, x: 1.5 * x,
            "operator": lambda m, x: operator.mul(x, 1.5),
            "*=": lambda m, x: operator.imul(x, 1.5),
            "torch": lambda m, x: torch.mul(x, 1.5),
            "torch, keywords": lambda m, x: torch.mul(other=1.5, input=x),
            "torch.multiply": lambda m, x: torch.multiply(x, 1.5),
            "method": lambda m, x: x.mul(1.5),
            "method, keyword": lambda m, x: x.mul(other=1.5),
            "in place": lambda m, x: x.mul_(1.5),
            "aten": lambda m, x: aten.mul.Tensor(x, 1.5),
            "aten.Scalar": lambda m, x: aten.mul.Scalar(x, 1.5),
            "aten, in place": lambda m, x: aten.mul_.Tensor(x, 1.5),
            "/": lambda m, x: x / (1 / 1.5),
            "torch.div": lambda m, x: torch.div(x, 1 / 1.5, rounding_mode=None),
            "div_": lambda m, x: x.div_(1 / 1.5),
            "true_divide": lambda m, x: x.true_divide(1 / 1.5),
            "minus minus": lambda m, x: -(-x * 1.5),
        }
    ),
    "scale by channel": Family(
        {
            "*": lambda m, x: x * m.gamma,
            "tensor first": lambda m, x: m.gamma * x,
            "*=": lambda m, x: operator.imul(x, m.gamma),
            "torch": lambda m, x: torch.mul(input=x, other=m.gamma),
            "method": lambda m, x: x.mul(m.gamma),
            "in place": lambda m, x: x.mul_(m.gamma),
            "aten": lambda m, x: aten.mul.Tensor(x, m.gamma),
            "batch axis": lambda m, x: x * m.gamma.unsqueeze(0),
            "view": lambda m, x: x * m.gamma.flatten().view(1, -1, 1, 1),
            "index": lambda m, x: x * m.gamma.flatten()[None, :, None, None],
            "expand": lambda m, x: x * m.gamma.clone().reshape(C, 1, 1),
            "reciprocal": lambda m, x: x / (1 / m.gamma),
            "addcmul": lambda m, x: torch.addcmul(torch.zeros_like(m.gamma), x, m.gamma),
        },
        gamma,
    ),
    "shift by channel": Family(
        {
            "+": lambda m, x: x + m.gamma,
            "tensor first": lambda m, x: m.gamma + x,
            "+=": lambda m, x: operator.iadd(x, m.gamma),
            "torch": lambda m, x: torch.add(x, m.gamma),
            "torch, alpha": lambda m, x: torch.add(x, m.gamma / 2, alpha=2),
            "method": lambda m, x: x.add(other=m.gamma),
            "in place": lambda m, x: x.add_(m.gamma / 2, alpha=2),
            "aten": lambda m, x: aten.add.Tensor(x, m.gamma),
            "minus minus": lambda m, x: x - -m.gamma,
            "sub": lambda m, x: torch.sub(x, m.gamma, alpha=-1),
            "rsub": lambda m, x: -torch.rsub(x, -m.gamma),
            "negated": lambda m, x: -(-m.gamma - x),
            "addcmul": lambda m, x: torch.addcmul(x, m.gamma, m.gamma / m.gamma),
        },
        gamma,
    ),
    "sum of branches": Family(
        {
            "+": lambda m, x: x + m.op(x),
            "swapped": lambda m, x: m.op(x) + x,
            "torch": lambda m, x: torch.add(x, m.op(x)),
            "keywords": lambda m, x: torch.add(other=m.op(x), input=x),
            "method": lambda m, x: x.add(m.op(x)),
            "in place": lambda m, x: m.op(x).add_(x),
            "+=": lambda m, x: operator.iadd(m.op(x), x),
            "aten": lambda m, x: aten.add.Tensor(x, m.op(x)),
            "alpha": lambda m, x: torch.add(x, m.op(x) * 0.5, alpha=2),
            "builtin sum": lambda m, x: sum([x, m.op(x)]),
            "minus": lambda m, x: x - -m.op(x),
            "stack": lambda m, x: torch.stack([x, m.op(x)]).sum(0),
            "stack, mean": lambda m, x: torch.stack((x, m.op(x)), dim=0).mean(dim=0) * 2,
        },
        branch,
    ),
    "average pool": Family(
        {
            "module": lambda m, x: m.op(x),
            "F": lambda m, x: F.avg_pool2d(x, 2),
            "F, keywords": lambda m, x: F.avg_pool2d(input=x, stride=(2, 2), kernel_size=2),
            "F, all": lambda m, x: F.avg_pool2d(x, (2, 2), None, 0, False, True, None),
            "divisor": lambda m, x: F.avg_pool2d(x, 2, divisor_override=2) * 0.5,
            "unpadded": lambda m, x: F.avg_pool2d(x, 2, count_include_pad=False),
            "aten": lambda m, x: aten.avg_pool2d.default(x, [2, 2], [2, 2]),
            "aten, no stride": lambda m, x: aten.avg_pool2d.default(x, [2, 2]),
        },
        lambda: {"op": nn.AvgPool2d(2)},
        after=partial(nn.BatchNorm2d, C),
    ),
    "padding": Family(
        {
            "module": lambda m, x: m.op(x),
            "constant": lambda m, x: m.constant(x),
            "F": lambda m, x: F.pad(x, (1, 1, 1, 1)),
            "F, list": lambda m, x: F.pad(x, [1, 1, 1, 1], "constant", 0),
            "F, keywords": lambda m, x: F.pad(value=0.0, mode="constant", pad=(1,) * 4, input=x),
            "F, all axes": lambda m, x: F.pad(x, (1, 1, 1, 1, 0, 0)),
            "F, twice": lambda m, x: F.pad(F.pad(x, (1, 1)), (0, 0, 1, 1)),
            "F, crop": lambda m, x: F.pad(F.pad(x, (2, 1, 1, 1)), (-1, 0)),
            "aten": lambda m, x: aten.constant_pad_nd.default(x, [1, 1, 1, 1]),
            "aten.pad": lambda m, x: aten.pad.default(x, [1, 1, 1, 1], "constant", 0.0),
        },
        lambda: {"op": nn.ZeroPad2d(1), "constant": nn.ConstantPad2d(1, 0.0)},
        before=partial(nn.Conv2d, C, C, 1, bias=False),
    ),
    "nothing": Family(
        {
            "Identity": lambda m, x: m.op(x),
            "Dropout": lambda m, x: m.dropout(x),
            "F.dropout": lambda m, x: F.dropout(x, 0.3, m.training),
            "F.dropout2d": lambda m, x: F.dropout2d(x, p=0.3, training=False),
            "torch.dropout": lambda m, x: torch.dropout(x, 0.3, False),
            "aten.dropout": lambda m, x: aten.dropout.default(x, 0.3, False),
            "contiguous": lambda m, x: x.contiguous(),
            "clone": lambda m, x: x.clone(),
            "torch.clone": lambda m, x: torch.clone(x),
            "times one": lambda m, x: x * 1,
            "plus nothing": lambda m, x: x + 0.0,
            "leaky": lambda m, x: F.leaky_relu(x, 1.0),
        },
        lambda: {"op": nn.Identity(), "dropout": nn.Dropout(0.3)},
    ),
    "linear": Family(
        {
            "module": lambda m, x: m.op(x),
            "F": lambda m, x: F.linear(x, *weights(m)),
            "keywords": lambda m, x: F.linear(bias=m.op.bias, weight=m.op.weight, input=x),
            "@": lambda m, x: x @ outer(m) + m.op.bias,
            "matmul": lambda m, x: torch.matmul(x, outer(m)).add(m.op.bias),
            "method": lambda m, x: x.matmul(outer(m)).add_(m.op.bias),
            "mm": lambda m, x: x.mm(outer(m)) + m.op.bias,
            "addmm": lambda m, x: torch.addmm(m.op.bias, x, outer(m)),
            "aten": lambda m, x: aten.linear.default(x, *weights(m)),
            "aten.addmm": lambda m, x: aten.addmm.default(m.op.bias, x, outer(m)),
            "two halves": lambda m, x: F.linear(x, m.op.weight / 2, m.op.bias) + x @ (outer(m) / 2),
        },
        lambda: {"op": nn.Linear(C, C)},
        (3, C),
        before=partial(nn.Linear, C, C),
        after=partial(nn.Linear, C, 3),
    ),
    "tokens": Family(
        {
            "methods": lambda m, x: x.flatten(2).transpose(1, 2),
            "torch": lambda m, x: torch.transpose(torch.flatten(x, 2), 1, 2),
            "keywords": lambda m, x: x.flatten(start_dim=2).transpose(dim0=-1, dim1=-2),
            "module": lambda m, x: m.op(x).swapaxes(1, 2),
            "permute": lambda m, x: x.flatten(2, -1).permute(0, 2, 1),
            "permute, list": lambda m, x: torch.permute(x.flatten(-2), [0, 2, 1]),
            "permute first": lambda m, x: x.permute((0, 2, 3, 1)).flatten(1, 2),
            "aten": lambda m, x: aten.transpose.int(aten.flatten.using_ints(x, 2), 1, 2),
            "movedim": lambda m, x: x.flatten(2).movedim(1, -1),
            "movedim, two": lambda m, x: torch.movedim(x, (2, 3), (1, 2)).flatten(1, 2),
            "moveaxis": lambda m, x: torch.moveaxis(x.flatten(2), -1, 1),
            "swapdims": lambda m, x: torch.swapdims(x.flatten(2), 2, 1),
            "unflatten": lambda m, x: x.flatten(2).unflatten(2, (2, -1)).flatten(2).transpose(1, 2),
        },
        lambda: {"op": nn.Flatten(2)},
        after=partial(nn.Linear, C, C),
    ),
    "tokens by size": Family(
        {
            "flatten": lambda m, x: x.flatten(2).transpose(1, 2),
            "reshape": lambda m, x: x.reshape(x.shape[0], C, -1).transpose(1, 2),
            "view, sizes": lambda m, x: x.view(x.size(0), x.size(1), -1).transpose(1, 2),
            "view, last": lambda m, x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1]),
            "view, number": lambda m, x: x.permute(0, 2, 3, 1).reshape(x.size()[0], -1, C),
            "unpacked": tokens_by_shape,
        },
        before=partial(nn.BatchNorm2d, C),
        after=partial(nn.Linear, C, C),
    ),
    "position": Family(
        {
            "one": lambda m, x: x[:, :, 1, -1],
            "ellipsis": lambda m, x: x[..., 1, 6],
            "two steps": lambda m, x: x[:, :, 1][..., -1],
            "permuted": lambda m, x: x.permute(0, 2, 3, 1)[:, 1, 6],
            "tokens": lambda m, x: x.flatten(2).transpose(1, 2)[:, 13],
        },
        before=partial(nn.BatchNorm2d, C),
        after=partial(nn.Linear, C, 3),
    ),
    "every other": Family(
        {
            "slices": lambda m, x: x[:, :, ::2, ::2],
            "ellipsis": lambda m, x: x[..., 0::2, None:None:2],
            "pool": lambda m, x: F.avg_pool2d(x, 1, 2),
            "one by one": lambda m, x: x[:, :, ::2][..., ::2],
        }
    ),
    "crop": Family(
        {
            "slices": lambda m, x: x[:, :, 1:-1, 1:-1],
            "pad": lambda m, x: F.pad(x, (-1, -1, -1, -1)),
            "one by one": lambda m, x: x[..., :-1, 1:][:, :, 1:][..., :-1],
        },
        before=partial(nn.Conv2d, C, C, 3, padding=1),
        after=partial(nn.BatchNorm2d, C),
    ),
    "global pool": Family(
        {
            "method": lambda m, x: x.mean((2, 3)),
            "module": lambda m, x: m.op(x).flatten(1),
            "F": lambda m, x: torch.flatten(F.adaptive_avg_pool2d(x, 1), 1),
            "torch": lambda m, x: torch.mean(x, dim=[-2, -1]),
            "keepdim": lambda m, x: x.mean([2, 3], keepdim=True).flatten(1),
            "aten": lambda m, x: aten.mean.dim(x, [2, 3]),
            "index": lambda m, x: m.op(x)[:, :, 0, 0],
            "index, ellipsis": lambda m, x: m.op(x)[..., 0, 0],
            "index, one by one": lambda m, x: m.op(x)[..., 0][:, :, -1],
            "squeeze": lambda m, x: m.op(x).squeeze(-1).squeeze(-1),
            "squeeze, both": lambda m, x: torch.squeeze(m.op(x), dim=(2, 3)),
            "squeeze, method": lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2),
            "keepdim, squeeze": lambda m, x: x.mean((-1, -2), True).squeeze((2, 3)),
            "and back": lambda m, x: x.mean((2, 3))[:, :, None, None].flatten(1),
            "unsqueeze": lambda m, x: x.mean((2, 3)).unsqueeze(-1).unsqueeze(2).flatten(1),
            "view": lambda m, x: (y := m.op(x)).view(y.shape[0], y.shape[1]),
        },
        lambda: {"op": nn.AdaptiveAvgPool2d((1, 1))},
        total=2,
        before=partial(nn.BatchNorm2d, C),
        after=partial(nn.Linear, C, 3),
    ),
    "side by side": Family(
        {
            "torch": lambda m, x: torch.cat([m.op(x), m.other(x)], 1),
            "keyword": lambda m, x: torch.cat(tensors=(m.op(x), m.other(x)), dim=-3),
            "concat": lambda m, x: torch.concat((m.op(x), m.other(x)), dim=1),
            "concatenate": lambda m, x: torch.concatenate((m.op(x), m.other(x)), 1),
            "aten": lambda m, x: aten.cat([m.op(x), m.other(x)], 1),
            "aten.cat.default": lambda m, x: aten.cat.default([m.op(x), m.other(x)], 1),
        },
        pair,
        after=partial(nn.BatchNorm2d, 8),
    ),
    "a part": Family(
        {
            "chunk": lambda m, x: x.chunk(2, 1)[0],
            "chunk, keyword": lambda m, x: torch.chunk(x, chunks=2, dim=1)[0],
            "split": lambda m, x: x.split(2, dim=1)[0],
            "split, keyword": lambda m, x: x.split(split_size=2, dim=-3)[0],
            "torch.split": lambda m, x: torch.split(x, 2, 1)[0],
            "sections": lambda m, x: torch.split(x, [2, 1, 1], dim=1)[0],
            "tensor_split": lambda m, x: x.tensor_split(2, 1)[0],
            "tensor_split, at": lambda m, x: torch.tensor_split(x, [2], dim=1)[0],
            "slice": lambda m, x: x[:, :2],
            "slice, ellipsis": lambda m, x: x[:, :-2, ...],
            "numbers": lambda m, x: x[:, [0, 1]],
            "narrow": lambda m, x: x.narrow(1, 0, 2),
            "torch.narrow": lambda m, x: torch.narrow(x, dim=1, start=0, length=2),
            "index_select": lambda m, x: x.index_select(1, m.of.index[:2]),
            "aten.chunk": lambda m, x: aten.chunk(x, 2, 1)[0],
            "aten.split": lambda m, x: aten.split.Tensor(x, 2, 1)[0],
            "aten.split_with_sizes": lambda m, x: aten.split_with_sizes(x, [2, 2], 1)[0],
            "aten.slice": lambda m, x: aten.slice.Tensor(x, 1, 0, 2),
            "aten.narrow": lambda m, x: aten.narrow.default(x, 1, 0, 2),
        },
        lambda: {"of": Numbers(0, 1, 2)},
        after=partial(nn.BatchNorm2d, 2),
    ),
    "shuffle": Family(
        {
            "module": lambda m, x: m.op(x),
            "F": lambda m, x: F.channel_shuffle(x, 2),
            "torch": lambda m, x: torch.channel_shuffle(x, groups=2),
            "aten": lambda m, x: aten.channel_shuffle.default(x, 2),
            "numbers": lambda m, x: x[:, [0, 2, 1, 3]],
            "numbers in a tensor": lambda m, x: x[:, m.of.index],
        },
        lambda: {"op": nn.ChannelShuffle(2), "of": Numbers(0, 2, 1, 3)},
        before=partial(nn.Conv2d, C, 4, 1),
    ),
}  # fmt: skip


CASES = [
    pytest.param(family, spelling, id=f"{name}: {spelling}")
    for name, family in OPERATORS.items()
    for spelling in family.spellings
]


def network(family: Family, spelling: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = Network(family, family.spellings[spelling]).double().eval()
    return randomise_batch_norm(model, 0), torch.randn(family.shape, dtype=torch.float64)


def fused_counts(family: Family, spelling: str) -> tuple[int, int, int]:
    """All operators but padding, those that are convolutions and so on, and multiply-adds."""
    model, x = network(family, spelling)
    counts = count_operators(reparam.fuse(model), (x,))
    return counts.total - counts.pads, counts.affine, counts.macs


@pytest.mark.parametrize(("family", "spelling"), CASES)
def test_every_spelling_gives_the_same_numbers(family: Family, spelling: str) -> None:
    """Those of the first spelling: the table says the same in every row."""
    model, x = network(family, spelling)
    first, _ = network(family, next(iter(family.spellings)))
    assert relative_error(run(model, (x,)), run(first, (x,))) <= EXACT
    assert relative_error(run(reparam.fuse(model), (x,)), run(model, (x,))) <= EXACT


@pytest.mark.parametrize(("family", "spelling"), CASES)
def test_every_spelling_fuses_to_the_same_operators(family: Family, spelling: str) -> None:
    counts = fused_counts(family, spelling)
    assert counts[0] == family.total
    assert counts == fused_counts(family, next(iter(family.spellings)))


class Standardised(nn.Conv2d):
    """A kernel that forward computes from its parameter."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / weight.flatten(1).norm(dim=1)[:, None, None, None], self.bias)


@pytest.mark.parametrize(
    "conv",
    [
        lambda: parametrizations.weight_norm(IMAGE()),
        lambda: parametrizations.weight_norm(IMAGE(), dim=1),
        lambda: parametrizations.spectral_norm(IMAGE()),
        lambda: Standardised(C, C, 3),
    ],
    ids=["weight_norm", "weight_norm, columns", "spectral_norm", "in forward"],
)
def test_a_kernel_computed_from_parameters_is_a_kernel(conv: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise_batch_norm(nn.Sequential(conv(), nn.BatchNorm2d(C)).double().eval(), 0)
    x = torch.randn(2, C, 6, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).total == 1


class _Halved(nn.AvgPool2d):
    pass


class _Pooled(nn.AdaptiveAvgPool2d):
    pass


@pytest.mark.parametrize("pool", [_Halved(2), _Pooled(2)], ids=["average", "adaptive"])
def test_a_pool_by_another_name_is_the_same_pool(pool: nn.Module) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.BatchNorm2d(C), pool, nn.Conv2d(C, C, 1))
    model = randomise_batch_norm(net.double().eval(), 0)
    x = torch.randn(2, C, 6, 8, dtype=torch.float64)
    fused = reparam.fuse(model, x, verify=False)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0
