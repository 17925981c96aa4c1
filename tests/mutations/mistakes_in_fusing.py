"""Mistakes in `reparam/fusing/`, and in what keeps modules as they are."""

from tests.mutations.mistake import Mistake

IN_FUSING = [
    Mistake(
        "a negative scale makes a gradient smaller for Adam",
        "fusing/gradient_multipliers.py",
        "        total += scales.abs() ** power\n",
        "        total += scales**power\n",
    ),
    Mistake(
        "any map from branches to a kernel has one factor per weight",
        "fusing/gradient_multipliers.py",
        "        if error > _BOUND * there_and_back.abs().max().clamp_min(1e-300):\n",
        "        if False:\n",
    ),
    Mistake(
        "what only another method runs is unused",
        "fusing/unused_parts.py",
        "        by_methods |= part.trace.by_methods.keys()\n",
        "        by_methods |= set()\n",
    ),
    Mistake(
        "a function may use the tensors of a module that stays",
        "capture/trace.py",
        "        return not {named, *read, *around}.isdisjoint(self.unchanged)\n",
        "        return not {named, *around}.isdisjoint(self.unchanged)\n",
    ),
]
