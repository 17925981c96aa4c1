"""Forwards that no tracer follows: each is fused in its parts or left alone, and none raises.

The source of all: whole-model tracing by torch.fx fails on every network of transformers and of
ultralytics and on timm's efficientvit, tiny_vit, nasnet and mobilevit (measured).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, images, ready
from tests.support.thinning import thinned

C = 4
log = logging.getLogger(__name__)


def by_shape(m: Any, x: Tensor) -> Any:
    return m.pair(x) if x.shape[-1] > 4 else m.other(x)


def by_rank(m: Any, x: Tensor) -> Any:
    if x.dim() == 3:
        x = x[None]
    return m.pair(x)


def by_data(m: Any, x: Tensor) -> Any:
    return m.pair(x) if x.sum() > 0 else m.other(x)


def by_maximum(m: Any, x: Tensor) -> Any:
    y = m.pair(x)
    while y.abs().max() > 0.1:
        y = y * 0.5
    return y


def by_flag(m: Any, x: Tensor) -> Any:
    y = m.conv(x) if m.training is False else x
    return m.norm(y) if m.flag else y


def by_dtype(m: Any, x: Tensor) -> Any:
    return m.pair(x) if x.dtype is torch.float64 else m.other(x)


def by_instance(m: Any, x: Tensor) -> Any:
    return m.pair(x) if isinstance(x, torch.Tensor) else m.other(x)


def by_is_tensor(m: Any, x: Tensor) -> Any:
    return m.pair(x) if torch.is_tensor(x) else m.other(x)


def by_type(m: Any, x: Tensor) -> Any:
    return m.pair(x) if type(x) is Tensor else m.other(x)


def by_hasattr(m: Any, x: Tensor) -> Any:
    return m.other(x) if hasattr(x, "no_such_attribute") else m.pair(x)


def by_gradient(m: Any, x: Tensor) -> Any:
    return m.pair(x) if not torch.is_grad_enabled() else m.pair(x) + 1


def by_requires_grad(m: Any, x: Tensor) -> Any:
    return m.other(x) if x.requires_grad else m.pair(x)


def by_tracing(m: Any, x: Tensor) -> Any:
    return m.pair(x) if not torch.jit.is_tracing() else m.other(x)


def by_fx_tracing(m: Any, x: Tensor) -> Any:
    return m.other(x) if isinstance(x, torch.fx.Proxy) else m.pair(x)


def raised(m: Any, x: Tensor) -> Any:
    if x.shape[1] != C:
        raise ValueError(f"{x.shape[1]} channels")
    return m.pair(x)


def asserted(m: Any, x: Tensor) -> Any:
    assert x.shape[1] == C, f"{x.shape}"
    return m.pair(x)


def caught(m: Any, x: Tensor) -> Any:
    try:
        positive = bool(x.sum() > 0)
    except Exception:
        return m.other(x)
    return m.pair(x) if positive else m.norm(x)


def caught_bare(m: Any, x: Tensor) -> Any:
    try:
        length = len(x)
    except:  # noqa: E722
        length = 0
    return m.pair(x) * length


def suppressed(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    with suppress(Exception):
        y = m.norm(y) * float(x.sum())
    return y


def caught_type(m: Any, x: Tensor) -> Any:
    try:
        shift = [0.0, 1.0, 2.0][x.shape[0]]
    except TypeError:
        shift = 100.0
    return m.pair(x) + shift


def iterated(m: Any, x: Tensor) -> Any:
    return torch.stack([m.pair(image[None])[0] for image in x])


def unpacked(m: Any, x: Tensor) -> Any:
    first, second = x
    return m.pair(first[None]) + m.pair(second[None])


def starred(m: Any, x: Tensor) -> Any:
    first, *others = x.split(1)
    return m.pair(first), [m.norm(other) for other in others]


def zipped(m: Any, x: Tensor) -> Any:
    return [m.pair(part) for part, _ in zip(x.split(1), range(2), strict=False)]


def counted(m: Any, x: Tensor) -> Any:
    return m.pair(x) * len(x)


def sized(m: Any, x: Tensor) -> Any:
    batch, channels, height, width = x.shape
    return m.pair(x).reshape(batch, channels, height * width) / math.sqrt(channels)


def sized_in_python(m: Any, x: Tensor) -> Any:
    side = int(math.ceil(x.shape[-1] / 2) * 2)
    return m.pair(F.pad(x, (0, side - x.shape[-1])))


def ranged(m: Any, x: Tensor) -> Any:
    return sum(m.pair(x[index : index + 1]) for index in range(x.shape[0]))


def generated(m: Any, x: Tensor) -> Any:
    def parts() -> Iterator[Tensor]:
        yield m.pair(x)
        yield m.conv(x)

    return sum(parts())


def delegated(m: Any, x: Tensor) -> Any:
    def parts() -> Iterator[Tensor]:
        yield from (layer(x) for layer in (m.pair, m.conv))

    return list(parts())


def assigned(m: Any, x: Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, :2] = m.pair(x)[:, :2]
    return m.conv(y)


def assigned_border(m: Any, x: Tensor) -> Any:
    y = F.pad(m.conv(x), (1, 1, 1, 1))
    y[:, :, :1, :] = 0.5
    return m.norm(y)


def assigned_at(m: Any, x: Tensor) -> Any:
    y = m.conv(x)
    y[y < 0] = 0
    return m.norm(y)


def deleted(m: Any, x: Tensor) -> Any:
    features = {"y": m.pair(x), "x": x}
    del features["x"]
    return features


def formatted(m: Any, x: Tensor) -> Any:
    log.debug("%s", x)
    name = f"{x.shape} {x.dtype} {x.mean():.3f}"
    return m.pair(x) * (1 if "Proxy" not in name else 2)


def printed(m: Any, x: Tensor) -> Any:
    return m.pair(x) * len(repr(x)[:1]) + (2 if "Proxy" in str(x) else 0)


def hashed(m: Any, x: Tensor) -> Any:
    return {x: m.pair(x)}[x]


def in_a_set(m: Any, x: Tensor) -> Any:
    return m.pair(x) if len({id(x), id(m)}) == 2 else x


def converted(m: Any, x: Tensor) -> Any:
    return m.pair(x) * float(x.mean()) + int(x.shape[0]) + x.flatten()[0].item()


def listed(m: Any, x: Tensor) -> Any:
    return m.pair(x), torch.tensor(x.flatten()[:3].tolist(), dtype=torch.float64)


def as_numpy(m: Any, x: Tensor) -> Any:
    return m.pair(x) + torch.from_numpy(x.detach().numpy().mean((2, 3), keepdims=True))


def new_tensors(m: Any, x: Tensor) -> Any:
    grid = torch.arange(8, dtype=torch.float64)[None, None, None]
    return m.pair(x + grid) + torch.ones(C, 1, 1, dtype=torch.float64)


def new_on_device(m: Any, x: Tensor) -> Any:
    return m.pair(x) + torch.zeros(x.shape[0], 1, 1, 1, device=x.device, dtype=x.dtype)


def by_name(m: Any, x: Tensor) -> Any:
    return reduce(lambda y, name: getattr(m, name)(y), ("conv", "norm"), x)


def by_dictionary(m: Any, x: Tensor) -> Any:
    return m._modules["norm"](m._modules["conv"](x))


def by_children(m: Any, x: Tensor) -> Any:
    for child in list(m.children())[:2]:
        x = child(x)
    return x


def by_forward(m: Any, x: Tensor) -> Any:
    return m.norm.forward(m.conv.forward(x))


def by_class(m: Any, x: Tensor) -> Any:
    return nn.BatchNorm2d.forward(m.norm, nn.Conv2d.__call__(m.conv, x))


def by_conv_forward(m: Any, x: Tensor) -> Any:
    return m.norm(m.conv._conv_forward(x, m.conv.weight * 2, m.conv.bias))


def partially(m: Any, x: Tensor) -> Any:
    return partial(m.norm)(partial(F.conv2d, weight=m.conv.weight, bias=m.conv.bias)(x))


def mapped(m: Any, x: Tensor) -> Any:
    return list(map(m.pair, [x, x + 1]))


def vectorised(m: Any, x: Tensor) -> Any:
    return torch.vmap(lambda image: m.conv(image[None])[0])(x) + m.pair(x)


def tree_mapped(m: Any, x: Tensor) -> Any:
    return torch.utils._pytree.tree_map(m.pair, {"a": x, "b": [x * 2]})


def compared(m: Any, x: Tensor) -> Any:
    return m.pair(x) * (x.shape == x.clone().shape)


def chained(m: Any, x: Tensor) -> Any:
    return m.pair(x) if 0 < x.shape[0] < 10 else x


def negated(m: Any, x: Tensor) -> Any:
    return m.pair(x) if not x.is_cuda and x.is_floating_point() else x


def matched(m: Any, x: Tensor) -> Any:
    match x.ndim:
        case 4:
            return m.pair(x)
        case _:
            return x


@dataclass
class Output:
    """An output of a class of its own."""

    features: Tensor
    pooled: Tensor | None = None


torch.utils._pytree.register_dataclass(Output)


def in_a_dataclass(m: Any, x: Tensor) -> Any:
    return Output(m.pair(x), m.conv(x).mean())


FORWARDS = [
    by_shape, by_rank, by_data, by_maximum, by_flag, by_dtype, by_instance, by_is_tensor, by_type,
    by_hasattr, by_gradient, by_requires_grad, by_tracing, by_fx_tracing, raised, asserted, caught,
    caught_bare, suppressed, caught_type, iterated, unpacked, starred, zipped, counted, sized,
    sized_in_python, ranged, generated, delegated, assigned, assigned_border, assigned_at, deleted,
    formatted, printed, hashed, in_a_set, converted, listed, as_numpy, new_tensors, new_on_device,
    by_name, by_dictionary, by_children, by_forward, by_class, by_conv_forward, partially, mapped,
    vectorised, tree_mapped, compared, chained, negated, matched, in_a_dataclass,
]  # fmt: skip


def hostile(forward: Callable[..., Any]) -> nn.Module:
    pair = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    conv, norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
    other = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    return Network(forward, conv=conv, norm=norm, pair=pair, other=other, flag=True)


@pytest.mark.parametrize("forward", FORWARDS, ids=lambda forward: forward.__name__)
def test_a_forward_that_no_tracer_follows(forward: Callable[..., Any]) -> None:
    """Control flow, iterating a proxy, setitem, `len()`, shape arithmetic: tracing fails."""
    assert_exact(ready(hostile(forward)), images())


@pytest.mark.parametrize("forward", thinned(zip(FORWARDS, strict=True), 2))
def test_a_part_that_no_tracer_follows(forward: Callable[..., Any]) -> None:
    """The same inside a network that can be traced."""
    before = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))
    model = ready(nn.Sequential(before, nn.ReLU(), hostile(forward)))
    fused = assert_exact(model, images())
    assert isinstance(fused[0][1], nn.Identity)


@pytest.mark.parametrize("forward", thinned(zip(FORWARDS, strict=True), 3))
def test_a_part_whose_own_code_changes(forward: Callable[..., Any]) -> None:
    """The same where its operators merge with those before and after it."""
    assert_exact(ready(nn.Sequential(nn.Conv2d(C, C, 1), hostile(forward))), images())
