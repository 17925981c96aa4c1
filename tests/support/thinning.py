"""Long lists of parameters, of which the default run takes some."""

from collections.abc import Iterable
from typing import Any

import pytest


def thinned(parameters: Iterable[tuple[Any, ...]], every: int) -> list[Any]:
    """Parameters of a test, of which the default run takes each n-th and `-m corpus` the others.

    Args:
        parameters: The arguments of each test. Of a product, each value is taken if `every` has no
            divisor in common with the numbers of values.
        every: Which of them the default run takes.
    """
    return [
        pytest.param(
            *arguments,
            id="-".join(map(_name, arguments)),
            marks=pytest.mark.corpus if index % every else (),
        )
        for index, arguments in enumerate(parameters)
    ]


def _name(argument: Any) -> str:
    return str(getattr(argument, "__name__", argument))
