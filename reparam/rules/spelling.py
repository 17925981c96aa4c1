"""Targets of rules as people write them, and what their rules say of themselves."""

from __future__ import annotations

import inspect
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

_HOMES = {"nn": nn, "F": F, "torch": torch, "Tensor": torch.Tensor, "operator": operator}


def spelled(target: Any) -> str:
    """A target as people write it."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(target)
    name = str(getattr(target, "__name__", target))
    homes = [home for home, holder in _HOMES.items() if getattr(holder, name, None) is target]
    return f"{homes[0] if homes else getattr(target, '__module__', '')}.{name}"


def first_line(documented: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]


"""Where a target may be found, the place that people write first."""
