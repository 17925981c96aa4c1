"""What was computed is computed again of other numbers, whatever was written to meanwhile."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from reparam.algebra import Recording, evaluate, leaves, origin_of
from reparam.algebra.kernels import Lazy, Weights


def in_place(x: Tensor, y: Tensor) -> Tensor:
    doubled = 2 * x
    before = doubled + 1
    doubled.add_(y)
    return before * doubled


def several(x: Tensor, y: Tensor) -> Tensor:
    first, second = torch.cat((x, y)).chunk(2)
    return second - first.T.abs()


def made(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack((x, torch.ones(3, 3), y)).sum(0)[[0, 2]]


def returned_as_it_is(x: Tensor, y: Tensor) -> Tensor:
    return x.contiguous().double() @ y.contiguous().double()


FUNCTIONS: list[Callable[[Tensor, Tensor], Tensor]] = [in_place, several, made, returned_as_it_is]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_other_numbers(function: Callable[[Tensor, Tensor], Tensor]) -> None:
    x, y = torch.randn(2, 3, 3)
    with Recording():
        result = function(x, y)
    expression = origin_of(result)
    assert {id(leaf) for leaf in leaves(expression) if isinstance(leaf, Tensor)} == {id(x), id(y)}
    assert torch.equal(evaluate(expression), result)
    other = {id(x): torch.randn(3, 3), id(y): torch.randn(3, 3)}
    again = evaluate(expression, lambda leaf: other.get(id(leaf), leaf))
    assert torch.equal(again, function(*other.values()))


def test_parameters_are_their_own_origin() -> None:
    x = torch.nn.Parameter(torch.randn(3))
    with Recording():
        assert x.contiguous() is x
    assert origin_of(x) is x


def test_what_was_asked() -> None:
    x = torch.tensor([1.0, 2.0])
    with Recording() as recording:
        answers = [x.sum().item(), x.tolist(), bool((x > 0).all()), torch.equal(x, x)]
    assert [answer for _, answer in recording.asked] == answers
    other = torch.tensor([-1.0, 2.0])
    now = [evaluate(q, lambda leaf: other if leaf is x else leaf) for q, _ in recording.asked]
    assert now == [1.0, [-1.0, 2.0], False, True]


def test_a_long_chain() -> None:
    x = torch.zeros(1)
    with Recording():
        result = x
        for _ in range(5000):
            result = result + 1
    assert evaluate(origin_of(result), lambda leaf: leaf) == 5000


def test_what_several_steps_need_is_computed_once_and_is_fresh_for_each() -> None:
    """A sum of what is a sum, fifty times, is not computed in 2**50 steps."""
    calls = [0]

    def doubled(first: Weights, second: Weights) -> Weights:
        calls[0] += 1
        kernel = first[0].mul_(3).sub_(second[0])  # the next step may overwrite what it gets
        assert second[1] is not None
        return kernel, second[1].mul_(2)

    weights = Lazy(lambda: (torch.ones(1, 1, dtype=torch.float64), torch.ones(1).double()))
    for _ in range(50):
        weights = Lazy(doubled, (weights, weights))
    kernel, bias = weights.evaluate()
    assert calls == [50]
    assert float(kernel) == 2.0**50
    assert bias is not None
    assert float(bias) == 2.0**50
