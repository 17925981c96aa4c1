"""Forwards that change something: tracing leaves everything as it was, and nothing is baked in.

Measured with tracing by torch.fx: counters count, caches fill with proxies, random numbers become
constants and averages stand still, with errors of 4e-3 to 4.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, images, ready
from tests.support.errors import run
from tests.support.snapshot import Snapshot
from tests.support.thinning import thinned

C = 4


class Statistics:
    """A plain object that a forward changes."""

    def __init__(self) -> None:
        self.calls = 0
        self.history: list[Any] = []
        self.limits = {"low": 0.0}


class Changing(Network):
    """A network with state in its class."""

    instances: ClassVar[list[int]] = []


def counter(m: Any, x: Tensor) -> Tensor:
    m.calls += 1
    return m.pair(x) * m.calls


def counter_buffer(m: Any, x: Tensor) -> Tensor:
    m.steps += 1
    return m.pair(x) * m.steps


def counter_in_place(m: Any, x: Tensor) -> Tensor:
    m.steps.add_(1)
    return m.pair(x) + m.steps


def counter_parameter(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.gain.mul_(0.5)
    return m.pair(x) * m.gain


def running_average(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.mean = 0.9 * m.mean + 0.1 * y.detach().mean()
    return m.norm(y) - m.mean


def running_average_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    m.mean.mul_(0.9).add_(y.detach().mean(), alpha=0.1)
    return m.norm(y) - m.mean


def running_average_by_copy(m: Any, x: Tensor) -> Tensor:
    y = m.pair(x)
    m.mean.copy_(y.mean())
    return y - m.mean


def statistics_written(m: Any, x: Tensor) -> Tensor:
    m.norm.running_mean.add_(1.0)
    return m.norm(m.conv(x))


def statistics_replaced(m: Any, x: Tensor) -> Tensor:
    m.norm.running_mean = m.norm.running_mean + 1.0
    return m.norm(m.conv(x))


def statistics_reset(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    m.norm.reset_running_stats()
    return y


def weight_written(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.conv.weight.mul_(0.5)
    return m.norm(m.conv(x))


def weight_data_written(m: Any, x: Tensor) -> Tensor:
    m.conv.weight.data *= 0.5
    return m.norm(m.conv(x))


def weight_data_assigned(m: Any, x: Tensor) -> Tensor:
    m.conv.weight.data = m.conv.weight.data * 0.5
    return m.norm(m.conv(x))


def weight_replaced(m: Any, x: Tensor) -> Tensor:
    m.conv.weight = nn.Parameter(m.conv.weight * 0.5)
    return m.norm(m.conv(x))


def weight_clamped_after(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.conv(x))
    m.conv.weight.data.clamp_(-0.01, 0.01)
    return y


def bias_standardised(m: Any, x: Tensor) -> Tensor:
    torch.nn.init.constant_(m.conv.bias, float(m.calls))
    m.calls += 1
    return m.norm(m.conv(x))


def cached(m: Any, x: Tensor) -> Tensor:
    if m.cache is None:
        m.cache = m.pair(x)
    return m.cache + m.other(x)


def cached_by_shape(m: Any, x: Tensor) -> Tensor:
    key = f"{x.shape[-2]}x{x.shape[-1]}"
    if key not in m.table:
        m.table[key] = torch.ones(x.shape[-1], dtype=torch.float64) * len(m.table)
    return m.pair(x) + m.table[key]


def cached_grid(m: Any, x: Tensor) -> Tensor:
    if getattr(m, "grid", None) is None or m.grid.shape[-1] != x.shape[-1]:
        m.grid = torch.arange(x.shape[-1], dtype=torch.float64)
    return m.pair(x) + m.grid


def appended(m: Any, x: Tensor) -> Tensor:
    m.seen.append(x.shape[0])
    return m.pair(x) * len(m.seen)


def features_kept(m: Any, x: Tensor) -> Tensor:
    m.features = m.conv(x)
    return m.norm(m.features)


def features_in_a_list(m: Any, x: Tensor) -> Tensor:
    m.seen[:] = [m.conv(x)]
    return m.norm(m.seen[0])


def features_in_a_deque(m: Any, x: Tensor) -> Tensor:
    m.queue.append(m.pair(x))
    return sum(m.queue)


def popped(m: Any, x: Tensor) -> Tensor:
    return m.pair(x) * (m.stack.pop() if m.stack else 0.5)


def nested_state(m: Any, x: Tensor) -> Tensor:
    m.nested["a"][0]["calls"] += 1
    return m.pair(x) * m.nested["a"][0]["calls"]


def tensors_in_a_list(m: Any, x: Tensor) -> Tensor:
    m.memory[0].add_(1.0)
    return m.pair(x) + m.memory[0]


def object_counter(m: Any, x: Tensor) -> Tensor:
    m.statistics.calls += 1
    return m.pair(x) * m.statistics.calls


def object_list(m: Any, x: Tensor) -> Tensor:
    m.statistics.history.append(1.0)
    m.statistics.limits["low"] -= 1.0
    return (m.pair(x) * len(m.statistics.history)).clamp(min=m.statistics.limits["low"])


def object_features(m: Any, x: Tensor) -> Tensor:
    m.statistics.features = m.conv(x)
    return m.norm(m.statistics.features)


def class_attribute(m: Any, x: Tensor) -> Tensor:
    type(m).total = getattr(type(m), "total", 0) + 1
    return m.pair(x)


def class_list(m: Any, x: Tensor) -> Tensor:
    type(m).instances.append(1)
    return m.pair(x)


def parameters_scaled(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        for parameter in m.pair.parameters():
            parameter.mul_(0.5)
    return m.pair(x)


def parameters_clamped(m: Any, x: Tensor) -> Tensor:
    y = m.pair(x)
    for parameter in m.parameters():
        parameter.data.clamp_(-0.1, 0.1)
    return y


def buffer_through_the_dictionary(m: Any, x: Tensor) -> Tensor:
    m._buffers["steps"].add_(1)
    return m.pair(x) * m.steps


def flag_flipped(m: Any, x: Tensor) -> Tensor:
    m.flag = not m.flag
    return m.pair(x) if m.flag else m.other(x)


def registered(m: Any, x: Tensor) -> Tensor:
    if not hasattr(m, "late"):
        m.register_buffer("late", torch.full((C, 1, 1), 2.0, dtype=torch.float64))
    return m.pair(x) * m.late


def module_added(m: Any, x: Tensor) -> Tensor:
    if not hasattr(m, "activation"):
        m.activation = nn.ReLU()
    return m.activation(m.pair(x))


def module_swapped(m: Any, x: Tensor) -> Tensor:
    m.pair, m.other = m.other, m.pair
    return m.pair(x)


def module_removed(m: Any, x: Tensor) -> Tensor:
    if hasattr(m, "other"):
        del m.other
    return m.pair(x)


def hook_added(m: Any, x: Tensor) -> Tensor:
    handle = m.pair.register_forward_hook(lambda module, args, output: output * 2)
    y = m.pair(x)
    handle.remove()
    return y


def mode_changed(m: Any, x: Tensor) -> Tensor:
    m.pair.eval()
    return m.pair(x)


def frozen(m: Any, x: Tensor) -> Tensor:
    m.conv.requires_grad_(False)
    return m.norm(m.conv(x))


def drawn(m: Any, x: Tensor) -> Tensor:
    return m.pair(x) * random.random()


def drawn_by_numpy(m: Any, x: Tensor) -> Tensor:
    return m.pair(x) * float(np.random.rand())


def drawn_by_torch(m: Any, x: Tensor) -> Tensor:
    return m.pair(x) + torch.rand(C, 1, 1, dtype=torch.float64)


def drawn_like(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x) + torch.rand_like(x)) + m.other(x).bernoulli(0.5)


def drawn_in_place(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    return m.norm(y) + y.clone().normal_()


def drawn_integer(m: Any, x: Tensor) -> Tensor:
    return m.pair(x.roll(int(torch.randint(0, 8, ())), -1))


def drawn_and_seeded(m: Any, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return m.pair(x) + torch.rand(C, 1, 1, dtype=torch.float64)


def dropped(m: Any, x: Tensor) -> Tensor:
    return m.norm(F.dropout(m.conv(x), 0.5, training=True))


def dropped_by_choice(m: Any, x: Tensor) -> Tensor:
    return m.pair(x) if random.random() < 0.5 else m.other(x)


def path_dropped(m: Any, x: Tensor) -> Tensor:
    keep = x.new_empty(x.shape[0], 1, 1, 1).bernoulli_(0.5)
    return x + m.pair(x) * keep


def gradients_off(m: Any, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    return m.pair(x)


def default_dtype(m: Any, x: Tensor) -> Tensor:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return m.pair(x) + torch.ones(C, 1, 1)
    finally:
        torch.set_default_dtype(before)


FORWARDS = [
    counter, counter_buffer, counter_in_place, counter_parameter, running_average,
    running_average_in_place, running_average_by_copy, statistics_written, statistics_replaced,
    statistics_reset, weight_written, weight_data_written, weight_data_assigned, weight_replaced,
    weight_clamped_after, bias_standardised, cached, cached_by_shape, cached_grid, appended,
    features_kept, features_in_a_list, features_in_a_deque, popped, nested_state,
    tensors_in_a_list, object_counter, object_list, object_features, class_attribute,
    class_list, parameters_scaled, parameters_clamped, buffer_through_the_dictionary,
    flag_flipped, registered, module_added, module_swapped, module_removed,
    hook_added, mode_changed, frozen, drawn, drawn_by_numpy, drawn_by_torch, drawn_like,
    drawn_in_place, drawn_integer, drawn_and_seeded, dropped, dropped_by_choice, path_dropped,
    gradients_off, default_dtype,
]  # fmt: skip


def changing(forward: Callable[..., Any]) -> nn.Module:
    def pair() -> nn.Module:
        return nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))

    model = Changing(forward, conv=nn.Conv2d(C, C, 1), norm=nn.BatchNorm2d(C), pair=pair(),
                    other=pair(), gain=torch.ones(C, 1, 1))  # fmt: skip
    model.register_buffer("steps", torch.zeros(()))
    model.register_buffer("mean", torch.zeros(()))
    model.calls, model.flag, model.cache = 0, False, None
    model.seen, model.stack, model.table = [], [3.0, 2.0, 1.0], {}
    model.nested = {"a": [{"calls": 0}]}
    model.memory = [torch.zeros(C, 1, 1, dtype=torch.float64)]
    model.statistics = Statistics()
    model.queue = collections.deque(maxlen=2)
    return model


@pytest.fixture(autouse=True)
def gradients_stay_on() -> Any:
    yield
    torch.set_grad_enabled(True)


@pytest.mark.parametrize(
    ("forward", "where"), thinned(product(FORWARDS, ("model", "part", "merging")), 2)
)
def test_a_forward_that_changes_something(forward: Callable[..., Any], where: str) -> None:
    """A counter, a cache, an average, weights or randomness in forward (tracing by torch.fx)."""
    model = changing(forward)
    if where != "model":
        between = nn.ReLU() if where == "part" else nn.Identity()
        model = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), between, model)
    before = Changing.__dict__.get("total"), list(Changing.instances)
    reparam.plan(ready(model), images())
    assert (Changing.__dict__.get("total"), Changing.instances) == before
    assert_exact(model, images(), calls=4)


def test_planning_changes_nothing_that_a_snapshot_sees() -> None:
    """The check itself: a forward that counts is seen by a snapshot."""
    model = ready(changing(counter))
    before = Snapshot(model)
    run(model, (images(),))
    with pytest.raises(AssertionError, match="changed"):
        before.assert_unchanged()
