"""`forward` set on the instance, `__call__` replaced, classes that are patched.

Tracing by torch.fx follows the class's `forward` only (measured).
"""

from __future__ import annotations

import types
from copy import deepcopy
from typing import Any

import pytest
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import differs, folded, images, ready
from tests.support.errors import relative_error, run

C = 4


def activated(self: Any, x: Tensor) -> Tensor:
    return type(self).forward(self, x).relu()


def shifted(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight, self.bias) + 1


@pytest.mark.parametrize("place", ["0", "1", "2", ""])
def test_a_forward_set_on_the_instance(place: str) -> None:
    """torch.fx takes the class's forward for the instance's own (measured)."""
    model = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), nn.Conv2d(C, C, 1)))
    owner = model.get_submodule(place)
    owner.forward = types.MethodType(activated, owner)
    plain = deepcopy(model)
    del plain.get_submodule(place).forward
    assert differs(plain, model, images())
    fused, x = reparam.fuse(model), images()
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-9


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.BatchNorm2d], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("method", ["__call__", "forward", "_conv_forward", "_call_impl"])
def test_a_subclass_that_runs_otherwise(kind: Any, method: str) -> None:
    """`__call__` replaced in a class: torch.fx follows forward only (measured)."""
    if method == "_conv_forward" and kind is nn.BatchNorm2d:
        kind = nn.Conv2d

    def otherwise(self: Any, *args: Any) -> Any:
        return getattr(kind, method)(self, *args).clamp(-0.1, 0.1)

    special: Any = type("Special", (kind,), {method: otherwise})
    first = special(C, C, 1) if kind is nn.Conv2d else nn.Conv2d(C, C, 1)
    second = special(C) if kind is nn.BatchNorm2d else nn.BatchNorm2d(C)
    model = ready(nn.Sequential(first, second))
    weight, bias = folded(second, first)
    assert differs(lambda x: F.conv2d(x, weight, bias), model, images())
    assert_exact(model, images())


def test_a_class_that_is_patched_while_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that patches `nn.Conv2d.forward` for everybody."""
    original = nn.Conv2d.forward
    model = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)))
    monkeypatch.setattr(nn.Conv2d, "forward", lambda self, x: original(self, x) * 2)
    expected = run(model, (images(),))
    with pytest.warns(UserWarning, match="differs by .* and was left alone"):
        fused = reparam.fuse(model)
    assert relative_error(run(fused, (images(),)), expected) <= 1e-9


def test_a_module_that_is_another_through_getattr() -> None:
    """A wrapper that hands on every attribute of what it wraps."""

    class Proxying(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight * 2, self.bias)

    model = ready(nn.Sequential(Proxying(nn.Conv2d(C, C, 1)), nn.BatchNorm2d(C)))
    assert_exact(model, images())


class CallsDoubled(nn.Module):
    """Its own `__call__` makes more of what its forward returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = super().__call__(x)
        return result * 2

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result


class AroundIt(nn.Module):
    """Branches beside such a part: with new code, it would be called as before."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.part = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1), CallsDoubled()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.part((self.a(x) + self.b(x)).relu())
        return result


@pytest.mark.parametrize("verify", [True, False])
def test_what_a_call_of_its_own_does_is_done_once(verify: bool) -> None:
    model, x = ready(AroundIt()), images()
    fused = reparam.fuse(model, verify=verify)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-9
