"""Writing in place, so that the graph says what is read afterwards.

Code writes to a tensor and reads it on under its old name. A graph has one name for each value, so
what was written to gets a new one: the result of the operator that wrote.
"""

from __future__ import annotations

from typing import Any

from torch import fx


@fx.has_side_effect
def assign(x: Any, key: Any, value: Any) -> Any:
    """Write to a part of a value, and return the value: ``x[key] = value``.

    Args:
        x: The value; a tensor, or anything else that has items.
        key: Which part.
        value: What is written there.
    """
    x[key] = value
    return x


def assignments(node: fx.Node) -> tuple[fx.Node, ...]:
    """What was written to, and the assignments that made a value of it, the first one first."""
    values = [node]
    while values[-1].target is assign and isinstance(values[-1].args[0], fx.Node):
        values.append(values[-1].args[0])
    return tuple(reversed(values))
