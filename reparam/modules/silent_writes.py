"""Operators that write to operands of which their schemas say that they stay."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch


@dataclass(frozen=True)
class SilentWrite:
    """What an operator writes to, and when.

    Args:
        written: The names of the operands.
        flag: The name of the operand that decides; none where it always writes.
        harmless: What that operand is where nothing is written.
    """

    written: Collection[str]
    flag: str = ""
    harmless: Any = None

    def targets(self, operands: Mapping[str, Any]) -> list[Any]:
        """Those of the operands, by name, that may be written to."""
        decides = operands.get(self.flag, self.harmless) if self.flag else self
        if decides is self.harmless:
            return []
        return [operands[name] for name in self.written if operands.get(name) is not None]


_STATISTICS = ("running_mean", "running_var")

_NORM = SilentWrite(_STATISTICS, "training", False)

_GATHERING = SilentWrite(_STATISTICS)

_LOOKUP = SilentWrite(("weight",), "max_norm")

SILENT_WRITES = {
    "batch_norm": _NORM,
    "native_batch_norm": _NORM,
    "_batch_norm_impl_index": _NORM,
    "cudnn_batch_norm": _NORM,
    "miopen_batch_norm": _NORM,
    "instance_norm": SilentWrite(_STATISTICS, "use_input_stats", False),
    "batch_norm_update_stats": _GATHERING,
    "batch_norm_gather_stats": _GATHERING,
    "batch_norm_gather_stats_with_counts": _GATHERING,
    "embedding": _LOOKUP,
    "embedding_bag": _LOOKUP,
}
"""Torch's own, by name. Tests run all of torch's operators and find that there are no others."""


def written_by(
    operator: torch._ops.OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """The operands that an operator may write to, by its schema and by what is known besides."""
    names, declared = _arguments(operator)
    silent = SILENT_WRITES.get(operator.overloadpacket.__name__) if is_torchs(operator) else None
    if not declared and silent is None:
        return []
    operands = {**dict(zip(names, args, strict=False)), **kwargs}
    hidden = [] if silent is None else silent.targets(operands)
    return [operands.get(name) for name in declared] + hidden


def is_torchs(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator is torch's own: what others' schemas say nobody has checked."""
    return operator.namespace in ("aten", "prims")


@cache
def _arguments(operator: torch._ops.OpOverload) -> tuple[list[str], list[str]]:
    """The names of an operator's arguments, and of those that its schema says it writes to."""
    arguments = operator._schema.arguments
    written = [
        argument.name
        for argument in arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return [argument.name for argument in arguments], written
