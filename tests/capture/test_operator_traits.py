"""The table of operators: every name is one of torch's, and no trait contradicts another."""

import builtins
import operator
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.analysis.effects import effects_of
from reparam.capture.checked_values import checked_axes, checked_sizes
from reparam.capture.item_assignment import assign
from reparam.capture.operator_traits import (
    Trait,
    is_in_place,
    listed,
    reads_metadata,
    traits,
    traits_of,
)
from reparam.rules import Rules

TABLE = list(listed())

aten: Any = torch.ops.aten

HOMES: tuple[Any, ...] = (
    torch, F, Tensor, torch._C._nn, torch._C, operator, builtins, nn, aten,
    torch.amp.autocast_mode, torch.autograd.grad_mode,
)  # fmt: skip


def overloads(name: str) -> Iterator[Any]:
    """The overloads of an ATen operator that write into no tensor given for their result."""
    packet = getattr(aten, name, None)
    for overload_name in () if packet is None else packet.overloads():
        overload = getattr(packet, overload_name)
        if not any(argument.is_out for argument in overload._schema.arguments):
            yield overload


def having(trait: Trait) -> list[str]:
    return [name for name, known in TABLE if trait in known]


def called(target: Any, *more: Any) -> fx.Node:
    graph = fx.Graph()
    x = graph.placeholder("x")
    if isinstance(target, str):
        return graph.call_method(target, (x, *more))
    return graph.call_function(target, (x, *more))


def test_no_name_stands_twice() -> None:
    plain = Counter(name.replace("_", "").lower() for name, _ in TABLE if not name.endswith("_"))
    assert [name for name, count in plain.items() if count > 1] == []
    assert len({name for name, _ in TABLE}) == len(TABLE)


NOT_IN_THIS_TORCH = {
    assign.__name__,
    checked_axes.__name__,
    checked_sizes.__name__,
    "names",
}  # ours, and an attribute of older tensors


@pytest.mark.parametrize("name", [name for name, _ in TABLE if name not in NOT_IN_THIS_TORCH])
def test_every_name_is_one_of_torch_or_python(name: str) -> None:
    assert any(hasattr(home, name) or hasattr(home, f"{name}_") for home in HOMES)


LICENSES = [
    (Trait.KEEPS_SHAPE, Trait.KEEPS_RANK),
    (Trait.PERMUTES, Trait.KEEPS_RANK),
    (Trait.RETURNS_WHAT_IT_WROTE, Trait.WRITES),
    (Trait.CONVERTS, Trait.DISCONTINUOUS),
    (Trait.DRAWS_BY_LAYOUT, Trait.RANDOM),
    (Trait.DIVIDES, Trait.COMPUTES),
    (Trait.POSITIVELY_HOMOGENEOUS, Trait.KEEPS_SHAPE),
]


@pytest.mark.parametrize(("trait", "implied"), LICENSES)
def test_a_trait_implies_another(trait: Trait, implied: Trait) -> None:
    assert having(trait)
    assert [name for name in having(trait) if implied not in traits_of(name)] == []


EXCLUDED = [
    (Trait.METADATA, Trait.WRITES | Trait.RANDOM | Trait.KEEPS_SHAPE | Trait.ALIASES),
    (Trait.FRESH, Trait.ALIASES | Trait.WRITES | Trait.RANDOM | Trait.INDEXES),
    (Trait.RANDOM, Trait.NUMBERS | Trait.CONSTANTS),
    (Trait.CONSTANTS, Trait.KEEPS_SHAPE | Trait.ALIASES | Trait.WRITES),
    (Trait.KEEPS_SHAPE, Trait.BROADCASTS | Trait.SPLITS | Trait.PERMUTES | Trait.INDEXES),
    (Trait.PASSES_TYPE, Trait.CONVERTS | Trait.BROADCASTS),
    (Trait.POSITIVELY_HOMOGENEOUS, Trait.DISCONTINUOUS | Trait.RANDOM | Trait.MODAL),
    (Trait.LAYS_OUT_ANEW, Trait.ALIASES | Trait.PERMUTES | Trait.MAY_COPY),
]


@pytest.mark.parametrize(("trait", "others"), EXCLUDED)
def test_traits_that_exclude_each_other(trait: Trait, others: Trait) -> None:
    assert having(trait)
    assert [name for name in having(trait) if traits_of(name) & others] == []


def test_every_trait_is_some_operators_and_says_what_it_licenses() -> None:
    assert all(having(trait) for trait in Trait)


# -- What torch itself says -----------------------------------------------------------------------


def test_what_is_fresh_shares_no_memory_by_its_schema() -> None:
    for name in having(Trait.FRESH):
        for overload in overloads(name):
            assert not any(result.alias_info for result in overload._schema.returns), overload


