"""Forwards that ask what they got, or how they run: answered as in a run, or refused."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import _symbolic_trace as tracing

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4


class Asking(nn.Module):
    """Branches and their norm, which need new code, behind what some code makes of the input."""

    def __init__(self, prepare: Callable[..., Any]) -> None:
        super().__init__()
        self.prepare = prepare
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.other = nn.Conv2d(C, C, 1)

    def forward(self, x: Any) -> Tensor:
        y = self.prepare(x)
        z: Tensor = self.norm(self.conv(y) + self.other(y))
        return z


# -- What kind of value is it? --------------------------------------------------------------------

is_a, kind_of = isinstance, type


@functools.singledispatch
def doubled(x: Any) -> Any:
    return x


@doubled.register
def _(x: Tensor) -> Tensor:
    return x * 2


def by_jit(x: Any) -> Any:
    return x * 2 if torch.jit.isinstance(x, Tensor) else x


def by_jit_of_several(x: Any) -> Any:
    return x if torch.jit.isinstance(x, list[Tensor]) else x * 2


def by_pattern(x: Any) -> Any:
    match x:
        case Tensor():
            return x * 2
    return x


def by_another_name(x: Any) -> Any:
    return x * 2 if is_a(x, Tensor) else x


def by_class(x: Any) -> Any:
    return x * 2 if issubclass(x.__class__, Tensor) else x


def by_table_of_classes(x: Any) -> Any:
    return {Tensor: 2, nn.Parameter: 3}.get(x.__class__, 1) * x


def by_attribute(x: Any) -> Any:
    return x["image"] if hasattr(x, "keys") else x * 2


def by_unknown_attribute(x: Any) -> Any:
    return x * getattr(x, "factor", 2)


def by_callable(x: Any) -> Any:
    return x() if callable(x) else x * 2


def by_names(x: Any) -> Any:
    return x if "node" in dir(x) else x * 2


def by_tracing(x: Any) -> Any:
    return x if tracing.is_fx_symbolic_tracing() else x * 2


def by_overrides(x: Any) -> Any:
    return x if torch.overrides.has_torch_function((x,)) else x * 2


ANSWERED = [
    by_jit,
    doubled,
    by_pattern,
    by_class,
    by_table_of_classes,
    by_attribute,
    by_unknown_attribute,
    by_callable,
    by_names,
    by_tracing,
    by_overrides,
]


def by_type(x: Any) -> Any:
    return x * 2 if type(x) is Tensor else x


def by_type_under_another_name(x: Any) -> Any:
    return x * 2 if kind_of(x) is Tensor else x


def by_table_of_types(x: Any) -> Any:
    return {Tensor: 2}.get(type(x), 1) * x


def by_history(x: Any) -> Any:
    return x * 2 if x.grad_fn is None else x


def by_gradient(x: Any) -> Any:
    gradient = x.grad
    return x * 2 if gradient is None else x + gradient


def by_base(x: Any) -> Any:
    return x if x._base is not None else x * 2


def by_flag(x: Any) -> Any:
    return x if x.requires_grad is True else x * 2


def by_place(x: Any) -> Any:
    return x * 2 if x.is_cuda is False else x


def in_a_child(prepare: Callable[..., Any]) -> nn.Module:
    return ready(nn.Sequential(Asking(prepare), nn.ReLU(), Asking(lambda x: x)))


@pytest.mark.parametrize("prepare", ANSWERED, ids=lambda prepare: prepare.__name__)
@pytest.mark.parametrize("with_inputs", [False, True])
def test_what_is_true_of_a_tensor_is_answered(
    prepare: Callable[..., Any], with_inputs: bool
) -> None:
    model, x = in_a_child(prepare), images(C)
    fused = reparam.fuse(model, x) if with_inputs else reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


@pytest.mark.parametrize(
    "prepare",
    [
        by_jit_of_several,
        by_another_name,
        by_type,
        by_type_under_another_name,
        by_table_of_types,
        by_history,
        by_gradient,
        by_base,
        by_flag,
        by_place,
    ],
    ids=lambda prepare: prepare.__name__,
)
@pytest.mark.parametrize("verify", [True, False])
def test_what_a_value_is_for_python_itself_is_not_traced(
    prepare: Callable[..., Any], verify: bool
) -> None:
    model, x = in_a_child(prepare), images(C)
    fused = reparam.fuse(model, verify=verify)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 1


@pytest.mark.parametrize(
    "prepare",
    [
        lambda y: y["image"] if hasattr(y, "keys") else y * 2,
        lambda y: y["image"] if hasattr(y, "items") else y * 2,
        lambda y: y * 2 if hasattr(y, "shape") else y["image"],
        lambda y: y * (3 if getattr(y, "index", None) is None else 2),
    ],
    ids=["keys", "items", "shape", "index"],
)
def test_what_a_part_of_an_input_has_is_not_known(prepare: Callable[..., Any]) -> None:
    model, x = ready(nn.Sequential(OfMapping(prepare))), images(C)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, ({"x": x},)), run(model, ({"x": x},))) <= EXACT


class OfMapping(Asking):
    """The same behind a value of a mapping."""

    def forward(self, x: Any) -> Tensor:
        y = self.prepare(x["x"])
        result: Tensor = self.norm(self.conv(y) + y)
        return result


class MatchedTwice(Asking):
    """What arithmetic made of a layer's result is a tensor, too."""

    def forward(self, x: Any) -> Tensor:
        result: Tensor = self.prepare(self.prepare(self.norm(self.conv(x))) - 1)
        return result


