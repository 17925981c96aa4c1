"""Packages that only some of the commands need."""

from __future__ import annotations

import importlib
from types import ModuleType

from reparam.errors import ReparamError, install_command


def import_torchvision(name: str = "torchvision", *, purpose: str) -> ModuleType:
    """Imports a module that needs torchvision.

    Args:
        name: The module.
        purpose: What it is needed for, as the start of a sentence that ends in its name.

    Raises:
        ReparamError: If it cannot be imported, saying what to install.
    """
    try:
        return importlib.import_module(name)
    # Built for another PyTorch, torchvision fails to declare its operators: a RuntimeError.
    except (ImportError, RuntimeError, OSError) as error:
        raise ReparamError(
            f"{purpose} torchvision, which cannot be imported ({error}); "
            f"install the one that was built for your PyTorch: {install_command('torchvision')}"
        ) from error
