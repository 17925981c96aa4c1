"""What the operators of a graph, and those that might replace them, cost by a cost function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache, partial
from math import copysign, inf, isnan, prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.benchmark import Timer

from reparam.algebra import (
    AffineConv,
    explicit_padding,
    kernel_shape,
    lower,
    operators,
    run_operator,
    take_after,
    weights_dtype,
)
from reparam.analysis import Facts
from reparam.capture import operator_name
from reparam.errors import ReparamError
from reparam.modules import (
    copy_apart,
    count_leaves,
    fetch,
    own_tensors,
    run_function,
    users_threads,
)
from reparam.planning.stopwatch import Stopwatch
from reparam.rules import Step


@dataclass(frozen=True, order=True)
class Cost:
    """What a cost function makes of some operators, and their number.

    Args:
        amount: What the cost function gives, summed up. For multiply-adds without example inputs
            that is in units of one output position of the value that is decided on.
        operators: Operators that do work; views and the identity do none.
        multiply_adds: Multiply-adds of convolutions and linear layers, whatever the cost function.
        timed: The kinds of the operators whose times the amount is the sum of.
    """

    amount: float = 0.0
    operators: int = 0
    multiply_adds: float = field(default=0.0, compare=False)
    timed: tuple[Hashable, ...] = field(default=(), compare=False, repr=False)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.amount + other.amount,
            self.operators + other.operators,
            self.multiply_adds + other.multiply_adds,
            self.timed + other.timed,
        )

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.amount - other.amount,
            self.operators - other.operators,
            self.multiply_adds - other.multiply_adds,
        )

    def times(self, factor: float) -> Cost:
        """The same operators at another number of positions."""
        multiply_adds = self.multiply_adds * factor
        return replace(self, amount=self.amount * factor, multiply_adds=multiply_adds)

    @property
    def loses(self) -> bool:
        """Whether a difference of two costs is a loss in one of its numbers."""
        return self.amount < 0 or self.operators < 0

    @property
    def saves(self) -> bool:
        """Whether a difference of two costs is a gain in one of its numbers and no loss."""
        return not self.loses and (self.amount > 0 or self.operators > 0)


NOTHING = Cost()


@dataclass(frozen=True)
class Operator:
    """One operator, as a cost function sees it.

    Args:
        name: The class of the module, or the name of the function or method.
        kind: ``"conv"``, ``"conv_transpose"`` or ``"linear"``; ``"other"`` for what is none.
        multiply_adds: Multiply-adds of a convolution or a linear layer, at all positions; 0 for all
            others. Without example inputs in units of one output position of the value that is
            decided on.
        weights: How many weights it holds, the bias and statistics included.
        values: How many values it writes; 0 if that is not known.
        in_channels: Channels that it reads, where known.
        out_channels: Channels that it writes, where known.
        kernel_size: One size per spatial axis.
        stride: One stride per spatial axis.
        dilation: One dilation per spatial axis.
        groups: Groups of a convolution.
        input_shapes: Shapes of the tensors that it reads; empty if they are not known.
        dtype: Type of what it reads, where known.
        run: Runs it once on random values of these shapes; None if the shapes are not known.
        planned: Whether it is not in the model yet.
    """

    name: str
    kind: str
    multiply_adds: float
    weights: int
    values: float
    in_channels: int | None = None
    out_channels: int | None = None
    kernel_size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int | None = None
    input_shapes: tuple[tuple[int, ...], ...] = ()
    dtype: torch.dtype | None = None
    run: Callable[[], Any] | None = field(default=None, compare=False, repr=False)
    planned: bool = field(default=False, compare=False)


CostFunction = Callable[[Operator], float]


def multiply_adds(operator: Operator) -> float:
    """Multiply-adds of convolutions and linear layers: the cost function ``"macs"``."""
    return operator.multiply_adds


def memory(operator: Operator) -> float:
    """Numbers that an operator holds and writes: the cost function ``"memory"``."""
    return operator.weights + operator.values


@dataclass(frozen=True)
class Measure:
    """By what the planner weighs: a function, what it counts, and whether it needs known sizes.

    If the function times operators, there is the watch that does.
    """

    function: CostFunction
    unit: str
    needs_sizes: bool = False
    watch: Stopwatch[Operator] | None = None


MULTIPLY_ADDS = "multiply-adds"

MACS = Measure(multiply_adds, MULTIPLY_ADDS)
"""In proportion to a number of positions, so that no shapes have to be known."""

MEMORY = Measure(memory, "numbers in memory")


class Basis(Enum):
    """How it is known that an operator costs no more than what it replaces."""

    COUNTED = ""
    EQUAL = "the same operator with other numbers, and fewer of them"
    MEASURED = "measured"
    NOISE = "within the noise of this machine: multiply-adds decide"


_LEAST = 1e-9
"""What multiply-adds decide counts as in microseconds: as a gain or a loss."""


class Weigher:
    """Says what operators cost."""

    def __init__(self, measure: Measure, steps: Mapping[fx.Node, Step], facts: Facts) -> None:
        self.measure = measure
        self.steps = steps
        self.facts = facts

    def node(self, node: fx.Node, positions: float, *, free: bool) -> Cost:
        """What a node costs as it stands; ``free`` says that it does no work.

        Raises:
            ReparamError: If the cost function gives no number for it.
        """
        step = self.steps.get(node)
        form = step if isinstance(step, AffineConv) else None
        multiply_adds = form.multiply_adds * positions if form is not None else 0.0
        if free and not multiply_adds:
            return NOTHING
        # Multiply-adds are not asked for: every candidate of every value is weighed.
        number = 0 if free else self._operators_in(node)
        if self.measure is MACS:
            return Cost(multiply_adds, number, multiply_adds)
        operator = self._operator_of(node, form, multiply_adds)
        return Cost(self._ask(operator), number, multiply_adds, self._timed(operator))

    def _operators_in(self, node: fx.Node) -> int:
        """How many operators a node is: a module with a rule may hold several layers."""
        if node.op != "call_module":
            return 1
        return count_leaves(fetch(self.facts.root, str(node.target)))

    def form(self, form: AffineConv, positions: float, operand: fx.Node) -> Cost:
        """What a form costs once it is an operator; the operand has the size of what that reads.

        Raises:
            ReparamError: If the cost function gives no number for it.
        """
        if form.identity:
            return NOTHING
        multiply_adds = form.multiply_adds * positions
        if self.measure is MACS:
            return Cost(multiply_adds, operators(form), multiply_adds)
        operator = self._operator_for(form, multiply_adds, positions, operand)
        return Cost(self._ask(operator), operators(form), multiply_adds, self._timed(operator))

    def gain(self, current: Cost, after: Cost) -> tuple[Cost, Basis]:
        """What is saved by operators in the place of others, and how that is known.

        Among what is timed, equal operators on both sides count for nothing. If there are no others
        on the side of the new ones, these cannot be slower. What nobody can tell because the
        machine is too noisy, multiply-adds decide.
        """
        gain, watch = current - after, self.measure.watch
        if watch is None:
            return gain, Basis.COUNTED
        gone, new = Counter(current.timed), Counter(after.timed)
        if not new - gone:
            return replace(gain, amount=max(gain.amount, 0.0)), Basis.EQUAL
        longer = watch.longer(gone, new)
        if longer is not None:
            return replace(gain, amount=longer), Basis.MEASURED
        fewer = gain.multiply_adds
        return replace(gain, amount=copysign(_LEAST, fewer) if fewer else 0.0), Basis.NOISE

    def _timed(self, operator: Operator) -> tuple[Hashable, ...]:
        watch = self.measure.watch
        return () if watch is None else (watch.kind(operator),)

    def _ask(self, operator: Operator) -> float:
        """What the cost function gives for an operator, if that is a number."""
        try:  # a function of the user's may measure
            with nullcontext() if self.measure is MEMORY else users_threads():
                amount = float(self.measure.function(operator))
        except Exception as problem:
            raise ReparamError(
                f"the cost function {self.measure.unit} gives no number for {operator}: "
                f"{type(problem).__name__}: {problem}"
            ) from problem
        if isnan(amount):
            raise ReparamError(f"the cost function {self.measure.unit} gives NaN for {operator}")
        return amount

    def _operator_of(
        self, node: fx.Node, form: AffineConv | None, multiply_adds: float
    ) -> Operator:
        """An operator of the graph."""
        operands = self.facts.operands(node)
        shapes = self.facts.shapes
        sized = node in shapes and all(operand in shapes for operand in operands)
        module = None
        constants = [arg for arg in node.all_input_nodes if arg in self.facts.sources]
        held: list[Any] = [self.facts.constants.as_it_runs(constant) for constant in constants]
        if node.op == "call_module":
            module = fetch(self.facts.root, str(node.target))
            held.extend(t for part in module.modules() for t in own_tensors(part).values())
        weights = (value for value in held if isinstance(value, Tensor))
        return Operator(
            operator_name(node) if module is None else type(module).__name__,
            _kind(form) if form is not None and form.multiply_adds else "other",
            multiply_adds,
            sum(weight.numel() for weight in weights if weight.is_floating_point()),
            prod(shapes[node]) if sized else 0.0,
            **_settings(form),
            input_shapes=tuple(tuple(shapes[operand]) for operand in operands) if sized else (),
            dtype=self.facts.dtypes.get(operands[0]) if operands else None,
            run=_made_once(partial(_bound_node, node, module, self.facts)) if sized else None,
        )

    def _operator_for(
        self, form: AffineConv, multiply_adds: float, positions: float, operand: fx.Node
    ) -> Operator:
        """The operator that a form would be."""
        shape = _with_channels(self.facts.shapes.get(operand), form)
        kernel = _kernel_shape(form)
        rows = kernel[0]
        values = 0.0
        if shape is not None:
            values = positions * rows + prod(shape) * len(explicit_padding(form))
        names = "Linear" if not form.axes else f"Conv{len(form.axes)}d"
        dtype = weights_dtype(form)
        return Operator(
            names.replace("Conv", "ConvTranspose") if form.transposed else names,
            _kind(form),
            multiply_adds,
            prod(kernel) + rows * form.has_bias,
            values,
            **_settings(form),
            input_shapes=(shape,) if shape is not None else (),
            dtype=dtype,
            run=_made_once(partial(_bound_form, form, shape, dtype)) if shape is not None else None,
            planned=True,
        )


def _with_channels(shape: torch.Size | None, form: AffineConv) -> tuple[int, ...] | None:
    """The shape of what the operator of a form reads."""
    if shape is None or form.in_channels is None:
        return shape
    axis = len(shape) - len(form.axes or ()) - 1
    return (*shape[:axis], form.in_channels, *shape[axis + 1 :])


def _kind(form: AffineConv) -> str:
    if not form.axes:
        return "linear"
    return "conv_transpose" if form.transposed else "conv"


def _settings(form: AffineConv | None) -> dict[str, Any]:
    """The fields of an `Operator` that a form tells."""
    if form is None:
        return {}
    channels: dict[str, Any] = {"in_channels": form.in_channels, "out_channels": form.out_channels}
    if not form.multiply_adds:
        return channels
    axes = form.axes or ()
    return {
        **channels,
        "kernel_size": tuple(axis.kernel for axis in axes),
        "stride": tuple(axis.stride for axis in axes),
        "dilation": tuple(axis.dilation for axis in axes),
        "groups": form.groups,
    }


def _made_once(make: Callable[[], Callable[[], Any]]) -> Callable[[], Any]:
    """Something to run again and again; what it runs on is made when it runs for the first time."""
    made = cache(make)

    def run() -> Any:
        return made()()

    return run


def _bound_node(node: fx.Node, module: nn.Module | None, facts: Facts) -> Callable[[], Any]:
    """An operator of a graph on random values of the sizes that it has there."""
    like = next(facts.root.parameters(), None)
    device = None if like is None else like.device

    def value(operand: fx.Node) -> Any:
        if operand in facts.sources:
            return facts.constants.as_it_runs(operand)
        return _random(facts.shapes[operand], facts.dtypes[operand], device)

    args, kwargs = fx.map_arg((node.args, node.kwargs), value)
    if module is None:
        return partial(run_function, node, args, kwargs)
    ours = type(module).__module__.startswith("torch.nn.modules")
    return partial(
        module if ours else copy_apart(module), *args, **kwargs
    )  # it may count its calls


def _bound_form(
    form: AffineConv, shape: tuple[int, ...], dtype: torch.dtype | None
) -> Callable[[], Any]:
    """The operator of a form, its weights random, on random values."""
    device = None if form.like is None else form.like.device
    kernel = _random(_kernel_shape(form), torch.float32, device)
    bias = _random(kernel.shape[:1], torch.float32, device) if form.has_bias else None
    module = lower(form, kernel, bias)
    take_after(module, form)
    return partial(run_operator, module, _random(shape, dtype or torch.float32, device), form)


def _kernel_shape(form: AffineConv) -> tuple[int, ...]:
    return kernel_shape(form.in_channels, form.out_channels, form.groups, form.axes)


def _random(
    shape: torch.Size | tuple[int, ...], dtype: torch.dtype, device: torch.device | None
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    value = torch.rand(shape, generator=generator, device="cpu")
    return value.to(device=device, dtype=dtype)


_SECONDS = 0.005
"""How long an operator is run again and again."""


def _time(operator: Operator) -> float:
    """The median time of an operator by itself, on random values of its sizes, in microseconds.

    One that does not run by itself costs nothing if it is in the model, and is infinitely slow if
    it is planned: nothing is replaced for a gain that was not measured.
    """
    unknown = inf if operator.planned else 0.0
    if operator.run is None:
        return unknown
    timer = Timer("run()", globals={"run": operator.run}, num_threads=torch.get_num_threads())
    try:
        return timer.blocked_autorange(min_run_time=_SECONDS).median * 1e6
    except Exception:  # it needs more than tensors of its sizes
        return unknown


def _geometry(operator: Operator) -> Hashable:
    """What two operators have in common that take the same time, whatever their numbers are."""
    if operator.kind == "other" or operator.run is None:
        return operator, operator.planned
    return replace(operator, name="", weights=0)


def latency() -> Measure:
    """The time that operators take on this machine; every call measures anew."""
    watch = Stopwatch(_time, _geometry)
    return Measure(watch, "microseconds", needs_sizes=True, watch=watch)
