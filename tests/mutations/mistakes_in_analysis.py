"""Mistakes in `reparam/analysis/`."""

from tests.mutations.mistake import Mistake

IN_ANALYSIS: list[Mistake] = []
