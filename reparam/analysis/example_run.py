"""Run a model and its graph on example inputs: the same must come out; what each value was like."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack
from inspect import signature
from typing import Any

import torch
from torch import Tensor, fx, nn

from reparam.capture import (
    Built,
    RecordedTrace,
    Trace,
    filled,
    is_same_constant,
    nodes_in,
    reached,
)
from reparam.errors import ReparamError, UntraceableError
from reparam.modules import Inputs, flatten, leaves_of, undisturbed, users_threads


class _Recorder(fx.Interpreter):
    """Runs a graph and notes the shape and type of each value."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace.root, graph=trace.graph)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.dtypes: dict[fx.Node, torch.dtype] = {}
        self.returned: dict[fx.Node, Any] = dict.fromkeys(nodes_in(trace.calls[0].result))

    def start(self, values: Mapping[fx.Node, Any]) -> None:
        """Run on the values of its arguments."""
        for node, value in values.items():
            self._note(node, value)
        self.run(initial_env=dict(values), enable_io_processing=False)

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        """The operands of a node, in lists and dictionaries that it may write to."""
        return filled(tuple(n.args), self.env.__getitem__), filled(n.kwargs, self.env.__getitem__)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        self._note(n, result)
        return result

    def _note(self, node: fx.Node, value: Any) -> None:
        if isinstance(value, Tensor):
            self.shapes[node] = value.shape
            self.dtypes[node] = value.dtype
        if node in self.returned:
            self.returned[node] = value


def record_shapes(
    trace: Trace, inputs: Inputs
) -> tuple[dict[fx.Node, torch.Size], dict[fx.Node, torch.dtype]]:
    """Shapes and types of every value, from one run on the inputs of the root's forward.

    Raises:
        ReparamError: If the model does not run on the inputs.
        UntraceableError: If its graph does not do what the model does.
    """
    try:
        expected = _run(trace.root, inputs)
    except UntraceableError:
        return {}, {}
    recorder, returned = _Recorder(trace), trace.calls[0].result
    try:
        with torch.no_grad(), undisturbed(trace.root), users_threads():
            recorder.start(_given(trace, inputs.copied()))
    except Exception as error:
        raise UntraceableError(
            f"what was traced of it does not run on example_inputs ({type(error).__name__})"
        ) from error
    actual = filled(returned, recorder.returned.__getitem__)
    if isinstance(trace, RecordedTrace):  # its code packs what its graph returns
        actual, expected = leaves_of(actual), leaves_of(expected)
    if not _is_alike(actual, expected):
        raise UntraceableError("what was traced of it returns something else on example_inputs")
    return recorder.shapes, recorder.dtypes


def asked_on(
    root: nn.Module,
    inputs: Inputs,
    arguments: Mapping[str, Any],
    graph: fx.Graph,
    question: fx.Node,
) -> bool | int | None:
    """A flag or a number of a graph, which may not be complete, in one run on example inputs.

    Returns:
        Its value; None if what it depends on does not run.
    """
    needed = reached([question], lambda node: node.all_input_nodes)
    interpreter = fx.Interpreter(root, graph=graph)
    given = inputs.copied().by_parameter(root.forward, defaults=True)
    try:
        interpreter.env.update(_matched(arguments, given))
        with torch.no_grad(), undisturbed(root):
            for node in graph.nodes:
                if node in needed and node not in interpreter.env:
                    interpreter.env[node] = interpreter.run_node(node)
            value = interpreter.env[question]
            return value if isinstance(value, bool | int) else None
    except Exception:  # whatever the user's code raises
        return None


def _given(trace: Trace, inputs: Inputs) -> dict[fx.Node, Any]:
    """The values of the arguments of a graph."""
    forward, (call, *_) = trace.root.forward, trace.calls
    arguments = call.arguments
    if isinstance(trace, RecordedTrace):  # which names values inside containers, too
        arguments = {
            **dict(zip(signature(forward).parameters, call.args, strict=False)),
            **call.kwargs,
        }
    return dict(_matched(arguments, inputs.by_parameter(forward, defaults=True)))


