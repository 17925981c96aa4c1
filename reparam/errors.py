"""The ways in which the library says no: exceptions, a value for the report, and warnings."""

from __future__ import annotations

import sys
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from types import FrameType


class ReparamError(Exception):
    """Bad input to a public call: says what was found, where, and what to do."""


class InvariantError(ReparamError):
    """A mistake of this library: a graph that breaks a law of graphs."""


class LawError(ReparamError):
    """A law that looked at numbers does not hold for those that a parameter has now."""


@dataclass(frozen=True)
class Refusal:
    """Why something was not fused. A value, not an exception: it ends in the report.

    Args:
        reason: One sentence that a user of the model understands.
    """

    reason: str

    def __str__(self) -> str:
        return self.reason


class UntraceableError(Exception):
    """A module's own forward cannot be traced."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class MadeTensorError(UntraceableError):
    """A graph cannot hold a tensor that a forward makes of nothing but numbers."""


def install_command(package: str) -> str:
    """The command that installs a package of which PyTorch is a part, and keeps the PyTorch here.

    Without a word on torch, pip may take another build of it: a larger one, or one for no device
    that is there.

    Examples:
        >>> install_command("timm")  # doctest: +ELLIPSIS
        'pip install timm "torch==..."'
    """
    return f'pip install {package} "torch=={version("torch")}"'


def warn(text: str) -> None:
    """Warn at the line of the user's that called the library."""
    level = 1
    frame: FrameType | None = sys._getframe()
    while frame is not None and str(frame.f_globals.get("__name__")).startswith("reparam."):
        level, frame = level + 1, frame.f_back
    warnings.warn(text, stacklevel=level)
