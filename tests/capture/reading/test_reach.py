"""Networks whose forward cannot be traced: what it only calls is fused, all else stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4


class Block(nn.Module):
    """One convolution and its batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 3, padding=1)
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Open(Block):
    """A block that gives away its parts."""

    def half(self, x: Tensor) -> Tensor:
        return self.conv(x)

    @property
    def last(self) -> nn.Module:
        return self.norm


class Outer(nn.Module):
    """A block around a block, which it also opens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Block()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + self.inner.conv(x).relu()


class Eager(nn.Module):
    """A forward that asks for a value, then runs a body over a few blocks."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body
        self.flag = False
        self.first, self.second, self.open = Block(), Block(), Open()
        self.blocks = nn.ModuleList([Block(), Block()])
        self.named = nn.ModuleDict({"one": Block(), "two": Block()})
        self.pair = nn.Sequential(nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C))
        self.outer = Outer()

    def forward(self, x: Tensor) -> Tensor:
        while x.mean() > 100:
            return x
        return self.body(self, x)

    def apply_first(self, x: Tensor) -> Tensor:
        return self.first(x)

    def pick(self, index: int) -> nn.Module:
        return self.blocks[index]


class Table(Mapping[str, Callable[..., Tensor]]):
    """Hands out the functions that it holds."""

    def __init__(self, functions: dict[str, Callable[..., Tensor]]) -> None:
        self.functions = functions

    def __getitem__(self, name: str) -> Callable[..., Tensor]:
        return self.functions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.functions)

    def __len__(self) -> int:
        return len(self.functions)


class Maker(Table):
    """Hands out functions that it makes."""

    def __getitem__(self, name: str) -> Callable[..., Tensor]:
        return lambda block, x: block.conv(x)


def _run(block: Any, x: Tensor) -> Tensor:
    return block(x)


TABLE, MAKER = Table({"run": _run}), Maker({"run": _run})


# -- What is only called --------------------------------------------------------------------------


def by_name(self: Any, x: Tensor) -> Tensor:
    return self.second(self.first(x).relu()).relu()


def by_index(self: Any, x: Tensor) -> Tensor:
    return self.blocks[1](self.blocks[0](x).relu())


def by_negative_index(self: Any, x: Tensor) -> Tensor:
    return self.blocks[-1](x).relu()


def by_key(self: Any, x: Tensor) -> Tensor:
    return self.named["one"](x).relu()


def by_getattr(self: Any, x: Tensor) -> Tensor:
    return getattr(self, "first")(x).relu()  # noqa: B009


def as_a_sequence(self: Any, x: Tensor) -> Tensor:
    return self.pair(x).relu()


def by_a_method(self: Any, x: Tensor) -> Tensor:
    return self.apply_first(x).relu()


def by_a_method_that_returns_it(self: Any, x: Tensor) -> Tensor:
    return self.pick(0)(x).relu()


def twice(self: Any, x: Tensor) -> Tensor:
    return self.first(self.first(x).relu())


def beside_a_question(self: Any, x: Tensor) -> Tensor:
    return self.first(x) if isinstance(self.first, Block) else x


