"""What every fused network promises, asserted of one random network."""

import pickle
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

import reparam
from tests.random_networks.growing import random_program
from tests.random_networks.programs import Program, recorders, shrink
from tests.random_networks.reasons import assert_explained, assert_reasons
from tests.random_networks.vocabulary import Counted
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error
from tests.support.snapshot import Snapshot, have_equal_states


class WrongError(AssertionError):
    """The fused network computes something else."""


class DearerError(AssertionError):
    """The fused network does more work."""


class ChangedError(AssertionError):
    """Fusing changed the user's model, the inputs or the random state."""


class UnexplainedError(AssertionError):
    """The report does not say why something stays."""


@dataclass(frozen=True)
class Passed:
    """What was seen of a network that keeps all promises.

    Args:
        original: The operators that one forward executes.
        fused: The same after fusing.
        reasons: Why operators stayed.
    """

    original: OperatorCounts
    fused: OperatorCounts
    reasons: tuple[str, ...]


def check(program: Program) -> Passed:
    """Asserts all that a fused network promises."""
    with warnings.catch_warnings(), ExitStack() as stack:
        stack.callback(program.forget)
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        model = program.build().double()
        with untouched(model):
            fused = reparam.fuse(model)
        assert isinstance(fused, type(model))
        assert not any(module.training for module in fused.modules())
        calls = program.calls(torch.float64)
        counts = [assert_same(model, fused, call, program.seed) for call in calls]
        _check_use(program, fused, calls[-1])
        try:
            assert_reasons(model, fused.reparam_report)
            assert_explained(model, fused, fused.reparam_report, calls[-1])
        except AssertionError as problem:
            raise UnexplainedError(str(problem)) from None
        return Passed(*counts[-1], tuple(row.reason for row in fused.reparam_report.refused))


def assert_same(
    model: nn.Module, fused: nn.Module, inputs: tuple[Any, ...], seed: int
) -> tuple[OperatorCounts, OperatorCounts]:
    """Asserts equal outputs, equal effects and no more work; counts the work."""
    exact, result = observe(model, inputs, seed), observe(fused, inputs, seed)
    types = [
        [getattr(leaf, "dtype", type(leaf)) for leaf in tree_leaves(v)] for v in (result, exact)
    ]
    if types[0] != types[1]:
        raise WrongError("types of outputs differ")
    try:
        error = relative_error(result, exact)
    except AssertionError as problem:
        raise WrongError(str(problem)) from None
    if error > FLOAT64_BOUND:
        raise WrongError(f"relative error {error:.1e}")
    original, counts = count_operators(model, inputs), count_operators(fused, inputs)
    if counts.macs > original.macs:
        raise DearerError(f"multiply-adds: {counts}\noriginal: {original}")
    if counts.total > original.total:
        raise DearerError(f"operators: {counts}\noriginal: {original}")
    return original, counts


def observe(model: nn.Module, inputs: tuple[Any, ...], seed: int) -> Any:
    """The output, the inputs as the call leaves them, and what else can be seen of the call."""
    model, inputs = deepcopy(model), deepcopy(inputs)
    torch.manual_seed(seed)
    with torch.no_grad():
        output = model(*inputs)
    seen = {name: hook.seen for name, hook in recorders(model).items()}
    counted = {
        name: (module.calls, module.steps)
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, Counted)
    }
    return output, inputs, seen, counted, torch.get_rng_state()


def _check_use(program: Program, fused: nn.Module, inputs: tuple[Any, ...]) -> None:
    """What people do with a fused model; each network takes one of these."""
    kind, seed = program.seed % 7, program.seed
    if kind == 0:  # example inputs
        model = program.build().double()
        given = deepcopy(inputs)
        with untouched(model):
            with_inputs = reparam.fuse(model, inputs)
        same = [torch.equal(a, b) for a, b in zip(*map(tree_leaves, (inputs, given)), strict=True)]
        if not all(same):
            raise ChangedError("the example inputs changed")
        assert_reasons(model, with_inputs.reparam_report)
        assert_same(model, with_inputs, inputs, seed)
    elif kind == 1:  # in place
        model = program.build().double()
        result = reparam.fuse(model, inplace=True)
        assert result is model
        assert_same(fused, result, inputs, seed)
    elif kind == 2:  # fusing twice changes nothing
        twice = reparam.fuse(fused)
        assert not twice.reparam_report.fused, f"fused again: {twice.reparam_report}"
        assert have_equal_states(fused, twice), "fusing again changed weights"
        assert_same(fused, twice, inputs, seed)
    elif kind == 3 and "l_norm(" not in str(program) and "t_norm(" not in str(program):
        fused = reparam.fuse(program.build().double())  # of the classes that pickle finds
        assert_same(fused, pickle.loads(pickle.dumps(fused)), inputs, seed)
    elif kind == 4:  # a state goes into another copy of the model, fused alike
        other = reparam.fuse(program.build().double())
        with torch.no_grad():
            for tensor in other.state_dict().values():
                tensor.zero_()
        other.load_state_dict(fused.state_dict())
        assert_same(fused, other, inputs, seed)
    elif kind == 5:  # without checks of its own, nothing is different
        unverified = reparam.fuse(program.build().double(), verify=False)
        assert have_equal_states(fused, unverified), "verification changed the result"
    else:  # parametrized layers cannot be pickled
        assert_same(fused, deepcopy(fused), inputs, seed)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Raises if the model is not afterwards as it was, or its hooks saw a call."""
    before, hooks = Snapshot(model), _calls_of_hooks(model)
    yield
    changed = before.difference()
    if changed or _calls_of_hooks(model) != hooks:
        raise ChangedError(f"the user's model changed: {changed or 'hooks'}")


def _calls_of_hooks(model: nn.Module) -> dict[str, int]:
    return {name: len(hook.seen) for name, hook in recorders(model).items()}


def failure(program: Program) -> str:
    """What `check` says, in a line without numbers; empty where it passes."""
    try:
        check(program)
    except Exception as error:
        line = f"{type(error).__name__}: {error}".partition("\n")[0]
        return re.sub(r"\d\S*", "", line).partition("(")[0]
    return ""


def smallest_failing(seed: int) -> Program:
    """The network of a failing seed, shrunk while it fails in the same way."""
    program = random_program(seed)
    reason = failure(program)
    return shrink(program, lambda shorter: failure(shorter) == reason)
