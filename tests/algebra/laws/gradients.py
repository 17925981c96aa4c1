"""The laws are differentiable: a fused kernel is a function of the parameters of its branches."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from reparam import AffineConv
from reparam.algebra.affine import identity
from reparam.algebra.axis_composition import Axis
from tests.algebra.laws.forms import Operator, apply, close, random_tensor, seeds

SAME = (Axis(3, 1, 1, 1, 1), Axis(3, 1, 1, 1, 1))
POINT = (Axis(), Axis())


def parameters(seed: int) -> dict[str, Tensor]:
    """All tensors of a block of three branches and a residual around two normalisations."""
    shapes = {
        "expand": (6, 4, 1, 1),
        "reduce": (4, 3, 3, 3),
        "point": (4, 4, 1, 1),
        "constant": (4,),
        "mean": (4,),
        "variance": (4,),
        "weight": (4,),
        "bias": (4,),
        "factor": (4,),
    }
    tensors = {n: random_tensor(s, seed + i) for i, (n, s) in enumerate(shapes.items())}
    tensors["variance"] = tensors["variance"].square() + 0.1
    return {name: tensor.requires_grad_() for name, tensor in tensors.items()}


def form(p: dict[str, Tensor]) -> AffineConv:
    x = identity("x")
    wide = Operator(p["reduce"], None, SAME, 2).form(Operator(p["expand"], None, POINT).form(x))
    point = Operator(p["point"], p["constant"], POINT).form(x)
    sum_ = wide.plus(point).normalize(p["mean"], p["variance"], p["weight"], p["bias"], 1e-3)
    return sum_.scale(p["factor"]).plus(x)


def original(p: dict[str, Tensor], x: Tensor) -> Tensor:
    wide = Operator(p["reduce"], None, SAME, 2)(Operator(p["expand"], None, POINT)(x))
    sum_ = wide + Operator(p["point"], p["constant"], POINT)(x)
    scale = p["weight"] * (p["variance"] + 1e-3).rsqrt()
    y = (sum_ - p["mean"][:, None, None]) * scale[:, None, None] + p["bias"][:, None, None]
    return y * p["factor"][:, None, None] + x


@given(seeds)
@settings(max_examples=20)
def test_gradients_are_those_of_the_branches(seed: int) -> None:
    p, x = parameters(seed), random_tensor((2, 4, 5, 6), seed)
    direction = random_tensor((2, 4, 5, 6), seed + 1)
    fused = torch.autograd.grad((apply(form(p), x) * direction).sum(), list(p.values()))
    branches = torch.autograd.grad((original(p, x) * direction).sum(), list(p.values()))
    for one, two in zip(fused, branches, strict=True):
        assert two.abs().max() > 0
        close(one, two)


@given(seeds)
@settings(max_examples=5)
def test_evaluation_leaves_the_parameters_alone(seed: int) -> None:
    """Kernels accumulate in place, but never in a parameter or in an earlier result."""
    p = parameters(seed)
    before = {name: tensor.detach().clone() for name, tensor in p.items()}
    with torch.no_grad():
        one = form(p).weights.evaluate()
        kept = [tensor.clone() for tensor in one]
        form(p).weights.evaluate()
    assert all(torch.equal(p[name], before[name]) for name in p)
    assert all(torch.equal(a, b) for a, b in zip(one, kept, strict=True))


@given(seeds, st.sampled_from((torch.float32, torch.bfloat16)))
@settings(max_examples=10)
def test_gradients_reach_parameters_of_any_dtype(seed: int, dtype: torch.dtype) -> None:
    weight = random_tensor((4, 4, 3, 3), seed, dtype).requires_grad_()
    kernel, _ = Operator(weight, None, SAME).form().scale(3.0).weights.evaluate()
    (gradient,) = torch.autograd.grad(kernel.sum(), weight)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, torch.full_like(weight, 3))


def test_a_long_chain_needs_no_recursion() -> None:
    x = identity()
    for _ in range(3000):
        x = x.scale(1.001).shift(0.001)
    kernel, bias = x.with_channels(1).weights.evaluate()
    expected = 1.0
    constant = 0.0
    for _ in range(3000):
        expected, constant = expected * 1.001, constant * 1.001 + 0.001
    close(kernel.view(1), torch.tensor([expected], dtype=torch.float64))
    close(bias.view(1), torch.tensor([constant], dtype=torch.float64))
