"""What every fused network promises, asserted of one random network."""

import pickle
import random
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import reparam
from reparam import ReparamError
from tests.random_networks.calls import (
    SUCCESSIONS,
    Call,
    closures,
    copied,
    fresh,
    is_comparable,
    observe,
    variations,
)
from tests.random_networks.growing import random_program
from tests.random_networks.programs import Program, recorders, seeded, shrink
from tests.random_networks.reasons import assert_explained, assert_reasons
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error
from tests.support.snapshot import Snapshot, have_equal_states

SIZES = ("a batch of one", "a batch of five", "larger", "wider", "smaller", "longer")
"""Ways to call a network at which a fused one may not be dearer, either."""

NOT_PICKLED = ("l_norm(", "t_norm(", "Alternating(", "DrawnScale(")
"""Parametrized layers, and modules with closures or generators."""

ROUNDED = {torch.float32: 1e-3, torch.bfloat16: float("inf")}
"""How far rounding alone may take a network."""


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
        model = ready(program)
        with untouched(model):
            fused = reparam.fuse(model)
        assert isinstance(fused, type(model))
        assert not any(module.training for module in fused.modules())
        calls = program.calls(torch.float64)
        if _asks_for_inputs(fused, calls[0], program.seed):
            fused = reparam.fuse(model, calls[0])
            counts = [assert_same(model, fused, call, program.seed) for call in calls]
            return Passed(*counts[-1], tuple(row.reason for row in fused.reparam_report.refused))
        counts = [assert_same(model, fused, call, program.seed) for call in calls]
        _check_calls(program, model, fused)
        _check_use(program, fused, calls[-1])
        try:
            assert_reasons(model, fused.reparam_report)
            assert_explained(model, fused, fused.reparam_report, calls[-1])
        except AssertionError as problem:
            raise UnexplainedError(str(problem)) from None
        return Passed(*counts[-1], tuple(row.reason for row in fused.reparam_report.refused))


def _asks_for_inputs(fused: nn.Module, inputs: tuple[Any, ...], seed: int) -> bool:
    """Whether a fused network says that it is to be fused for inputs like these.

    A norm that may get values of two axes or of three is taken to get as many as the linear layer
    next to it suggests: docs/limitations.md.
    """
    with seeded(seed), torch.no_grad(), suppress(Exception):  # what else it may raise is seen later
        try:
            fresh(fused)(*deepcopy(inputs))
        except ReparamError as problem:
            return "fuse the model with example_inputs like those that it is to get" in str(problem)
    return False


def assert_same(
    model: nn.Module, fused: nn.Module, inputs: tuple[Any, ...], seed: int
) -> tuple[OperatorCounts, OperatorCounts]:
    """Asserts equal outputs, equal effects and no more work; counts the work."""
    call = Call(inputs)
    assert_equal(observe(fused, call, seed), observe(model, call, seed))
    return assert_not_dearer(model, fused, inputs, seed)


def assert_equal(result: Any, exact: Any, bound: float = FLOAT64_BOUND) -> None:
    """Asserts that two observations are the same, in structure, types and numbers."""
    types = [
        [getattr(leaf, "dtype", type(leaf)) for leaf in tree_leaves(v)] for v in (result, exact)
    ]
    if types[0] != types[1]:
        raise WrongError("types of outputs differ")
    try:
        error = relative_error(result, exact)
    except AssertionError as problem:
        raise WrongError(str(problem)) from None
    if error > bound:
        raise WrongError(f"relative error {error:.1e}")


def assert_not_dearer(
    model: nn.Module, fused: nn.Module, inputs: tuple[Any, ...], seed: int
) -> tuple[OperatorCounts, OperatorCounts]:
    """Asserts that there is no more work; counts it."""
    with seeded(seed):
        original = count_operators(fresh(model).__call__, inputs)
    with seeded(seed):
        counts = count_operators(fresh(fused).__call__, inputs)
    if counts.macs > original.macs:
        raise DearerError(f"multiply-adds: {counts}\noriginal: {original}")
    if counts.total > original.total:
        raise DearerError(f"operators: {counts}\noriginal: {original}")
    return original, counts


def ready(program: Program, dtype: torch.dtype = torch.float64) -> nn.Module:
    """The network as it is fused: as built, or after a call or a training step or two."""
    rng = random.Random(f"before/{program.seed}")
    kind = rng.choice(["built"] * 6 + ["ran", "ran with gradients", "trained", "trained and ran"])
    model = program.build().to(dtype)
    if kind == "built":
        return model
    inputs = program.calls(dtype)[0]
    try:
        with seeded(program.seed):
            if kind.startswith("trained"):
                train(model.train(), inputs, 1e-3)
            if "ran" in kind.split():
                with torch.set_grad_enabled(kind != "ran"):
                    model.eval()(*deepcopy(inputs))
        if is_comparable(observe(model.eval(), Call(inputs), program.seed)):
            return model
    except Exception:  # one value per channel in training, a write to a leaf, ...
        pass
    return program.build().to(dtype)


def train(model: nn.Module, inputs: tuple[Any, ...], rate: float, steps: int = 1) -> None:
    """Some steps of gradient descent in the mode that the model is in."""
    optimiser = torch.optim.SGD(model.parameters(), rate)
    optimiser.zero_grad()
    for _ in range(steps):
        outputs = [y for y in tree_leaves(model(*deepcopy(inputs))) if isinstance(y, Tensor)]
        loss = sum(y.square().mean() for y in outputs if y.requires_grad)
        loss.backward()
        optimiser.step()


BY_DATA = ("EarlyExit(", "SignDependent(", "WithKeywords(", "_()")
"""Code that chooses by data or by its arguments which layers run; writes that nobody reads."""


