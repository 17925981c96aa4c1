"""What running a forward may change besides its result: remembered, and put back."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_REGISTERED = ("_parameters", "_buffers", "_modules")


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Run a model and leave its attributes, its buffers and the random numbers as they were.

    Args:
        model: The model.
    """
    watch = Watch(model)
    buffers = [
        (buffer, buffer.detach().clone(), buffer._version)
        for buffer in model.buffers()
        if not buffer.is_inference()
    ]
    try:
        yield
    finally:
        watch.restore()
        with torch.no_grad():
            for buffer, value, version in buffers:
                if buffer._version != version:
                    buffer.copy_(value)


def random_state() -> tuple[bytes, Any, bytes]:
    """The states of torch's, Python's and numpy's random numbers, to compare and to restore."""
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        pickle.dumps(np.random.get_state()),
    )


class Watch:
    """Remembers the state that a forward may change, and puts it back."""

    def __init__(self, root: nn.Module) -> None:
        self.attributes = [
            (module, dict(vars(module)), _contents(vars(module))) for module in root.modules()
        ]
        self.tensors = [
            (module, tensor, tensor._version, tensor.detach().clone())
            for module in root.modules()
            for tensor in _plain_tensors(vars(module))
            if not tensor.is_inference()
        ]
        self.random = random_state()

    def restore(self) -> list[nn.Module]:
        """Undo what was done since, and say which modules did it."""
        torch_state, python_state, numpy_state = self.random
        torch.set_rng_state(torch.frombuffer(bytearray(torch_state), dtype=torch.uint8))
        random.setstate(python_state)
        np.random.set_state(pickle.loads(numpy_state))
        changed = []
        for module, tensor, version, value in self.tensors:
            if tensor._version != version:
                changed.append(module)
                with torch.no_grad():
                    tensor.copy_(value)
        for module, attributes, contents in self.attributes:
            if vars(module).keys() == attributes.keys() and all(
                _same(vars(module)[name], attributes[name], contents.get(name))
                for name in attributes
            ):
                continue
            changed.append(module)
            vars(module).clear()
            vars(module).update(attributes)
            for name, content in contents.items():
                _refill(attributes[name], content)
        return changed


def _plain_tensors(attributes: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among a module's attributes that are neither parameters nor buffers."""
    pending = [value for name, value in attributes.items() if name not in _REGISTERED]
    while pending:
        value = pending.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple | set):
            pending.extend(value)
        elif isinstance(value, dict):
            pending.extend(value.values())


def _contents(attributes: dict[str, Any]) -> dict[str, Any]:
    """The contents of the containers among a module's attributes."""
    return {
        name: _content(value)
        for name, value in attributes.items()
        if isinstance(value, dict | list | set)
    }


def _content(value: Any) -> Any:
    """A container's entries, each with its own contents if it is a container too."""
    if isinstance(value, dict):
        return {key: (entry, _content(entry)) for key, entry in value.items()}
    if isinstance(value, list):
        return [(entry, _content(entry)) for entry in value]
    return set(value) if isinstance(value, set) else None


def _same(now: Any, then: Any, content: Any) -> bool:
    """Whether a value, and what it contained, are as they were."""
    if now is not then:
        plain = isinstance(then, int | float | str | bytes)
        return plain and type(now) is type(then) and bool(now == then)
    if isinstance(now, dict):
        return now.keys() == content.keys() and all(_same(now[key], *content[key]) for key in now)
    if isinstance(now, list):
        return len(now) == len(content) and all(
            _same(entry, *was) for entry, was in zip(now, content, strict=True)
        )
    return not isinstance(now, set) or now == content


def _refill(container: Any, content: Any) -> None:
    """Put back what a container contained."""
    if isinstance(container, dict):
        container.clear()
        container.update({key: entry for key, (entry, _) in content.items()})
        entries = list(content.values())
    elif isinstance(container, list):
        container[:] = [entry for entry, _ in content]
        entries = content
    else:
        if isinstance(container, set):
            container.clear()
            container.update(content)
        return
    for entry, inner in entries:
        _refill(entry, inner)
