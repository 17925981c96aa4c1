"""Gives a network statistics and scales at which no mistake can hide.

Freshly built batch norms are the identity, layer scales are 1e-6 and biases are zero: a fusion that
forgets any of them would pass. Here they all get values of their own, the same for the same seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reparam.modules import Inputs, as_inputs


def is_batch_norm(module: nn.Module) -> bool:
    """Whether the module keeps running statistics, whatever its class."""
    return all(
        isinstance(getattr(module, n, None), Tensor) for n in ("running_mean", "running_var")
    )


def is_untrained(model: nn.Module) -> bool:
    """Whether a model has batch norms, and none of them has ever seen a value."""
    norms = [module for module in model.modules() if is_batch_norm(module)]
    return bool(norms) and all(
        not bool(mean.any()) and bool((var == 1).all()) for mean, var in map(_statistics, norms)
    )


def randomise_batch_norm(model: nn.Module, seed: int, example_inputs: Any = None) -> nn.Module:
    """Randomises, in place, batch norms and all parameters that still are constant.

    Args:
        model: The model, in evaluation mode.
        seed: Equal seeds give equal values.
        example_inputs: With them, the statistics are random multiples of those that one forward
            sees, so that the activations of a deep network neither vanish nor overflow (random
            statistics alone let the signal of some shrink to 1e-13 of the output). Give several
            that differ: a network normalised to a single image is chaotic.

    Returns:
        The model.
    """
    generator = torch.Generator().manual_seed(seed)
    norms = [module for module in model.modules() if is_batch_norm(module)]
    of_norms = {id(p) for norm in norms for p in norm.parameters(recurse=False)}
    with torch.no_grad():
        for norm in norms:
            _randomise_norm(norm, generator)
        for parameter in model.parameters():
            if id(parameter) not in of_norms and _is_constant(parameter):
                _randomise_constant(parameter, generator)
        if (inputs := as_inputs(model, example_inputs)) is not None:
            _calibrate(model, norms, generator, inputs)
    return model


def _statistics(norm: Any) -> tuple[Tensor, Tensor]:
    return norm.running_mean, norm.running_var


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    values = torch.rand(like.shape, generator=generator, dtype=torch.float64)
    return (low + (high - low) * values).to(like)


def _signed(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform in ±[low, high], one in three negative."""
    negative = torch.rand(like.shape, generator=generator) < 1 / 3
    values = _uniform(like, low, high, generator)
    return torch.where(negative.to(like.device), -values, values)


def _log_uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return _uniform(like, math.log(low), math.log(high), generator).exp()


def _randomise_norm(norm: nn.Module, generator: torch.Generator) -> None:
    mean, var = _statistics(norm)
    mean.copy_(_uniform(mean, -0.5, 0.5, generator))
    var.copy_(_log_uniform(var, 0.3, 3, generator))
    for name, parameter in norm.named_parameters(recurse=False):
        if name == "weight":
            # 0.5 to 1.5, a little damped: E[weight² / var] is about one
            parameter.copy_(0.85 * _signed(parameter, 0.5, 1.5, generator))
        else:
            parameter.copy_(_uniform(parameter, -0.4, 0.4, generator))


def _is_constant(parameter: Tensor) -> bool:
    """Whether all entries are equal, or tiny: an initial value that hides mistakes."""
    if not parameter.is_floating_point() or parameter.numel() == 0:
        return False
    return bool((parameter == parameter.flatten()[0]).all() or parameter.abs().max() < 1e-3)


def _randomise_constant(parameter: Tensor, generator: torch.Generator) -> None:
    size = float(parameter.abs().max())
    if parameter.dim() >= 2 and size == 0 and parameter[0].numel() > 1:  # a weight or an embedding
        bound = 1 / math.sqrt(parameter[0].numel())
        parameter.copy_(_uniform(parameter, -bound, bound, generator))
    elif size == 0 and parameter.dim():  # a bias
        parameter.copy_(_uniform(parameter, -0.3, 0.3, generator))
    elif size < 1e-2:  # a layer scale or a gate
        parameter.copy_(_signed(parameter, 0.2, 0.6, generator))
    else:
        parameter.mul_(_uniform(parameter, 0.5, 1.5, generator))


def _calibrate(
    model: nn.Module,
    norms: Sequence[nn.Module],
    generator: torch.Generator,
    inputs: Inputs,
) -> None:
    """Moves the statistics of each batch norm near to those of the values that it gets."""
    called: set[int] = set()

    def observe(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x: Tensor = args[0] if args else next(iter(kwargs.values()))
        if id(norm) in called:
            return
        called.add(id(norm))
        axes = [axis for axis in range(x.dim()) if axis != 1]
        # the second moment, not the variance: where a channel hardly varies, dividing by its
        # spread would only amplify rounding
        size = x.square().mean(axes).sqrt()
        size = size + 0.1 * size.mean() + 1e-3
        mean, var = _statistics(norm)
        mean.copy_(x.mean(axes) + size * _uniform(mean, -0.5, 0.5, generator))
        var.copy_(size.square() * _log_uniform(var, 0.3, 3, generator))

    hooks = [norm.register_forward_pre_hook(observe, with_kwargs=True) for norm in norms]
    try:
        with _attributes_kept(model):
            inputs.copied().given_to(model)
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """Puts the model's plain attributes (cached grids, counters) back after a forward."""
    before = [
        (module, {name: _held(v) for name, v in vars(module).items()}) for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, attributes in before:
            vars(module).clear()
            for name, (value, content) in attributes.items():
                vars(module)[name] = value
                if isinstance(value, dict):  # of hooks, which some models register when first run
                    value.clear()
                    value.update(content)


def _held(value: Any) -> tuple[Any, Any]:
    """A value, and a copy of what it holds where it may be changed in place."""
    return value, dict(value) if isinstance(value, dict) else None
