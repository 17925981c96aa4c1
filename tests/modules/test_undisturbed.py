"""What runs inside of `undisturbed` leaves a module as it was; what would have changed is told."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from reparam.modules import all_or_nothing, undisturbed


@torch.library.custom_op("reparam_tests::zeroed", mutates_args=())
def zeroed(x: Tensor) -> Tensor:
    """Somebody's operator that writes to its operand and does not say so."""
    x.zero_()
    return x + 1


class Object:
    value = 1


class Held(nn.Module):
    """Whatever a module can hold."""

    shared = 1

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(3))
        self.register_buffer("mean", torch.rand(3))
        self.norm = nn.BatchNorm1d(3)
        self.table = nn.Embedding(2, 3, max_norm=0.1)
        self.plain, self.number = torch.rand(3), 1
        self.list, self.entries, self.set = [1], {"a": torch.rand(3)}, {1}
        self.object, self.array, self.iterator = Object(), np.ones(3), iter([1.0] * 9)
        self.generator = torch.Generator().manual_seed(0)
        count = 0

        def step() -> int:
            nonlocal count
            count += 1
            return count

        self.step = step


def norm_in_training(m: Any) -> None:
    torch.nn.functional.batch_norm(torch.eye(4, 3), m.norm.running_mean, m.norm.running_var,
                                   training=True)  # fmt: skip


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a buffer": lambda m: m.mean.add_(1),
    "a buffer through a view": lambda m: m.mean[1:].view(-1).mul_(2),
    "another buffer": lambda m: setattr(m, "mean", torch.ones(3)),
    "a parameter": lambda m: m.weight.zero_(),
    "a plain tensor": lambda m: m.plain.add_(1),
    "a tensor in a dictionary": lambda m: m.entries["a"].add_(1),
    "data of a parameter": lambda m: setattr(m.weight, "data", torch.ones(3)),
    "by an operator that says nothing": lambda m: zeroed(m.mean),
    "statistics": norm_in_training,
    "rows of a table": lambda m: m.table(torch.tensor([0, 1])),
    "whether it wants gradients": lambda m: m.weight.requires_grad_(False),
    "a number": lambda m: setattr(m, "number", 2),
    "a new attribute": lambda m: setattr(m, "other", 2),
    "a list": lambda m: m.list.append(2),
    "a dictionary": lambda m: m.entries.clear(),
    "a set": lambda m: m.set.add(2),
    "an object": lambda m: setattr(m.object, "value", 2),
    "an attribute of the class": lambda m: setattr(type(m), "shared", 2),
    "a variable of a closure": lambda m: m.step(),
    "an array": lambda m: m.array.fill(2),
    "an iterator": lambda m: next(m.iterator),
    "a generator": lambda m: torch.rand(3, generator=m.generator),
}


def seen(module: Any) -> list[Any]:
    """What can be seen of a module, but for what calling it would change."""
    tensors = [module.weight, module.mean, module.plain, module.norm.running_mean,
               module.norm.running_var, module.table.weight, *module.entries.values()]  # fmt: skip
    return [
        *((id(t), t.tolist(), t.requires_grad, t.data_ptr()) for t in tensors),
        sorted(vars(module)), module.number, list(module.list), sorted(module.set),
        module.object.value, type(module).shared, module.step.__closure__[0].cell_contents,
        module.array.tolist(), module.iterator.__reduce__()[2],
        module.generator.get_state().tolist(),
    ]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_is_put_back(change: str) -> None:
    module = nn.Sequential(Held(), nn.Linear(3, 3))
    before = seen(module[0])
    with torch.no_grad(), undisturbed(module) as watch:
        CHANGES[change](module[0])
    assert seen(module[0]) == before
    assert watch.changed
    assert not watch.drew


DRAWING: dict[str, Callable[[], Any]] = {
    "torch": lambda: torch.rand(3).tolist(),
    "python": random.random,
    "numpy": np.random.rand,
}


@pytest.mark.parametrize("name", DRAWING)
def test_random_numbers_go_on_where_they_were(name: str) -> None:
    with undisturbed(nn.Linear(3, 3)) as watch:
        first = DRAWING[name]()
    assert watch.drew
    assert not watch.changed
    assert DRAWING[name]() == first


def test_what_is_only_read_is_no_change() -> None:
    module = Held().eval()
    with undisturbed(module) as watch:
        module.norm(module.plain.expand(4, 3) * module.weight + module.mean)
    assert not watch.changed


def test_all_or_nothing() -> None:
    module, weight = nn.Sequential(nn.Linear(3, 3), nn.ReLU()), torch.rand(3)
    linear, values = module[0], weight.clone()

    class Other(nn.Linear):
        pass

    def change() -> None:
        with all_or_nothing(module, [weight]):
            linear.__class__ = Other
            linear._parameters["bias"] = None
            module[0], module.tag = nn.Identity(), 1
            weight.zero_()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        change()
    assert module[0] is linear
    assert type(linear) is nn.Linear
    assert linear.bias is not None
    assert not hasattr(module, "tag")
    assert torch.equal(weight, values)
