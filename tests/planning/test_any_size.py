"""Never dearer at any size: what example inputs cost is no reason where others may come."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


def mixed(*convs: nn.Module) -> nn.Module:
    """Convolutions after something that is not affine; so their input is no model's input."""
    return nn.Sequential(nn.Sigmoid(), *convs).double().eval()


def valid(k: int, *, dilation: int = 1, middle: int = 2) -> nn.Module:
    """Small inputs make the most of what the second kernel cuts off."""
    return mixed(
        nn.Conv1d(4, middle, 1, bias=False), nn.Conv1d(middle, 4, k, dilation=dilation, bias=False)
    )


def padded() -> nn.Module:
    """Small inputs have more border than inside."""
    return mixed(nn.Conv1d(4, 3, 1, bias=False), nn.ZeroPad1d(2), nn.Conv1d(3, 4, 1, bias=False))


def strided() -> nn.Module:
    return mixed(
        nn.Conv2d(4, 2, 1, bias=False), nn.Conv2d(2, 4, 3, stride=2, bias=False), nn.ReLU()
    )


CASES = {
    "valid": (valid(3), (4, 3)),
    "dilated": (valid(3, dilation=2), (4, 5)),
    "longer": (valid(5), (4, 5)),
    "padded": (padded(), (4, 8)),
    "strided": (strided(), (4, 3, 3)),
}


@pytest.mark.parametrize("name", CASES)
def test_cheaper_for_the_example_alone(name: str) -> None:
    """At the size of the example one operator costs no more; at another it would."""
    model, shape = CASES[name]
    example = torch.randn(2, *shape, dtype=torch.float64)
    fused = reparam.fuse(model, (example,))
    for size in range(1, 20):
        x = torch.randn(1, 4, *(size,) * (len(shape) - 1), dtype=torch.float64)
        try:
            expected = run(model, (x,))
        except RuntimeError:  # too small
            continue
        assert relative_error(run(fused, (x,)), expected) <= 1e-12
        assert count_operators(fused, (x,)).macs <= count_operators(model, (x,)).macs, size
    if name != "padded":  # there the second convolution takes in the padding alone
        assert "at another size" in str(reparam.plan(model, (example,)).refused)


class Bound(nn.Module):
    """A program for one size."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = valid(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def test_a_program_has_one_size() -> None:
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    program = torch.export.export(Bound().double().eval(), (x,))
    fused = reparam.fuse(program)
    assert len(fused.reparam_report.fused) == 1
    assert relative_error(run(fused.module(), (x,)), run(program.module(), (x,))) <= 1e-12


def test_what_is_cheaper_at_any_size_is_still_taken() -> None:
    model = mixed(nn.Conv1d(4, 8, 1, bias=False), nn.Conv1d(8, 4, 3, padding=1, bias=False))
    x = torch.randn(2, 4, 9, dtype=torch.float64)
    fused = reparam.fuse(model, (x,))
    assert len(fused.reparam_report.fused) == 1
