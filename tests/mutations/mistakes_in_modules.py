"""Mistakes in `reparam/modules/`."""

from tests.mutations.mistake import Mistake

IN_MODULES: list[Mistake] = []
