"""Values in containers: their leaves, the same with others, copies.

What torch does not look into, dataclasses and dictionaries of classes of their own, is included.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import UserDict
from collections.abc import Callable
from copy import deepcopy
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map


def flatten(structure: Any) -> tuple[list[Any], Any]:
    """The leaves of a structure, and what two structures alike have in common."""
    outer, layout = tree_flatten(structure)
    leaves: list[Any] = []
    inner: list[Any] = []
    for leaf in outer:
        held = _held(leaf)
        values, below = ([leaf], None) if held is None else flatten(held)
        leaves.extend(values)
        inner.append(None if held is None else (type(leaf), below))
    return leaves, (layout, inner)


def leaves_of(structure: Any) -> list[Any]:
    """The leaves of a structure."""
    return flatten(structure)[0]


def map_leaves(change: Callable[[Any], Any], structure: Any) -> Any:
    """A structure with other leaves."""

    def changed(leaf: Any) -> Any:
        held = _held(leaf)
        if held is None:
            return change(leaf)
        result = copy.copy(leaf)
        for name, value in held.items():
            new = map_leaves(change, value)
            if is_dataclass(result):
                object.__setattr__(result, name, new)  # also where its class forbids it
            if isinstance(result, dict | UserDict) and name in result:
                result[name] = new
        return result

    return tree_map(changed, structure)


def copied_values(structure: Any) -> Any:
    """A structure with tensors of its own, of which those share memory that did before."""
    tensors = [leaf for leaf in leaves_of(structure) if isinstance(leaf, Tensor)]
    copies = deepcopy([tensor.detach() for tensor in tensors])
    for tensor, copied in zip(tensors, copies, strict=True):
        copied.requires_grad_(tensor.requires_grad)
    remaining = iter(copies)
    return map_leaves(lambda leaf: next(remaining) if isinstance(leaf, Tensor) else leaf, structure)


def is_dataclass(value: Any) -> bool:
    """Whether a value is a dataclass's instance."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _held(value: Any) -> dict[Any, Any] | None:
    """What a dataclass or a dictionary of a class of its own holds; None for all else."""
    if is_dataclass(value):
        # Code may delete some, or never set them.
        names = [field.name for field in dataclasses.fields(value) if hasattr(value, field.name)]
        return {name: getattr(value, name) for name in names}
    return dict(value) if isinstance(value, dict | UserDict) else None