def _matched(structure: Any, value: Any) -> Iterator[tuple[fx.Node, Any]]:
    """The values of the nodes in a structure."""
    if isinstance(structure, fx.Node):
        yield structure, value
    elif isinstance(structure, Built | dict):
        by_key = not isinstance(structure, Built) or structure.by_key
        entries = structure.entries if isinstance(structure, Built) else structure
        for name, entry in entries.items():
            if any(True for _ in nodes_in(entry)):
                yield from _matched(entry, value[name] if by_key else getattr(value, name))
    elif isinstance(structure, tuple | list):
        for entry, part in zip(structure, value, strict=True):
            yield from _matched(entry, part)


def _run(model: nn.Module, inputs: Inputs) -> Any:
    """What a model returns on example inputs, which stay as they are, as does the model.

    Raises:
        ReparamError: If it does not run on them.
        UntraceableError: If what a run would change of the model cannot be put back.
    """
    copied = inputs.copied()
    try:
        with torch.no_grad(), undisturbed(model), users_threads():
            return copied.given_to(model)
    except UntraceableError:
        raise
    except Exception as error:
        raise ReparamError(
            f"the model does not run on example_inputs: {type(error).__name__}: {error}"
            f"{inputs.remark}"
        ) from error


def record_calls(
    model: nn.Module, inputs: Inputs, parts: Collection[nn.Module]
) -> dict[int, Inputs]:
    """What the parts of a model are given in one run on its inputs, by identity.

    Those that are called in different ways are left out.

    Raises:
        ReparamError: If the model does not run on the inputs.
    """
    calls: dict[int, list[Inputs | None]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        try:
            bound = signature(module.forward).bind(*args, **kwargs)
        except TypeError:  # a wrapper may take more than its signature says
            given = None
        else:
            given = Inputs(bound.args, bound.kwargs).copied()
        calls.setdefault(id(module), []).append(given)

    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.register_forward_pre_hook(note, with_kwargs=True).remove)
        try:
            _run(model, inputs)
        except UntraceableError:
            return {}
    return {
        key: first
        for key, (first, *others) in calls.items()
        if first is not None and all(_is_call_like(first, other) for other in others)
    }


def _is_call_like(first: Inputs, other: Inputs | None) -> bool:
    """Whether what is true of one call, but for batches and image sizes, is true of another."""
    if other is None:
        return False
    leaves, layout = flatten((first.args, first.kwargs))
    others, other_layout = flatten((other.args, other.kwargs))
    return bool(layout == other_layout) and all(map(_is_argument_like, leaves, others))


def _is_argument_like(first: Any, other: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(other, Tensor):
        return is_same_constant(first, other)
    same = first.dtype == other.dtype and first.dim() == other.dim()
    sized = slice(1, None) if first.dim() <= 3 else slice(1, 2)  # tokens, or channels of images
    return same and first.shape[sized] == other.shape[sized]


def _is_alike(actual: Any, expected: Any) -> bool:
    """Whether two runs of the same operators returned the same, in the same structure."""
    (leaves, layout), (others, other_layout) = flatten(actual), flatten(expected)
    return bool(layout == other_layout) and all(map(_is_same, leaves, others))


def _is_same(actual: Any, expected: Any) -> bool:
    if not isinstance(actual, Tensor) or not isinstance(expected, Tensor):
        return type(actual) is type(expected)
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    if not actual.is_floating_point() or not actual.numel():
        return torch.equal(actual, expected)
    # The same operators on the same numbers: threads may add them up in another order.
    largest = float(expected.abs().max())
    return torch.allclose(actual, expected, rtol=0.0, atol=_ROUNDING * largest, equal_nan=True)


_ROUNDING = 1e-3
"""How far two runs of the same operators may be apart, in part of the largest value."""
