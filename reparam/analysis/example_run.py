"""Shapes and types of every value of a traced graph, from one run on example inputs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from reparam.capture import Trace, filled
from reparam.errors import ReparamError
from reparam.modules import copied, undisturbed


class _Recorder(fx.Interpreter):
    def __init__(self, trace: Trace) -> None:
        super().__init__(trace.root, graph=trace.graph)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.dtypes: dict[fx.Node, torch.dtype] = {}

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> tuple[Any, Any]:
        """The operands of a node, in lists and dictionaries that it may write to."""
        return filled(tuple(n.args), self.env.__getitem__), filled(n.kwargs, self.env.__getitem__)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
            self.dtypes[n] = result.dtype
        return result


def record_shapes(
    trace: Trace, inputs: tuple[Any, ...]
) -> tuple[dict[fx.Node, torch.Size], dict[fx.Node, torch.dtype]]:
    """Run a graph once and note the shape and type of each value.

    Raises:
        ReparamError: If the model does not run on the inputs.
    """
    recorder = _Recorder(trace)
    try:
        with torch.no_grad(), undisturbed(trace.root):
            recorder.run(*copied(inputs))
    except Exception as error:
        raise ReparamError(
            f"the model does not run on example_inputs: {type(error).__name__}: {error}"
        ) from error
    return recorder.shapes, recorder.dtypes
