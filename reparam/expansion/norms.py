"""A norm at the end of every branch, with statistics that some batches have there.

The main branch has one as well, whose factor undoes its statistics, so that nothing but the
kernel of the main branch need change::

    (K_m x - m) / s * g + c,    g = s,  c = m + the bias of the main branch
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reparam.errors import ReparamError
from reparam.expansion.building import put_back, take_out
from reparam.expansion.expanded_layers import ExpandedLayer
from reparam.modules import as_inputs, in_eval_mode

_NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


def add_norms(
    model: nn.Module, layers: Mapping[str, ExpandedLayer], calibrate: Iterable[Any]
) -> None:
    """Give every branch of some layers a norm; the layers stand in the model already.

    Raises:
        ReparamError: If there are no batches, or the model does not run on one.
    """
    batches = list(calibrate)
    if not batches:
        raise ReparamError("norm='each' takes statistics from batches: calibrate has none")
    statistics = _observe(model, layers, batches, main=False)
    for path, layer in layers.items():
        put_back(layer)
        for index, branch in enumerate(layer.sequences()):
            branch.append(_norm(layer, *statistics[path, index]))
        _without_constants(layer)
    statistics = _observe(model, layers, batches, main=True)
    for path, layer in layers.items():
        _undone(layer, *statistics[path, 0])


def _without_constants(layer: ExpandedLayer) -> None:
    """Take what the branches compute out of the main one, which has a bias for that."""
    conv: Any = layer.main[0]
    if conv.bias is None:
        conv.bias = nn.Parameter(conv.weight.new_zeros(conv.weight.shape[0]))
    with in_eval_mode(layer):
        problem = take_out(layer)
    if problem is not None:
        raise ReparamError(f"a norm cannot stand in every branch: {problem}")


def _norm(layer: ExpandedLayer, mean: Tensor, variance: Tensor) -> Any:
    conv: Any = layer.main[0]
    like = {"device": conv.weight.device, "dtype": conv.weight.dtype}
    norm: Any = _NORMS[len(conv.kernel_size)](len(mean), **like)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)
    return norm.train(layer.training)


def _undone(layer: ExpandedLayer, mean: Tensor, variance: Tensor) -> None:
    """Append a norm to the main branch that changes nothing yet, and has its bias."""
    conv: Any = layer.main[0]
    norm = _norm(layer, mean - conv.bias, variance)
    norm.weight.copy_((norm.running_var.double() + norm.eps).sqrt())
    norm.bias.copy_(norm.running_mean.double() + conv.bias)
    conv.bias = None
    layer.main.append(norm)


def _observe(
    model: nn.Module, layers: Mapping[str, ExpandedLayer], batches: list[Any], *, main: bool
) -> dict[tuple[str, int], tuple[Tensor, Tensor]]:
    """The mean and the variance, per channel, of what each branch makes of some batches."""
    sums: dict[tuple[str, int], list[Any]] = {}
    hooks = []

    def watch(path: str, index: int, channel: int) -> Any:
        def hook(module: nn.Module, args: Any, value: Tensor) -> None:
            values = value.detach().double().movedim(channel, 0).flatten(1)
            entry = sums.setdefault((path, index), [0, 0.0, 0.0])
            entry[0] += values.shape[1]
            entry[1] = entry[1] + values.sum(1)
            entry[2] = entry[2] + values.square().sum(1)

        return hook

    for path, layer in layers.items():
        channel = -1 - len(layer.kernel_size)
        for index, branch in enumerate([layer.main] if main else layer.sequences()):
            hooks.append(branch.register_forward_hook(watch(path, index, channel)))
    try:
        with in_eval_mode(model), torch.no_grad():
            for batch in batches:
                _run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    missing = [path for path in layers if (path, 0) not in sums]
    if missing:
        raise ReparamError(f"no batch of calibrate reaches {missing[0]}: leave it out by where=")
    return {
        key: (total / count, (squares / count - (total / count).square()).clamp_min(0))
        for key, (count, total, squares) in sums.items()
    }


def _run(model: nn.Module, batch: Any) -> None:
    """Run a model on a batch, given as example inputs are."""
    inputs = as_inputs(model, batch)
    if inputs is None:
        raise ReparamError("a batch of calibrate is None: expected the arguments of the model")
    try:
        model(*inputs.args, **inputs.kwargs)
    except Exception as error:
        raise ReparamError(
            f"the model does not run on a batch of calibrate ({type(error).__name__}: {error})"
        ) from error
