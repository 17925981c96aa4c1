"""Run a model and its graph on example inputs: the same must come out; what each value was like."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_flatten

from reparam.capture import Trace, filled, nodes_in, reached
from reparam.errors import ReparamError, UntraceableError
from reparam.modules import copied_values, undisturbed


class _Recorder(fx.Interpreter):
    """Runs a graph and notes the shape and type of each value."""

    def __init__(self, trace: Trace) -> None:
        super().__init__(trace.root, graph=trace.graph)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.dtypes: dict[fx.Node, torch.dtype] = {}
        self.returned: dict[fx.Node, Any] = dict.fromkeys(nodes_in(trace.calls[0].result))

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        """The operands of a node, in lists and dictionaries that it may write to."""
        return filled(tuple(n.args), self.env.__getitem__), filled(n.kwargs, self.env.__getitem__)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
            self.dtypes[n] = result.dtype
        if n in self.returned:
            self.returned[n] = result
        return result


def record_shapes(
    trace: Trace, inputs: tuple[Any, ...]
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
        with torch.no_grad(), undisturbed(trace.root):
            recorder.run(*copied_values(inputs))
    except Exception as error:
        raise UntraceableError(
            f"what was traced of it does not run on example_inputs ({type(error).__name__})"
        ) from error
    if not _is_alike(filled(returned, recorder.returned.__getitem__), expected):
        raise UntraceableError("what was traced of it returns something else on example_inputs")
    return recorder.shapes, recorder.dtypes


def truth_on(
    root: nn.Module, inputs: tuple[Any, ...], graph: fx.Graph, question: fx.Node
) -> bool | None:
    """The truth of a value of a graph, which may not be complete, in one run on example inputs.

    Returns:
        The truth; None if what it depends on does not run.
    """
    needed = reached([question], lambda node: node.all_input_nodes)
    interpreter = fx.Interpreter(root, graph=graph)
    interpreter.args_iter = iter(copied_values(inputs))
    try:
        with torch.no_grad(), undisturbed(root):
            for node in graph.nodes:
                if node in needed or node.op == "placeholder":
                    interpreter.env[node] = interpreter.run_node(node)
            return bool(interpreter.env[question])
    except Exception:  # whatever the user's code raises
        return None


def _run(model: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """What a model returns on example inputs, which stay as they are, as does the model.

    Raises:
        ReparamError: If it does not run on them.
        UntraceableError: If what a run would change of the model cannot be put back.
    """
    try:
        with torch.no_grad(), undisturbed(model):
            return model(*copied_values(inputs))
    except UntraceableError:
        raise
    except Exception as error:
        raise ReparamError(
            f"the model does not run on example_inputs: {type(error).__name__}: {error}"
        ) from error


def record_calls(
    model: nn.Module, inputs: tuple[Any, ...], parts: Collection[nn.Module]
) -> dict[int, tuple[Any, ...]]:
    """What the parts of a model are given in one run on its inputs, by identity.

    Those that are called in different ways are left out, and those whose arguments need names.

    Raises:
        ReparamError: If the model does not run on the inputs.
    """
    calls: dict[int, list[tuple[Any, ...] | None]] = {}

    def note(module: nn.Module, args: Any, kwargs: Any) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        given = None if bound.kwargs else tuple(copied_values(bound.args))
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


def _is_call_like(first: tuple[Any, ...], other: tuple[Any, ...] | None) -> bool:
    """Whether what is true of one call, but for batches and image sizes, is true of another."""
    if other is None:
        return False
    (leaves, layout), (others, other_layout) = tree_flatten(first), tree_flatten(other)
    return layout == other_layout and all(map(_is_argument_like, leaves, others))


def _is_argument_like(first: Any, other: Any) -> bool:
    if not isinstance(first, Tensor) or not isinstance(other, Tensor):
        return type(first) is type(other) and bool(first == other)
    same = first.dtype == other.dtype and first.dim() == other.dim()
    sized = slice(1, None) if first.dim() <= 3 else slice(1, 2)  # tokens, or channels of images
    return same and first.shape[sized] == other.shape[sized]


def _is_alike(actual: Any, expected: Any) -> bool:
    """Whether two runs of the same operators returned the same, in the same structure."""
    (leaves, layout), (others, other_layout) = tree_flatten(actual), tree_flatten(expected)
    return layout == other_layout and all(map(_is_same, leaves, others))


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
