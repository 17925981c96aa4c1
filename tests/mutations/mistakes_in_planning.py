"""Mistakes in `reparam/planning/`."""

from tests.mutations.mistake import Mistake

IN_PLANNING: list[Mistake] = []