def test_what_arithmetic_makes_of_a_tensor_is_one() -> None:
    model, x = ready(MatchedTwice(by_pattern)), images(C)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).total == 1


class BehindAQuestion(nn.Module):
    """A convolution and a norm whose block asks what arithmetic, or a layer, made of the input."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.make, self.block, self.norm = make, Asked(), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        normalised: Tensor = self.norm(self.block(self.make(x)))
        return normalised


class Asked(nn.Module):
    """Takes a tensor or a list of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)

    def forward(self, x: Any) -> Tensor:
        convolved: Tensor = self.conv(sum(x) if isinstance(x, list | tuple) else x)
        return convolved


@pytest.mark.parametrize(
    "make",
    [
        lambda x: x * 2,
        lambda x: -x.abs() + 1,
        nn.InstanceNorm2d(C),
        nn.ReflectionPad2d(1),
        nn.Upsample(scale_factor=2),
    ],
)
def test_what_a_layer_or_arithmetic_makes_of_the_input_is_a_tensor(
    make: Callable[[Tensor], Tensor],
) -> None:
    model, x = ready(BehindAQuestion(make)), images(C)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


def test_what_was_a_tensor_in_tracing_may_be_a_list_in_a_call() -> None:
    model, x = ready(BehindAQuestion(lambda x: x * 2)), images(C)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, ([x, x],)), run(model, ([x, x],))) <= EXACT


def test_which_factor_is_the_tensor_is_not_guessed() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.norm = Asked(), nn.BatchNorm2d(C)

        def forward(self, scale: Any, x: Any) -> Tensor:
            normalised: Tensor = self.norm(self.block(scale * x))
            return normalised

    model, x = ready(Scaled()), images(C)
    fused = reparam.fuse(model)
    for inputs in ((2.0, x), (x, 2.0)):
        assert relative_error(run(fused, inputs), run(model, inputs)) <= EXACT


