"""Random networks from the whole vocabulary of convolutional networks, the same for one seed."""

import random
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from tests.random_networks import behaviour, motifs, steps, structures
from tests.random_networks.programs import ModuleSource, Program, seeded
from tests.random_networks.scope import RejectedError, Scope, is_healthy

MAKERS: dict[Callable[[Scope], str], int] = {
    motifs.convolution_and_norm: 8,
    motifs.parallel_branches: 10,
    motifs.stacked_branches: 3,
    motifs.scaled_tree: 2,
    motifs.scaled_parts: 3,
    motifs.summed_stacks: 2,
    motifs.assigned_border: 6,
    motifs.view: 5,
    motifs.regrouped: 2,
    motifs.channels_last_linear: 2,
    motifs.partitioned: 2,
    motifs.chunks: 2,
    motifs.concatenated: 2,
    motifs.called_again: 4,
    motifs.weight_read: 2,
    motifs.tied: 2,
    structures.library_module: 6,
    structures.container: 3,
    structures.hooked: 1,
    structures.untraceable: 4,
    structures.several_inputs: 2,
    structures.same_block_twice: 1,
    steps.convolution: 8,
    steps.functional_convolution: 3,
    steps.transposed_convolution: 2,
    steps.linear: 5,
    steps.batch_norm: 6,
    steps.pool: 3,
    steps.pad: 4,
    steps.scale_or_shift: 8,
    steps.layer_scale: 3,
    steps.add_values: 8,
    steps.broadcast_sum: 1,
    steps.activation: 7,
    steps.nothing: 3,
    steps.rounded_input: 1,
    steps.normalised_by_data: 1,
    motifs.view_write: 2,
    steps.gate: 2,
    motifs.shape_read: 2,
    behaviour.question: 4,
    behaviour.answer: 3,
    behaviour.option: 4,
    behaviour.draw: 3,
    behaviour.succession: 3,
    behaviour.remnant: 4,
    behaviour.observed: 3,
    behaviour.shared: 1,
}


def random_program(seed: int) -> Program:
    """A network in evaluation mode; `print` it to read it, `build` it to run it."""
    for attempt in range(100):
        rng = random.Random(f"{seed}/{attempt}")
        with seeded(rng.randrange(2**32)), warnings.catch_warnings():
            # a warning turned into an error would make another network
            warnings.simplefilter("ignore")
            program = _grow(rng, seed)
            if _is_sound(program):
                return program
    raise AssertionError(f"no sound network in 100 attempts at seed {seed}")


def _grow(rng: random.Random, seed: int) -> Program:
    rank = rng.choice([0, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3])
    channels = rng.choice([2, 3, 4, 6])
    size = [rng.randint(5, 11 if rank < 3 else 6) for _ in range(rank)]
    if rank == 1 and rng.random() < 0.5:  # tokens
        size, channels = [channels], rng.randint(4, 7)
    shapes = [(rng.choice([1, 2, 3]), channels, *size)] * rng.choice([1, 1, 1, 2])
    modules: list[ModuleSource] = []
    scope = Scope(rng, [torch.randn(shape) for shape in shapes], modules)
    signature = list(scope.inputs)
    container, optional = "", False
    if rng.random() < 0.06:
        container = rng.choice(["list", "dict"])
        keys = ["0", "1"] if container == "list" else ["'a'", "'b'"]
        scope.steps += [f"{v} = values[{k}]" for v, k in zip(scope.inputs, keys, strict=False)]
        signature = ["values"]
    elif len(shapes) == 2 and rng.random() < 0.3:
        optional = True
        scope.steps.append("v1 = -v0 if v1 is None else v1")
        signature[-1] += "=None"
    _fill(scope, rng.randint(3, 14))
    modules.append(scope.close("Network", _result(scope), signature))
    return Program(tuple(modules), tuple(shapes), seed, container, optional).without_unused()


def _fill(scope: Scope, count: int) -> None:
    makers, weights = [*MAKERS, _block], [*MAKERS.values(), 10]
    for _ in range(8 * count):
        scope.attempt(scope.rng.choices(makers, weights)[0])
        if len(scope.steps) >= count:
            return


def _block(scope: Scope) -> str:
    """A module class of its own, at most two deep."""
    if scope.depth == 2:
        raise RejectedError
    known = [m.name for m in scope.modules]
    if known and scope.chance(0.3):
        return structures.block_call(scope, scope.choice(known))
    taken = [scope.values[scope.pick(2, 3, 4, 5)] for _ in range(scope.choice([1, 1, 1, 2]))]
    inner = Scope(scope.rng, [x.clone() for x in taken], scope.modules, scope.depth + 1)
    _fill(inner, scope.rng.randint(1, 5))
    if not inner.steps:
        raise RejectedError
    name = f"Block{len(scope.modules)}"
    last = list(inner.values)[-1]
    results = [last] * 8 + [f"({last}, {scope.choice(list(inner.values))})"]
    results += [f"Pair({scope.choice(list(inner.values))}, {last})", f'{{"out": {last}}}']
    scope.modules.append(inner.close(name, scope.choice(results)))
    return structures.block_call(scope, name)


def _result(scope: Scope) -> str:
    """What forward returns: the last value, and perhaps some from the middle."""
    names = [name for name in scope.values if name not in scope.inputs]
    if not names:
        return scope.inputs[0]
    last = names[-1]
    middle = scope.choice(names)
    forms = [last] * 6 + [f"({last}, {middle})", f'{{"out": {last}, "middle": {middle}}}']
    forms += [f"[{last}, ({middle}, {scope.choice(names)})]", f"({last}, {last}.shape[0])"]
    forms += [f"Pair({middle}, {last})", f"({last}, None)", f"dict(out={last}, inner=({middle},))"]
    unread = [n for n in names if not any(n in step.partition(" = ")[2] for step in scope.steps)]
    if len(unread) > 1:
        forms += [f"({', '.join(unread)})"] * 4
    return scope.choice(forms)


def _is_sound(program: Program) -> bool:
    """Whether the built network computes something that an error can be measured against."""
    if not any("self.m" in module.source() for module in program.modules):
        return False
    try:
        with torch.no_grad():
            leaves = tree_leaves([program.build()(*call) for call in program.calls()])
    except Exception:
        return False
    return all(is_healthy(leaf) for leaf in leaves if isinstance(leaf, Tensor))
