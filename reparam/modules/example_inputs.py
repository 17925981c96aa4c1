"""How a model is called: what a user gave as example inputs."""

from __future__ import annotations

from typing import Any


def as_arguments(example_inputs: Any) -> tuple[Any, ...]:
    """Example inputs as positional arguments."""
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs)
    return (example_inputs,)
