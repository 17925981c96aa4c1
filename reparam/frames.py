"""Which code a region lies in, and what that code and the model hold besides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import takewhile
from types import MethodType

from torch import fx, nn

from reparam.calls import Call, Trace
from reparam.modules import fetch
from reparam.regions import Region


def knows_only_tensors(call: Call) -> bool:
    """Whether a call runs the same code whatever its arguments: each is a value of the graph."""
    arguments = call.arguments.values()
    return (
        not call.optional
        and not call.tensors
        and not call.lengths
        and not call.typed
        and all(isinstance(value, fx.Node) for value in arguments)
    )


def read_from(root: nn.Module, path: str) -> nn.Module:
    """The module whose tensor a path names, or that it names itself."""
    value = fetch(root, path)
    if isinstance(value, nn.Module):
        return value
    holder, _, _ = path.rpartition(".")
    return fetch(root, holder) if holder else root


def held_aside(root: nn.Module) -> set[int]:
    """Identities of the modules that some attribute holds besides their registration."""
    held: set[int] = set()
    for module in root.modules():
        pending = [value for name, value in vars(module).items() if name != "_modules"]
        while pending:
            value = pending.pop()
            if isinstance(value, nn.Module):
                held.add(id(value))
            elif isinstance(value, list | tuple | set):
                pending.extend(value)
            elif isinstance(value, dict):
                pending.extend(value.values())
            elif isinstance(value, MethodType):
                held.add(id(value.__self__))
            elif isinstance(value, partial):
                pending.extend((value.func, *value.args, *value.keywords.values()))
    return held


def common_caller(callers: Iterable[Call]) -> Call:
    """The innermost call that all of the calls were made in."""
    iterator = iter(callers)
    common = list(next(iterator).ancestry())[::-1]
    for call in iterator:
        ancestry = list(call.ancestry())[::-1]
        length = 0
        for one, two in zip(common, ancestry, strict=False):
            if one is not two:
                break
            length += 1
        common = common[:length]
    return common[-1]


def calls_between(inner: Call, outer: Call) -> Iterator[Call]:
    """A call and its callers up to one of them, which is left out."""
    return takewhile(lambda call: call is not outer, inner.ancestry())


def frame_of(trace: Trace, region: Region) -> Call:
    """The innermost call that all of a region lies in."""
    nodes = [region.value, *region.dying, *region.together]
    return common_caller([trace.caller[node] for node in nodes if node.op != "get_attr"])
