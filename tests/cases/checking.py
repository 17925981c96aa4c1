"""What every case must hold to, whether it is fused or refused."""

from __future__ import annotations

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import numpy as np
import torch
from torch import nn

import reparam
from tests.refusals.checking import assert_reported, differs
from tests.support.counting import count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error, run
from tests.support.snapshot import Snapshot


def answers(model: Callable[..., Any], *inputs: Any, calls: int = 2) -> list[Any]:
    """What a network answers when it is called again and again, from equal random states."""
    torch.default_generator.manual_seed(0)  # at a tenth of what `torch.manual_seed` takes
    random.seed(0)
    np.random.seed(0)
    return [run(model, inputs) for _ in range(calls)]  # type: ignore[arg-type]


def assert_exact(
    model: nn.Module, *inputs: Any, total: int | None = None, calls: int = 2
) -> nn.Module:
    """Fused in every way the answers are right, and the model is as it was.

    Args:
        model: The network.
        inputs: Its arguments.
        total: The number of operators that may be left.
        calls: How often the network is called; some change with it.

    Returns:
        The network as `reparam.fuse` made it without example inputs; not yet called.
    """
    expected = answers(deepcopy(model), *inputs, calls=calls)
    before = Snapshot(model)
    for example_inputs in (inputs, None):
        fused = reparam.fuse(model, example_inputs)
        before.assert_unchanged()
        uncalled = deepcopy(fused)
        assert relative_error(answers(fused, *inputs, calls=calls), expected) <= FLOAT64_BOUND
    own = deepcopy(model)
    assert reparam.fuse(own, inplace=True) is own
    assert relative_error(answers(own, *inputs, calls=calls), expected) <= FLOAT64_BOUND
    if total is not None:
        assert count_operators(fused, inputs).total == total, str(fused.reparam_report)
    return uncalled


def assert_left(
    model: nn.Module,
    *inputs: Any,
    place: str,
    reason: str,
    naive: Callable[..., Any] | None = None,
    calls: int = 2,
) -> nn.Module:
    """Nothing is fused and the report says where and why.

    Args:
        model: The network.
        inputs: Its arguments.
        place: Where the report must say so.
        reason: Words of the reason.
        naive: The network as a careless library would have fused it; it must be wrong.
        calls: How often the network is called.
    """
    fused = assert_exact(model, *inputs, calls=calls)
    assert fused.reparam_report.fused == []
    assert_reported(fused.reparam_report, place, reason)
    if naive is not None:
        assert differs(naive, model, *inputs)
    return fused
