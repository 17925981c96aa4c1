"""Everything that somebody could see of a model and of the process, to compare later."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Snapshot:
    """Remembers a model, bit for bit: modules, attributes, tensors, random numbers, modes.

    Args:
        model: The model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen = _seen(model)
        self.values = {name: tensor.detach().clone() for name, tensor in _tensors(model)}

    def assert_unchanged(self) -> None:
        """Raises an AssertionError that shows what is different now."""
        now = _seen(self.model)
        assert now.keys() == self.seen.keys()
        for what, then in self.seen.items():
            assert now[what] == then, f"{what} changed"
        for name, tensor in _tensors(self.model):
            then = self.values[name]
            assert tensor.dtype == then.dtype
            assert _equal(tensor.detach(), then), f"{name} changed"

    def difference(self) -> str:
        """What is different now; nothing if all is as it was."""
        try:
            self.assert_unchanged()
        except AssertionError as problem:
            return str(problem) or "something"
        return ""


def have_equal_states(one: nn.Module, two: nn.Module) -> bool:
    """Whether two models hold equal tensors under equal names."""
    states = one.state_dict(), two.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][name], states[1][name]) for name in states[0]
    )


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    named = dict(model.named_parameters(remove_duplicate=False))
    named.update(model.named_buffers(remove_duplicate=False))
    return list(named.items())


def _equal(one: Tensor, two: Tensor) -> bool:
    return (
        torch.equal(one.nan_to_num(), two.nan_to_num())
        if one.is_floating_point()
        else (torch.equal(one, two))
    )


def _seen(model: nn.Module) -> dict[str, Any]:
    described: set[int] = set()
    seen: dict[str, Any] = {
        f"module {name!r}": (id(module), type(module), _attributes(module, described))
        for name, module in model.named_modules(remove_duplicate=False)
    }
    for name, tensor in _tensors(model):
        seen[f"tensor {name!r}"] = (id(tensor), tensor.requires_grad, id(tensor.grad))
    seen["torch's random numbers"] = torch.get_rng_state().numpy().tobytes()
    seen["Python's random numbers"] = random.getstate()
    seen["numpy's random numbers"] = str(np.random.get_state())
    seen["gradient mode"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    seen["default dtype"] = torch.get_default_dtype()
    return seen


def _attributes(module: nn.Module, seen: set[int]) -> Any:
    """The attributes of a module; what its tensors hold is compared apart."""
    registered = "_parameters", "_buffers"
    tensors = (*module._parameters.items(), *module._buffers.items())
    held = [(name, id(tensor)) for name, tensor in tensors]
    return held, [
        (name, _described(value, seen))
        for name, value in vars(module).items()
        if name not in registered
    ]


def _described(value: Any, seen: set[int]) -> Any:
    """What a value consists of, as far as plain data goes; of anything else its identity.

    What was described already is not described again.
    """
    if value is None or isinstance(value, bool | int | float | str | bytes | type):
        return value
    if isinstance(value, nn.Module) or id(value) in seen:
        return id(value)
    if isinstance(value, Tensor):
        return id(value), value.dtype, str(value.detach().tolist()) if value.numel() < 1e5 else ""
    seen.add(id(value))
    if isinstance(value, dict):
        return id(value), [(_described(k, seen), _described(v, seen)) for k, v in value.items()]
    if isinstance(value, list | tuple):
        return id(value), [_described(entry, seen) for entry in value]
    if isinstance(value, set | frozenset):
        return id(value), sorted(map(repr, value))
    if not callable(value) and hasattr(value, "__dict__"):
        return id(value), _described(vars(value), seen)
    return id(value)
