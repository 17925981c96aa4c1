r"""Products that an equation describes: `torch.einsum` of one value and constants.

v[.., o, ..] = sum over i of W[o, i] * x[.., i, ..]        v[.., c, ..] = s[c] * x[.., c, ..]
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reparam.algebra import AffineConv
from reparam.errors import Refusal
from reparam.rules.registry import register_rule, spellings
from reparam.rules.steps import unpacked

_DOTS = "."
"""Stands for the axes that ``...`` leaves unnamed."""


def terms_of(equation: Any) -> tuple[list[str], str] | None:
    """The axes of each operand and of the result, one letter each; None if that is not known."""
    if not isinstance(equation, str):
        return None
    operands, arrow, result = equation.replace(" ", "").replace("...", _DOTS).partition("->")
    terms = operands.split(",")
    if not arrow:
        times = Counter(operands.replace(",", ""))
        dots = _DOTS if _DOTS in times else ""
        result = dots + "".join(sorted(x for x in times if times[x] == 1 and x != _DOTS))
    return terms, result


def rank_of(term: str) -> int | None:
    """How many axes a term has; None where it leaves some unnamed."""
    return None if _DOTS in term else len(term)


@register_rule(*spellings("einsum", "torch aten"))
def einsum(equation: Any, *operands: Any, path: Any = None) -> AffineConv | Refusal:
    """A product in which one axis of a value meets a constant matrix, or a factor per entry."""
    values = unpacked(operands)
    parsed = terms_of(equation)
    if parsed is None or len(parsed[0]) != len(values):
        return Refusal("its equation is known only at run time")
    terms, result = parsed
    forms = [index for index, value in enumerate(values) if not isinstance(value, Tensor)]
    if len(forms) != 1:
        return Refusal("a product of two values that both depend on the input")
    (index,) = forms
    value, term = values[index], terms[index]
    constants = [(held, terms[at]) for at, held in enumerate(values) if at != index]
    if not isinstance(value, AffineConv) or any(len({*each}) < len(each) for each in terms):
        return Refusal("its equation takes a diagonal, or its operands are no tensors")
    return _product(value, term, constants, result)


def _product(
    x: AffineConv, term: str, constants: Sequence[tuple[Tensor, str]], result: str
) -> AffineConv | Refusal:
    """What becomes of a value with the axes of a term."""
    held = set().union(*(letters for _, letters in constants))
    shared = {*term} & held
    met = shared if len(shared) == 1 and _DOTS not in held else set()
    new = {*result} - {*term}
    if not met or len(new) > 1 or not new <= held or not {*term} - met <= {*result}:
        return Refusal("its equation is no map of one axis alone")
    (letter,) = met
    axis = term.index(letter) - len(term)
    expected = term.replace(letter, "".join(new)) if new else term
    if result != expected or _DOTS in term[axis:]:
        return Refusal("the axes of its result are others, or in another order")
    if axis != -1 and (rank_of(term) or x.rank) != 1 - axis:
        return Refusal("its channels lie along an axis that is none of a convolution")
    inputs = ",".join(letters for _, letters in constants)
    kernel = f"{inputs}->{''.join(new)}{letter}"
    numbers = torch.einsum(kernel, *(constant.double() for constant, _ in constants))
    if not new:
        return x.scale(numbers, axis)
    if numbers.shape[1] == 1:
        return Refusal("an axis of size one, which may broadcast over several channels")
    return x.convolve(numbers.view(*numbers.shape, *(1,) * (-1 - axis)))