def by_iteration(self: Any, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = block(x).relu()
    return x


def by_enumerate(self: Any, x: Tensor) -> Tensor:
    for index, block in enumerate(self.blocks):
        x = block(x) * (index + 1.5)
    return x.relu()


def by_zip(self: Any, x: Tensor) -> Tensor:
    for block, other in zip(self.blocks, self.named.values(), strict=True):
        x = block(x).relu() + other(x).relu()
    return x


def by_items(self: Any, x: Tensor) -> Tensor:
    for name, block in self.named.items():
        x = block(x).relu() * len(name)
    return x


def by_a_function_out_of_a_table(self: Any, x: Tensor) -> Tensor:
    return TABLE.get("run", _run)(self.first, x).relu()


def in_a_comprehension(self: Any, x: Tensor) -> Tensor:
    return torch.cat([block(x).relu() for block in self.blocks], dim=1)


# -- What is used in another way -------------------------------------------------------------------


def _layer(block: Any) -> nn.Module:
    return block.conv


def _half(block: Any, x: Tensor) -> Tensor:
    return block.conv(x)


def its_layer(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + self.first.conv(x).relu()


def its_norm(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + self.first.norm(x).relu()


def its_layer_by_index(self: Any, x: Tensor) -> Tensor:
    return self.pair(x) + self.pair[0](x).relu()


def its_layer_by_getattr(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + getattr(self.first, "conv")(x).relu()  # noqa: B009


def its_layer_from_a_function(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + _layer(self.first)(x).relu()


def its_method(self: Any, x: Tensor) -> Tensor:
    return self.open(x) + self.open.half(x).relu()


def its_layer_in_a_function(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + _half(self.first, x).relu()


def its_property(self: Any, x: Tensor) -> Tensor:
    return self.open(x) + self.open.last(x).relu()


def its_weight(self: Any, x: Tensor) -> Tensor:
    return self.first(x) * self.first.conv.weight.sum()


def its_weight_in_a_function(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + F.conv2d(x, self.first.conv.weight, padding=1).relu()


def its_statistics(self: Any, x: Tensor) -> Tensor:
    return self.first(x) - self.first.norm.running_var[0]


def its_parameters(self: Any, x: Tensor) -> Tensor:
    return self.first(x) * sum(p.sum() for p in self.first.parameters())


def a_setting_of_its_norm(self: Any, x: Tensor) -> Tensor:
    return self.first(x) * (1 + self.first.norm.eps)


def a_setting_of_its_layer_by_index(self: Any, x: Tensor) -> Tensor:
    return self.pair(x) * (1 + self.pair[1].eps)


def a_setting_of_layers_in_a_loop(self: Any, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = block(x).relu() * (1 + block.norm.eps)
    return x


def whether_it_has_a_norm(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    return y.relu() if self.first.norm is not None else -y


def a_setting_of_a_named_module(self: Any, x: Tensor) -> Tensor:
    return self.first(x) * (1 + dict(self.named_modules())["first.norm"].eps)


def how_many_norms_there_are(self: Any, x: Tensor) -> Tensor:
    return self.first(x) * sum(hasattr(module, "eps") for module in self.modules())


def a_setting_to_sort_by(self: Any, x: Tensor) -> Tensor:
    return sorted(self.blocks, key=lambda block: block.norm.eps)[0](x)


def opened_by_iteration(self: Any, x: Tensor) -> Tensor:
    for layer in self.pair:
        x = layer(x).relu()
    return x + self.pair(x)


def opened_in_a_loop(self: Any, x: Tensor) -> Tensor:
    for block in self.blocks:
        x = block(x).relu() + block.conv(x)
    return x


def opened_in_enumerate(self: Any, x: Tensor) -> Tensor:
    for index, block in enumerate(self.blocks):
        x = block.conv(x).relu() if index else block(x)
    return x


def opened_in_zip(self: Any, x: Tensor) -> Tensor:
    for block, other in zip(self.blocks, self.named.values(), strict=True):
        x = block.norm(x).relu() + block(x) + other(x).relu()
    return x


def opened_where_a_function_returns_it(self: Any, x: Tensor) -> Tensor:
    def pick() -> Any:
        return self.first

    return self.first(x) + pick().conv(x).relu()


def opened_where_a_lambda_returns_it(self: Any, x: Tensor) -> Tensor:
    pick = lambda: self.first  # noqa: E731
    return self.first(x) + pick().conv(x).relu()


def opened_under_the_name_of_a_pattern(self: Any, x: Tensor) -> Tensor:
    match self.first:
        case block:
            return self.first(x) + block.conv(x).relu()


def opened_by_another_name_of_its_dictionary(self: Any, x: Tensor) -> Tensor:
    blocks: dict[str, Any] = {}
    others = blocks
    others["first"] = self.first
    return self.first(x) + blocks["first"].conv(x).relu()


def opened_many_turns_later(self: Any, x: Tensor) -> Tensor:
    a = b = c = d = e = f = None
    for _ in range(8):
        x = x if f is None else x + f.conv(x).relu()
        f, e, d, c, b, a = e, d, c, b, a, self.first
    return self.first(x)


def opened_by_a_function_out_of_a_table(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + TABLE.get("half", _half)(self.first, x).relu()


def opened_by_a_function_that_a_table_makes(self: Any, x: Tensor) -> Tensor:
    return self.first(x) + MAKER["run"](self.first, x).relu()


def opened_if_a_flag_is_set(self: Any, x: Tensor) -> Tensor:
    if self.flag:
        return self.first(x) + self.first.conv(x).relu()
    return self.first(x)


def opened_by_a_block_that_stays(self: Any, x: Tensor) -> Tensor:
    return self.outer(x) + self.outer.inner(x).relu()


ONLY_CALLED = [
    by_name,
    by_index,
    by_negative_index,
    by_key,
    by_getattr,
    as_a_sequence,
    by_a_method,
    by_a_method_that_returns_it,
    twice,
    beside_a_question,
    by_iteration,
    by_enumerate,
    by_zip,
    by_items,
    by_a_function_out_of_a_table,
    in_a_comprehension,
]

OPENED = {
    its_layer: 1,
    its_norm: 2,
    its_layer_by_index: 1,
    its_layer_by_getattr: 1,
    its_layer_from_a_function: 1,
    its_method: 1,
    its_layer_in_a_function: 1,
    its_property: 2,
    its_weight: 1,
    its_weight_in_a_function: 1,
    its_statistics: 1,
    its_parameters: 1,
    a_setting_of_its_norm: 1,
    a_setting_of_its_layer_by_index: 1,
    a_setting_of_layers_in_a_loop: 2,
    whether_it_has_a_norm: 1,
    a_setting_of_a_named_module: 1,
    how_many_norms_there_are: 1,
    a_setting_to_sort_by: 1,
    opened_by_iteration: 2,
    opened_in_a_loop: 2,
    opened_in_enumerate: 1,
    opened_in_zip: 4,
    opened_where_a_function_returns_it: 1,
    opened_where_a_lambda_returns_it: 1,
    opened_under_the_name_of_a_pattern: 1,
    opened_by_another_name_of_its_dictionary: 1,
    opened_many_turns_later: 1,
    opened_by_a_function_out_of_a_table: 1,
    opened_by_a_function_that_a_table_makes: 1,
    opened_if_a_flag_is_set: 1,
    opened_by_a_block_that_stays: 2,
}
"""Bodies, and how many batch norms have to stay."""


def norms_left(body: Callable[..., Tensor]) -> tuple[int, int]:
    """Batch norms that run before and after a fusion, which is exact and says what it left."""
    model, x = ready(Eager(body)), images()
    fused = reparam.fuse(model)
    assert_reported(fused.reparam_report, "the model", "traced")
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    before, after = (count_operators(network, (x,)).batch_norms for network in (model, fused))
    return before, after


@pytest.mark.parametrize("body", ONLY_CALLED, ids=lambda body: body.__name__)
def test_what_is_only_called_is_fused(body: Callable[..., Tensor]) -> None:
    before, after = norms_left(body)
    assert before > after == 0


@pytest.mark.parametrize("body", OPENED, ids=lambda body: body.__name__)
def test_what_is_used_in_another_way_stays(body: Callable[..., Tensor]) -> None:
    before, after = norms_left(body)
    assert before >= after == OPENED[body]


def test_a_class_that_changes_between_two_calls() -> None:
    """What was read of its code before does not count any more."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()

        def forward(self, x: Tensor) -> Tensor:
            return x if x.mean() > 100 else self.block(x)

    model = ready(Changing())
    assert reparam.fuse(model).reparam_report.fused

    def forward(self: Any, x: Tensor) -> Tensor:
        return x if x.mean() > 100 else self.block(x) + self.block.conv(x)

    Changing.forward = forward  # type: ignore[method-assign]
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (images(),)), run(model, (images(),))) <= EXACT


def test_a_flag_that_is_set_later() -> None:
    model, x = ready(Eager(opened_if_a_flag_is_set)), images()
    fused: Any = reparam.fuse(model)
    model.flag = fused.flag = True
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_a_flag_that_a_forward_sets_where_it_gets_other_arguments() -> None:
    class Modal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Block()
            self.flag = False

        def forward(self, x: Tensor, mode: str | None = None) -> Tensor:
            self.flag = mode is not None
            y = self.block(x)
            if self.flag:
                y = y + self.block.conv(x).relu()
            return y

    model, x = ready(Modal()), images()
    fused = reparam.fuse(model)
    for inputs in ((x,), (x, "both")):
        assert relative_error(run(fused, inputs), run(model, inputs)) <= EXACT
