"""All of torch's operators are run: those that write to what stays are those that are listed."""

from __future__ import annotations

import sys
import types
import unittest
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reparam.modules import SILENT_WRITES, written_by

SAMPLES = 4
"""How many of the samples that torch tests an operator with are taken."""

OF_TORCH = ("aten", "prims")


def samples() -> Iterator[tuple[Any, Any]]:
    """Operators with arguments, as torch itself tests them; none where torch does not bring them.

    torch's own tests need a package that a user of torch does not have; nothing here does.
    """
    if "expecttest" not in sys.modules:
        stub: Any = types.ModuleType("expecttest")
        stub.TestCase, stub.assert_expected_inline = unittest.TestCase, None
        sys.modules["expecttest"] = stub
    common = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    for operator in common.op_db:
        try:
            # Below `sample_inputs`, which looks at the whole stack for each sample.
            inputs = operator.sample_inputs_func(operator, "cpu", torch.float32, False)
            for sample, _ in zip(inputs, range(SAMPLES), strict=False):
                yield operator.op, (sample.input, *sample.args, sample.kwargs)
        except Exception:  # it has no samples of this type
            continue


def small_arguments(operator: OpOverload) -> Iterator[list[Any]]:
    """Small arguments of an operator by its schema, several lists of them."""
    for shape in ((2, 3, 4, 4), (3, 3), (3,)):
        for flag in (True, False):
            yield [
                argument.default_value
                if argument.has_default_value() and "bool" not in str(argument.type)
                else _small(str(argument.type), argument.name, shape, flag)
                for argument in operator._schema.arguments
            ]


def _small(kind: str, name: str, shape: tuple[int, ...], flag: bool) -> Any:
    of_channels = ("weight", "bias", "mean", "var", "invstd", "running_mean", "running_var")
    match kind.removeprefix("Optional[").removesuffix("]"):
        case "Tensor":
            return torch.rand(shape[1:2] or shape if name in of_channels else shape) + 0.5
        case "List[Tensor":
            return [torch.rand(shape), torch.rand(shape)]
        case "bool":
            return flag
        case "int":
            return 1
        case "List[int":
            return [1, 1]
        case "float" | "number":
            return 0.5
    return None


class Comparing(TorchDispatchMode):
    """Notes which operators change a tensor that their schemas say stays, or that no table has."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.unsaid: set[str] = set()
        self.unlisted: set[str] = set()

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.compared(func, args, kwargs or {})

    def compared(self, func: OpOverload, args: Any, kwargs: Any) -> Any:
        self.seen.add(str(func))
        said = [
            args[index] if index < len(args) else kwargs.get(argument.name)
            for index, argument in enumerate(func._schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        known = {tensor.untyped_storage()._cdata for tensor in strided(said)}
        stays = [
            (tensor, bits(tensor))
            for tensor in strided((args, kwargs))
            if tensor.untyped_storage()._cdata not in known
        ]
        listed = [id(tensor) for tensor in strided(written_by(func, args, kwargs))]
        result = func(*args, **kwargs)
        for tensor, before in stays:
            if bits(tensor) != before:
                self.unsaid.add(func.overloadpacket.__name__)
                self.unlisted |= set() if id(tensor) in listed else {str(func)}
        return result


def strided(structure: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(structure) if isinstance(leaf, Tensor))
    return [leaf for leaf in leaves if leaf.layout is torch.strided and not leaf.is_quantized]


def bits(tensor: Tensor) -> bytes:
    """The shape and the memory of a tensor, bit for bit."""
    if tensor.device.type != "cpu":
        return b""
    held = tensor.detach().resolve_conj().resolve_neg().contiguous().flatten()
    return bytes(str(tensor.shape), "ascii") + held.view(torch.uint8).numpy().tobytes()


def writers() -> set[str]:
    """The names in the table whose operators run on this machine."""
    elsewhere = {"cudnn_batch_norm", "miopen_batch_norm", "batch_norm_gather_stats"}
    elsewhere |= {"batch_norm_gather_stats_with_counts"}  # of a GPU
    return SILENT_WRITES.keys() - elsewhere - {"embedding", "embedding_bag"}  # F's own


def test_operators_write_to_what_they_say_and_to_what_is_listed() -> None:
    """Every operator below the calls with which torch tests itself."""
    comparing = Comparing()
    for operator, (*args, kwargs) in samples():
        try:
            with torch.no_grad(), comparing:
                operator(*args, **kwargs)
        except Exception:  # not for this type or machine
            continue
    assert len(comparing.seen) > 400
    assert not comparing.unlisted
    assert comparing.unsaid == {"native_batch_norm"}


def test_no_other_operator_of_the_registry_writes_to_statistics() -> None:
    """Every operator whose schema names statistics that stay, above what it is made of too."""
    comparing, ran = Comparing(), set()
    for schema in torch._C._jit_get_all_schemas():
        space, name = schema.name.split("::")
        names = {argument.name for argument in schema.arguments}
        if space not in OF_TORCH or not names & {"running_mean", "running_var", "max_norm"}:
            continue
        packet = getattr(getattr(torch.ops, space), name)
        operator = getattr(packet, schema.overload_name or "default", None)
        if not isinstance(operator, OpOverload) or "backward" in name:
            continue
        for arguments in small_arguments(operator):
            try:
                comparing.compared(operator, tuple(arguments), {})
                ran.add(name)
            except Exception:  # not for this machine, or such arguments
                continue
    assert not comparing.unlisted
    assert comparing.unsaid == writers()
    assert {"native_batch_norm", "instance_norm", "batch_norm_update_stats"} <= ran


def test_a_norm_that_does_not_train_writes_to_nothing() -> None:
    x, held = torch.rand(2, 3, 4, 4), [torch.rand(3) for _ in range(4)]
    operator = torch.ops.aten.native_batch_norm.default
    assert written_by(operator, (x, *held, False, 0.1, 1e-5), {}) == []
    assert len(written_by(operator, (x, *held, True, 0.1, 1e-5), {})) == 2
