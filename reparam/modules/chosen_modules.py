"""The modules that a user means: by path, with wildcards, by type or by a predicate."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from reparam.errors import ReparamError

Predicate = Callable[[str, nn.Module], bool]

Choice = str | type[nn.Module] | Predicate | Sequence["str | type[nn.Module]"] | None


def chosen(model: nn.Module, choice: Choice, argument: str) -> dict[str, nn.Module]:
    """The modules that a choice means, by their paths; None means all of them.

    Raises:
        ReparamError: If the choice is none, or a path or a type means no module.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if choice is None:
        return modules
    if isinstance(choice, str | type):
        choice = (choice,)
    if callable(choice):
        return {path: module for path, module in modules.items() if choice(path, module)}
    if not isinstance(choice, Iterable):
        raise ReparamError(f"{argument}={choice!r}: {_EXPECTED}")
    meant: dict[str, nn.Module] = {}
    for wanted in choice:
        matching = _matching(modules, wanted, argument)
        if not matching:
            raise ReparamError(f"{argument}={wanted!r} means no module{_likely(modules, wanted)}")
        meant |= matching
    return {path: module for path, module in modules.items() if path in meant}


_EXPECTED = (
    "expected a path, with wildcards or not, a type of modules, several of these, or a function"
)


def _matching(modules: dict[str, nn.Module], wanted: Any, argument: str) -> dict[str, nn.Module]:
    """The modules of a type, or whose paths a pattern matches."""
    if isinstance(wanted, str):
        return {path: m for path, m in modules.items() if fnmatchcase(path, wanted)}
    if isinstance(wanted, type) and issubclass(wanted, nn.Module):
        return {path: module for path, module in modules.items() if isinstance(module, wanted)}
    raise ReparamError(f"{argument}={wanted!r}: {_EXPECTED}")


def _likely(modules: dict[str, nn.Module], wanted: Any) -> str:
    """What else may have been meant."""
    likely = get_close_matches(wanted, list(modules), 3) if isinstance(wanted, str) else []
    return f"; did you mean {' or '.join(map(repr, likely))}?" if likely else ""