class TakesBoth(nn.Module):
    """Runs its norm for tensors alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)

    def forward(self, x: Any) -> Tensor:
        if isinstance(x, Tensor):
            normalised: Tensor = self.norm(self.conv(x))
            return normalised
        result: Tensor = self.conv(x["image"])
        return result


def test_what_is_no_tensor_runs_the_code_as_it_was() -> None:
    model, x = ready(nn.Sequential(TakesBoth(), nn.ReLU())), images(C)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    for given in (x, {"image": x}):
        assert relative_error(run(fused, (given,)), run(model, (given,))) <= EXACT


# -- How does it run? -----------------------------------------------------------------------------

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gradients": torch.enable_grad,
    "no gradients": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
}

QUESTIONS: dict[str, Callable[[], bool]] = {
    "is_grad_enabled": torch.is_grad_enabled,
    "is_inference_mode_enabled": torch.is_inference_mode_enabled,
    "is_autocast_enabled": functools.partial(torch.is_autocast_enabled, "cpu"),
}


def under_its_name(question: str) -> Callable[..., Any]:
    arguments = getattr(QUESTIONS[question], "args", ())
    return lambda x: x * 2 if getattr(torch, question)(*arguments) else x


def under_another_name(question: str) -> Callable[..., Any]:
    asked = QUESTIONS[question]
    return lambda x: x * 2 if asked() else x


class Switch:
    """Asks where no code that is read can see it."""

    def __init__(self, question: Callable[[], bool]) -> None:
        self.question = question

    def __mul__(self, x: Tensor) -> Tensor:
        return x * (2 if self.question() else 1)


def inside_an_object(question: str) -> Callable[..., Any]:
    switch = Switch(QUESTIONS[question])
    return lambda x: switch * x


@pytest.mark.parametrize("asks", [under_its_name, under_another_name, inside_an_object])
@pytest.mark.parametrize("question", QUESTIONS)
def test_code_that_asks_for_a_mode_stays(asks: Callable[..., Any], question: str) -> None:
    model, x = in_a_child(asks(question)), images(C)
    fused = reparam.fuse(model)
    for mode in MODES.values():
        with mode():
            assert relative_error(fused(x).detach(), model(x).detach()) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 1


@pytest.mark.parametrize("asks", [under_its_name, under_another_name])
@pytest.mark.parametrize("question", QUESTIONS)
def test_code_that_asks_for_a_mode_is_seen_to(asks: Callable[..., Any], question: str) -> None:
    """Nobody runs it: what it asks shows while it is traced, or where it is read."""
    model, x = in_a_child(asks(question)), images(C)
    fused = reparam.fuse(model, verify=False)
    for mode in MODES.values():
        with mode():
            assert relative_error(fused(x).detach(), model(x).detach()) <= EXACT


# -- What is caught? ------------------------------------------------------------------------------


def flat_or_copied(x: Tensor) -> Tensor:
    try:
        return x.view(len(x), -1).view(x.shape)
    except RuntimeError:
        return x.reshape(len(x), -1).view(x.shape) * 2


TABLE = torch.randn(C, 7, 8, dtype=torch.float64)


def added_if_it_fits(x: Tensor) -> Tensor:
    try:
        return x + TABLE
    except RuntimeError:
        return x


@pytest.mark.parametrize("prepare", [flat_or_copied, added_if_it_fits])
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_forward_that_catches_chooses_in_every_run(
    prepare: Callable[..., Any], with_inputs: bool, verify: bool
) -> None:
    model, x = in_a_child(prepare), images(C)
    fused = reparam.fuse(model, x if with_inputs else None, verify=verify)
    for other in (x, images(C, 9), x.to(memory_format=torch.channels_last)):
        assert relative_error(run(fused, (other,)), run(model, (other,))) <= EXACT


# -- Is it a function? ----------------------------------------------------------------------------


class Varying(nn.Module):
    """A kernel or a factor that is another one in every call."""

    def __init__(self, forward: Callable[..., Tensor], **state: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(C, C, 3, 3))
        self.conv, self.norm = nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
        self.body = forward
        for name, value in state.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.norm(self.body(self, x))
        return y


def dropped_kernel(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, F.dropout(self.weight, 0.5, True), padding=1)


def dropped_kernel_by_default(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, F.dropout(self.weight), padding=1)


def dropped_channels(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, F.dropout2d(self.weight, 0.5, True), padding=1)


def noisy_kernel(self: Any, x: Tensor) -> Tensor:
    noise = torch.empty_like(self.weight).normal_()
    return F.conv2d(x, self.weight + 0.5 * noise, padding=1)


def masked_kernel(self: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, self.weight * torch.bernoulli(self.weight.sigmoid()), padding=1)


def by_numpy(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) * float(np.random.rand() + 0.5)


def by_python(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) * (random.random() + 0.5)


def by_iterator(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) + F.conv2d(x, self.weight, padding=1) * next(self.numbers)


def by_queue(self: Any, x: Tensor) -> Tensor:
    self.queue.append(self.queue.pop(0) + 1)
    return self.conv(x) * self.queue[-1]


def by_array(self: Any, x: Tensor) -> Tensor:
    self.array[0] += 1
    return self.conv(x) * float(self.array[0])


def by_closure(self: Any, x: Tensor) -> Tensor:
    return self.conv(x) * self.count()


def counter() -> Callable[[], int]:
    count = 0

    def step() -> int:
        nonlocal count
        count += 1
        return count

    return step


VARYING: list[tuple[Callable[..., Tensor], Callable[[], dict[str, Any]]]] = [
    (dropped_kernel, dict),
    (dropped_kernel_by_default, dict),
    (dropped_channels, dict),
    (noisy_kernel, dict),
    (masked_kernel, dict),
    (by_numpy, dict),
    (by_python, dict),
    (by_iterator, lambda: {"numbers": itertools.count(1)}),
    (by_queue, lambda: {"queue": [1, 2]}),
    (by_array, lambda: {"array": np.ones(1)}),
    (by_closure, lambda: {"count": counter()}),
]


@pytest.mark.parametrize(
    ("forward", "state"), VARYING, ids=[forward.__name__ for forward, _ in VARYING]
)
def test_what_is_no_function_of_its_input_stays(
    forward: Callable[..., Tensor], state: Callable[[], dict[str, Any]]
) -> None:
    x = images(C)
    model, twin = (ready(Varying(forward, **state())) for _ in range(2))
    twin.load_state_dict(model.state_dict())
    fused = reparam.fuse(model)
    seeds = torch.manual_seed, np.random.seed, random.seed
    results = []
    for network in (twin, fused):
        for seed in seeds:
            seed(3)
        results.append([run(network, (x,)) for _ in range(3)])
    expected, actual = results
    assert relative_error(expected[0], expected[1]) > EXACT  # it is none
    for before, after in zip(expected, actual, strict=True):
        assert relative_error(after, before) <= EXACT


CALLS = 0


def count_calls() -> None:
    global CALLS  # noqa: PLW0603 - what is tested
    CALLS += 1


class CountsInAGlobal(nn.Module):
    """What it returns does not tell that it sets a global variable."""

    def __init__(self, inside: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.inside = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C), inside

    def forward(self, x: Tensor) -> Tensor:
        if self.inside:
            count_calls()
        y: Tensor = 2 * self.norm(self.conv(x))
        return y.relu()


def test_a_forward_that_sets_a_global_variable_keeps_its_code() -> None:
    model, before = ready(nn.Sequential(CountsInAGlobal(True), nn.Conv2d(C, C, 1))), CALLS
    fused = reparam.fuse(model)
    assert before == CALLS
    assert "sets a global variable" in str(fused.reparam_report)
    assert relative_error(run(fused, (images(C),)), run(model, (images(C),))) <= EXACT
    assert before + 2 == CALLS
