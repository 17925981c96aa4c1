"""Ways to call a network that are not the one it was made with: sizes, layouts, modes, methods."""

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tests.random_networks.programs import OPTIONS, Program, recorders, seeded
from tests.random_networks.scope import is_healthy
from tests.random_networks.state import Alternating, Remembering
from tests.random_networks.untraceable import Counted

Mode = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Call:
    """One way to call a network.

    Args:
        inputs: The arguments by position.
        options: The arguments by name.
        method: The method; the module itself where it is empty.
        mode: A mode of torch.
        times: How often in a row.
    """

    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    method: str = ""
    mode: Mode = torch.no_grad
    times: int = 1


def observe(model: nn.Module, call: Call, seed: int) -> Any:
    """The outputs, the inputs as the calls leave them, and what else can be seen of the calls."""
    model, inputs, options = fresh(model), deepcopy(call.inputs), deepcopy(call.options)
    method = getattr(model, call.method) if call.method else model
    with seeded(seed):
        with call.mode():
            outputs = [method(*inputs, **options) for _ in range(call.times)]
        numbers = torch.get_rng_state(), hash(random.getstate()), float(np.random.rand())
    seen = {name: hook.seen for name, hook in recorders(model).items()}
    named = list(model.named_modules(remove_duplicate=False))
    counted = {name: (m.calls, m.steps) for name, m in named if isinstance(m, Counted)}
    kept = {name: m.memory() for name, m in named if isinstance(m, Remembering)}
    kept = tree_map_only(Tensor, Tensor.nan_to_num, kept)
    places = [module.moved_to(0) for module in closures(model)]
    observed = outputs, inputs, options, seen, counted, kept, places, numbers
    return tree_map_only(Tensor, Tensor.detach, observed)


def copied(model: nn.Module) -> nn.Module:
    """A copy of a model, which may keep tensors with a history."""
    values = [value for module in model.modules() for value in vars(module).values()]
    values += [entry for value in values if isinstance(value, dict) for entry in value.values()]
    tensors = [value for value in values if isinstance(value, Tensor) and not value.is_leaf]
    return deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in tensors})


def fresh(model: nn.Module) -> nn.Module:
    """A copy of a model whose closures, which all copies share, start from the beginning."""
    model = copied(model)
    for module in closures(model):
        module.moved_to(0)
    return model


def closures(model: nn.Module) -> list[Alternating]:
    """The modules that hold a closure, which copies share."""
    return [module for module in model.modules() if isinstance(module, Alternating)]


def is_comparable(observed: Any) -> bool:
    """Whether there is an output, and an error can be measured against all of it."""
    leaves: list[Tensor] = []
    tree_map_only(Tensor, leaves.append, observed[0])
    numbers = [leaf for leaf in leaves if leaf.is_floating_point() and leaf.numel()]
    return bool(leaves) and all(map(is_healthy, numbers))


# what may be different


def with_shapes(program: Program, change: Callable[[int, int], int]) -> Call:
    """The network on inputs of other sizes; `change` gets an axis and its size."""
    generator = torch.Generator().manual_seed(program.seed + 1)
    shapes = [tuple(map(change, range(len(s)), s)) for s in program.input_shapes]
    numbers = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    return Call(program.packed(numbers))


def of_batch(size: int) -> Callable[[Program], Call]:
    return lambda program: with_shapes(program, lambda axis, n: n if axis else size)


def larger(program: Program) -> Call:
    return with_shapes(program, lambda axis, n: n + (3 if axis > 1 else 0))


def wider(program: Program) -> Call:
    return with_shapes(program, lambda axis, n: n + (4 if axis == 3 else 0))


def smaller(program: Program) -> Call:
    """By two, but no axis becomes one that broadcasts: fused code may refuse to be given that."""
    return with_shapes(program, lambda axis, n: max(n - 2, min(n, 2)) if axis > 1 else n)


def longer(program: Program) -> Call:
    """Tokens: more of them."""
    return with_shapes(program, lambda axis, n: n + (2 if axis == 1 else 0))


def channels_last(program: Program) -> Call:
    """The same numbers in the other order of memory."""
    inputs = program.calls(torch.float64)[0]
    return Call(
        tree_map_only(Tensor, lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1), inputs)
    )


def strided(program: Program) -> Call:
    """Every second element of something larger."""
    inputs = program.calls(torch.float64)[0]
    return Call(tree_map_only(Tensor, lambda x: x.repeat_interleave(2, -1)[..., ::2], inputs))


def in_mode(*modes: Mode) -> Callable[[Program], Call]:
    @contextmanager
    def entered() -> Iterator[None]:
        with ExitStack() as stack:
            for mode in modes:
                stack.enter_context(mode())
            yield

    return lambda program: Call(program.calls(torch.float64)[0], mode=entered)


def repeated(program: Program) -> Call:
    return Call(program.calls(torch.float64)[0], times=3)


def with_option(program: Program) -> Call:
    """One setting that is mostly left out, or all."""
    options = program.modules[-1].options()
    chosen = options[program.seed % 3 :][:1] or options
    values = {name: eval(OPTIONS[name][1]) for name in chosen}
    return Call(program.calls(torch.float64)[0], options=values)


def first_half(program: Program) -> Call:
    """The method that runs the first half, called from outside."""
    return Call(program.calls(torch.float64)[0], method="forward_features")


def autocast() -> AbstractContextManager[Any]:
    return torch.autocast("cpu", torch.bfloat16)


VARIATIONS: dict[str, Callable[[Program], Call]] = {
    "a batch of one": of_batch(1),
    "a batch of five": of_batch(5),
    "an empty batch": of_batch(0),
    "larger": larger,
    "wider": wider,
    "smaller": smaller,
    "longer": longer,
    "channels last": channels_last,
    "strided": strided,
    "gradients": in_mode(torch.enable_grad),
    "inference mode": in_mode(torch.inference_mode),
    "autocast": in_mode(torch.no_grad, autocast),
    "autocast with gradients": in_mode(torch.enable_grad, autocast),
    "three times": repeated,
}
"""Ways to call any network."""


def variations(program: Program, count: int) -> dict[str, Call]:
    """Some ways to call a network, and all that it has of its own."""
    rng = random.Random(f"calls/{program.seed}")
    ways = {name: VARIATIONS[name] for name in rng.sample(list(VARIATIONS), count)}
    if program.modules[-1].options():
        ways["an option"] = with_option
    if program.modules[-1].halves():
        ways["forward_features"] = first_half
    if any(word in str(program) for word in SUCCESSIONS):
        ways["three times"] = repeated
    return {name: way(program) for name, way in ways.items()}


SUCCESSIONS = ("Cycled(", "Rotating(", "Alternating(", "Countdown(", "Difference(", "NumpyScale(")
"""Modules whose next call does something else."""