def assert_entry_points_agree(program: Program, fused: nn.Module, inputs: tuple[Any, ...]) -> None:
    """After training, each way into a fused network answers as the others, and nothing is idle.

    Its halves one after the other do what the whole does; a setting that says what is its default
    anyway changes nothing; and each parameter that wants a gradient gets one, where that was so.
    """
    model, seed = ready(program), program.seed
    fused = copied(fused)
    try:
        train(model, inputs, 1e-3, steps=2)
        observe(model, Call(inputs), seed)
    except Exception:  # what it refuses is no promise
        return
    train(fused, inputs, 1e-3, steps=2)
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    new = [name for name, p in fused.named_parameters() if p.requires_grad and p.grad is None]
    if new and not idle and not any(word in str(program) for word in BY_DATA):
        raise WrongError(f"parameters without a gradient: {', '.join(new)}")
    if fused.reparam_report.frozen:  # what training parts from the whole is named there
        return
    last, whole = program.modules[-1], Call(inputs)
    exact = observe(fused, whole, seed)[0]
    neutral = {"mask": torch.ones(()), "residual": torch.zeros(())}
    options = {name: value for name, value in neutral.items() if name in last.options()}
    assert_equal(observe(fused, Call(inputs, options), seed)[0], exact)
    if last.halves() and not any(word in str(program) for word in (*SUCCESSIONS, "Counted(")):
        assert_equal(observe(_InHalves(fused), whole, seed)[0], exact)


class _InHalves(nn.Module):
    """A network whose halves are called from outside."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.m = model

    def forward(self, *inputs: Any) -> Any:
        model: Any = self.m
        values = model.forward_features(*inputs)
        return model.forward_head(*(values if isinstance(values, tuple) else (values,)))


def _check_calls(program: Program, model: nn.Module, fused: nn.Module) -> None:
    """What the network returns when it is called otherwise, the fused one returns."""
    for way, call in variations(program, 2).items():
        try:
            exact = observe(model, call, program.seed)
        except Exception:  # what the original refuses is no promise
            continue
        if not is_comparable(exact):
            continue
        try:
            assert_equal(observe(fused, call, program.seed), exact)
            if way in SIZES:
                assert_not_dearer(model, fused, call.inputs, program.seed)
        except Exception as error:
            error.add_note(f"called otherwise: {way}")
            raise type(error)(f"{error} ({way})") from error


def _check_use(program: Program, fused: nn.Module, inputs: tuple[Any, ...]) -> None:
    """What people do with a fused model; each network takes one of these."""
    kind, seed = program.seed % 10, program.seed
    if kind == 0:  # example inputs
        model = ready(program)
        given = deepcopy(inputs)
        with untouched(model):
            with_inputs = reparam.fuse(model, inputs)
        same = [torch.equal(a, b) for a, b in zip(*map(tree_leaves, (inputs, given)), strict=True)]
        if not all(same):
            raise ChangedError("the example inputs changed")
        assert_reasons(model, with_inputs.reparam_report)
        assert_same(model, with_inputs, inputs, seed)
        _check_calls(program, model, with_inputs)
    elif kind == 1:  # in place
        model = ready(program)
        result = reparam.fuse(model, inplace=True)
        assert result is model
        assert_same(fused, result, inputs, seed)
    elif kind == 2:  # fusing twice changes nothing
        twice = reparam.fuse(fused)
        assert not twice.reparam_report.fused, f"fused again: {twice.reparam_report}"
        assert have_equal_states(fused, twice), "fusing again changed weights"
        assert_same(fused, twice, inputs, seed)
    elif kind == 3 and not any(word in str(program) for word in NOT_PICKLED):
        fused = reparam.fuse(ready(program))  # of the classes that pickle finds
        assert_same(fused, pickle.loads(pickle.dumps(fused)), inputs, seed)
    elif kind == 4:  # a state goes into another copy of the model, fused alike
        other = reparam.fuse(ready(program))
        with torch.no_grad():
            for tensor in other.state_dict().values():
                tensor.zero_()
        other.load_state_dict(fused.state_dict())
        assert_same(fused, other, inputs, seed)
    elif kind == 5:  # without checks of its own, nothing is different
        unverified = reparam.fuse(ready(program), verify=False)
        assert have_equal_states(fused, unverified), "verification changed the result"
    elif kind == 6:  # trained on
        assert_entry_points_agree(program, fused, inputs)
    elif kind in (7, 8):  # in other types
        _check_type(program, torch.float32 if kind == 7 else torch.bfloat16)
    else:  # parametrized layers cannot be pickled
        assert_same(fused, copied(fused), inputs, seed)


def _check_type(program: Program, dtype: torch.dtype) -> None:
    """The network in a type of less precision gives tensors of the same type and shape."""
    model, call = ready(program, dtype), Call(program.calls(dtype)[0])
    try:
        exact = observe(model, call, program.seed)
    except Exception:  # what the original refuses is no promise
        return
    if is_comparable(exact):
        with untouched(model):
            fused = reparam.fuse(model)
        assert_equal(observe(fused, call, program.seed), exact, ROUNDED[dtype])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Raises if the model is not afterwards as it was, or its hooks saw a call."""
    before, called = Snapshot(model), _calls_of_functions(model)
    yield
    changed = before.difference()
    if changed or _calls_of_functions(model) != called:
        raise ChangedError(f"the user's model changed: {changed or 'hooks or closures'}")


def _calls_of_functions(model: nn.Module) -> list[int]:
    """How often hooks and closures were called."""
    places = [closure.moved_to(0) for closure in closures(model)]
    for closure, place in zip(closures(model), places, strict=True):
        closure.moved_to(place)
    return [*places, *(len(hook.seen) for hook in recorders(model).values())]


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
