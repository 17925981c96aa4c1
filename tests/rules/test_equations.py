"""Products with constants in other words: equations, integers, and a normalised parameter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
K = 3

Forward = Callable[[Any, Tensor], Tensor]


def network(forward: Forward) -> nn.Module:
    model = Network(
        forward,
        conv=nn.Conv2d(C, C, 3),
        norm=nn.BatchNorm2d(C),
        layer=nn.Linear(C, C),
        rows=nn.BatchNorm1d(C),
        text=torch.randn(K, C),
        down=torch.randn(2, C),
        up=torch.randn(K, 2),
        column=torch.randn(K, 1),
        gain=torch.rand(C) + 0.5,
    )
    model.register_buffer("counts", torch.arange(1, C + 1).view(C, 1, 1))
    model.register_buffer("flags", (torch.arange(C) % 2 == 0).view(C, 1, 1))
    model.register_buffer("single", torch.tensor([2]))
    model.register_buffer("scalar", torch.tensor(3))
    return ready(model)


def features(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.norm(m.conv(x))
    return y


FOLDED: dict[str, Forward] = {
    "a matrix": lambda m, x: torch.einsum("bchw,kc->bkhw", features(m, x), m.text),
    "a matrix before": lambda m, x: torch.einsum("kc,bchw->bkhw", m.text, features(m, x)),
    "spaces": lambda m, x: torch.einsum("b c h w, k c -> b k h w", features(m, x), m.text),
    "a list": lambda m, x: torch.einsum("bchw,kc->bkhw", [features(m, x), m.text]),
    "two matrices": lambda m, x: torch.einsum("bchw,rc,kr->bkhw", features(m, x), m.down, m.up),
    "a factor": lambda m, x: torch.einsum("bchw,c->bchw", features(m, x), m.gain),
    "unnamed axes": lambda m, x: torch.einsum("...chw,kc->...khw", features(m, x), m.text),
    "normalised": lambda m, x: F.conv2d(
        features(m, x), F.normalize(m.text, dim=-1)[..., None, None]
    ),
    "normalised in an equation": lambda m, x: torch.einsum(
        "bchw,kc->bkhw", features(m, x), F.normalize(m.text, p=1.0, dim=1)
    ),
    "integers": lambda m, x: (features(m, x) * m.counts - m.counts) / m.single + m.scalar,
    "integers in place": lambda m, x: features(m, x).mul_(m.counts).add_(m.scalar),
    "integers first": lambda m, x: m.counts - features(m, x) * m.single,
    "flags": lambda m, x: features(m, x) * m.flags + m.flags,
    "a product of integers": lambda m, x: torch.addcmul(m.conv(x), m.conv(x), m.counts),
}


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_product_with_constants_is_one_operator(name: str, dtype: torch.dtype) -> None:
    model, x = network(FOLDED[name]).to(dtype), images().to(dtype)
    if dtype is torch.float64:
        assert_exact(model, x, total=1)
    with_inputs = name == "unnamed axes"
    fused = reparam.fuse(model, *([x] if with_inputs else []))
    assert count_operators(fused, (x,)).total == 1, str(fused.reparam_report)
    assert run(fused, (x,)).dtype == dtype
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-5


@pytest.mark.parametrize("equation", ["bc,kc->bk", "kc,bc->bk", "...c,kc->...k"])
def test_rows_of_features(equation: str) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        values = (m.text, m.layer(x)) if equation.startswith("kc") else (m.layer(x), m.text)
        return torch.einsum(equation, *values)

    assert_exact(network(forward), images()[:, :, 0, 0], total=1)


STAYING: dict[str, Forward] = {
    "axes in another order": lambda m, x: torch.einsum("bchw,kc->bhwk", features(m, x), m.text),
    "a new axis": lambda m, x: torch.einsum("bchw,kc->bkchw", features(m, x), m.text),
    "an axis less": lambda m, x: torch.einsum("bchw,c->bhw", features(m, x), m.gain),
    "positions added up": lambda m, x: torch.einsum("bchw,kc->bk", features(m, x), m.text),
    "one that broadcasts": lambda m, x: torch.einsum("bchw,kc->bkhw", features(m, x), m.column),
    "no result named": lambda m, x: torch.einsum("bchw,zc", features(m, x), m.text),
    "without a batch": lambda m, x: torch.einsum("chw,kc->khw", features(m, x)[0], m.text),
    "two values": lambda m, x: torch.einsum("bchw,bdhw->bcd", features(m, x), features(m, x)),
    "a diagonal": lambda m, x: torch.einsum("bchh,kc->bkh", features(m, x)[..., :5, :5], m.text),
    "integers that are rounded": lambda m, x: features(m, x) // m.counts,
}


@pytest.mark.parametrize("name", STAYING)
def test_what_is_no_map_of_one_axis_stays(name: str) -> None:
    fused = assert_exact(network(STAYING[name]), images())
    assert count_operators(fused, (images(),)).batch_norms == 0


@pytest.mark.parametrize("name", ["counts", "flags", "scalar"])
def test_integers_that_may_overflow_stay(name: str) -> None:
    """Bytes times integers are integers, as large as these can be."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return F.conv2d((x * getattr(m, name)).to(m.conv.weight.dtype), m.conv.weight)

    model, pixels = network(forward), (images() * 80).clamp(0, 255).to(torch.uint8)
    model.counts = model.counts.to(torch.uint8) * 60
    for inputs in ((), (pixels,)):
        fused = reparam.fuse(model, *inputs)
        assert relative_error(run(fused, (pixels,)), run(model, (pixels,))) <= EXACT
