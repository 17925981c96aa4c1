"""A model fused as another one of its class was, and nowhere else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from reparam.errors import ReparamError
from reparam.fusing.applying import Wishes
from reparam.fusing.driver import plan
from reparam.fusing.plans import Plan
from reparam.fusing.tensors_given import tensors_like
from reparam.rules import Rule, Target

_COUNTED = ("macs", "memory")
"""What costs the same wherever it is asked for."""


def fuse_alike(
    model: nn.Module,
    options: Mapping[str, Any],
    places: Collection[str],
    example_inputs: Any = None,
    rules: Mapping[Target, Rule | None] | None = None,
) -> Any:
    """Fuse a model where another one of its class was fused, and nowhere else.

    Args:
        model: The model, whose weights may be any.
        options: How the other one was fused, as its report says.
        places: Where it was fused, as its report says.
        example_inputs: See `reparam.fuse`; by default tensors like those that the other one was
            fused with.
        rules: See `reparam.fuse`.

    Returns:
        The fused model.

    Raises:
        ReparamError: If the model cannot be fused there, or example inputs or rules are missing.
    """
    if options["rules"] and rules is None:
        raise ReparamError("it was fused with rules of its own call: pass the same as rules=")
    if example_inputs is None:
        if options["inputs"] is None:
            raise ReparamError(
                "it was fused with inputs that are more than tensors: pass some as example_inputs="
            )
        example_inputs = tensors_like(options["inputs"])
    cost = options["cost"] if options["cost"] in _COUNTED else "macs"
    planned: Plan = plan(
        model,
        example_inputs,
        rules=rules,
        cost=cost,
        fold_norms=options["fold_norms"],
        keep=list(options["keep"]) or None,
    )
    for _ in range(len(planned.fused)):  # where one goes there may be smaller ones
        others = [row.place for row in planned.fused if row.place not in places]
        if not others:
            break
        planned = planned.without(*others)
    missing = sorted(set(places) - {row.place for row in planned.fused})
    if missing:
        raise ReparamError(
            f"the model cannot be fused at {missing[0]} as the saved one was"
            f"{f', nor at {len(missing) - 1} other places' if len(missing) > 1 else ''}: it is of "
            "another structure or type, was fused with other rules, or its code has changed"
        )
    return planned.carried_out(
        Wishes(verify=False, kept=planned._kept, drop_unused=options["drop_unused"]), inplace=False
    )