def test_what_writes_in_place_writes_by_its_schema_and_nothing_else_does() -> None:
    registered = [name.partition("::") for name in torch._C._dispatch_get_all_op_names()]
    names = {name.partition(".")[0] for space, _, name in registered if space == "aten"}
    ours = {name for name, _ in TABLE}
    no_numbers = "requires_grad_", "retain_grad", "record_stream", "set_data"  # what these write
    for name in names:
        for overload in overloads(name):
            first = overload._schema.arguments[:1]
            if not first or str(first[0].type) != "Tensor":
                continue  # it sorts a list, or takes nothing
            writes = first[0].alias_info is not None and first[0].alias_info.is_write
            if is_in_place(name):
                assert writes, overload
            elif name in ours and name not in no_numbers:
                assert not writes, overload


def test_no_operator_in_place_of_the_table_changes_its_shape() -> None:
    x = torch.rand(2, 3)
    for name in having(Trait.KEEPS_SHAPE):
        method = getattr(Tensor, f"{name}_", None)
        if method is not None:
            arguments = {"clamp_": (0.0,), "type_as_": (x,)}.get(f"{name}_", ())
            assert method(x.clone(), *arguments).shape == x.shape


def test_what_torch_marks_as_random_is_known_to_be() -> None:
    for name in having(Trait.RANDOM):
        seeded = [torch.Tag.nondeterministic_seeded in one.tags for one in overloads(name)]
        assert name.startswith("fractional") or not seeded or any(seeded), name
    for name, known in TABLE:
        draws = any(torch.Tag.nondeterministic_seeded in one.tags for one in overloads(name))
        assert not draws or known & (Trait.RANDOM | Trait.MODAL), name


def test_what_keeps_its_shape_does() -> None:
    x = torch.rand(2, 3, 4, 4)
    more: dict[str, tuple[Any, ...]] = {
        "group_norm": (3,), "layer_norm": ((4,),), "rms_norm": ((4,),), "clamp": (0.0,),
        "softmax": (1,), "log_softmax": (1,), "prelu": (torch.rand(3),), "type_as": (x,),
        "to": (torch.float64,), "batch_norm": (torch.zeros(3), torch.ones(3)),
        "_prelu_kernel": (torch.rand(1),), "roll": (1, 2),
    }  # fmt: skip
    for name in having(Trait.KEEPS_SHAPE):
        homes = (F, Tensor, torch)
        function = next((getattr(home, name) for home in homes if hasattr(home, name)), None)
        if function is not None:
            assert function(x, *more.get(name, ())).shape == x.shape, name


def test_what_keeps_its_entries_in_order_does() -> None:
    x = torch.rand(2, 3, 4, 1).transpose(0, 1)
    more: dict[str, tuple[Any, ...]] = {
        "view": (3, 2, 2, 2), "view_as": (torch.rand(3, 2, 2, 2),), "reshape": (4, -1),
        "reshape_as": (torch.rand(4, 6),), "unflatten": (2, (2, 2)), "unsqueeze": (1,),
    }  # fmt: skip
    ours = ("Identity", checked_axes.__name__, checked_sizes.__name__)
    for name in set(having(Trait.KEEPS_ORDER)).difference(ours):
        result = getattr(Tensor, name)(x, *more.get(name, ()))
        assert torch.equal(result.reshape(-1), x.reshape(-1)), name


# -- One operator, however it is spelled ----------------------------------------------------------


def test_all_spellings_are_one_operator() -> None:
    spellings = (F.leaky_relu, F.leaky_relu_, aten.leaky_relu.default, aten.leaky_relu_)
    assert len({traits(called(target)) for target in spellings}) == 1
    assert traits_of("LeakyReLU") == traits_of("leaky_relu")
    assert traits(called("__add__", 1)) == traits(called(operator.add, 1))
    assert Trait.WRITES in traits(called(operator.iadd, 1))
    assert Trait.WRITES not in traits(called(operator.and_, 1))


def test_an_attribute_is_no_method_of_its_name() -> None:
    assert reads_metadata(called(getattr, "requires_grad"))
    assert not reads_metadata(called("requires_grad_"))


def normalize(x: Tensor) -> Tensor:
    """Somebody's own function of a name that torch has, too."""
    return x.flatten()


def test_somebody_elses_function_is_not_known_by_its_name() -> None:
    assert not traits(called(normalize))
    assert traits(called(F.normalize))
    root = nn.Module()
    root.add_module("transpose", nn.ReLU())
    graph = fx.Graph()
    node = graph.call_module("transpose", (graph.placeholder("x"),))
    assert not traits(node)
    assert traits(node, root) == traits_of("relu")
    assert not traits(called(torch.device))


def test_a_pool_at_random_places_is_random() -> None:
    for pool in (F.fractional_max_pool2d, F.fractional_max_pool3d):
        assert effects_of(called(pool, 2), nn.Module(), Rules()).random
