"""What code asks of the modules that it runs, besides running them.

An operator that goes leaves an identity: of another class, without a kernel, and what it returns is
what it is given. Code that asks for any of that must not go on running with one.
"""

from __future__ import annotations

import dis
from collections import defaultdict
from collections.abc import Iterable
from functools import cache
from types import CodeType

from torch import nn

from reparam.capture.reading.function_reader import Reader
from reparam.capture.reading.method_names import names_in, names_of_properties
from reparam.capture.reading.modules_used import Reach
from reparam.capture.reading.source import codes_in, functions_below

_ASKING = {
    *("isinstance", "issubclass", "type", "__class__", "callable", "id"),
    *("hasattr", "getattr", "vars", "dir", "__dict__", "repr", "str"),
    *("parameters", "named_parameters", "buffers", "named_buffers", "state_dict"),
    *("children", "named_children", "modules", "named_modules"),
}
"""Names by which code asks of what kind a module is, or what it holds."""

_SAME = {"id", "is_", "is_not"}
"""Names of functions that tell objects apart."""


class Onlookers:
    """The modules whose forwards look at parts, and those that tell objects apart.

    Args:
        modules: The modules whose forwards run.

    Attributes:
        telling_apart: Identities of the modules whose forwards ask if two values are one object.
        perhaps: Identities of those whose code has names by which it might look at parts: what that
            code then does, reading it may not tell.
    """

    def __init__(self, modules: Iterable[nn.Module]) -> None:
        by_id = {id(module): module for module in modules}
        telling = _ASKING | _made_with(
            part for module in by_id.values() for part in module.children()
        )
        self.telling_apart = {key for key, module in by_id.items() if _tells_apart(module)}
        self.perhaps = {k for k, m in by_id.items() if not _names_below(m).isdisjoint(telling)}
        self._looking: dict[int, set[int]] = defaultdict(set)
        for key in self.perhaps:
            for part in _looked_at(by_id[key]):
                self._looking[part].add(key)

    def of(self, part: nn.Module) -> set[int]:
        """Identities of the modules whose forward asks what a part is, or how it is made."""
        return self._looking.get(id(part), set())


def _looked_at(module: nn.Module) -> set[int]:
    """Identities of the modules of which a forward asks the kind, or reads an attribute."""
    reach = Reach()
    reader = Reader(reach, strict=True)
    reader.call(reader.refer(module.forward), (), {})
    return reach.asked | reach.inspected


def _made_with(parts: Iterable[nn.Module]) -> set[str]:
    """The attributes of modules that an identity lacks."""
    names = set[str]()
    for part in parts:
        tensors = (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
        names.update(vars(part), (name for name, _ in tensors))
    return names - vars(nn.Identity()).keys()


def _names_below(module: nn.Module) -> set[str]:
    """All names that a forward uses, and the methods and plain functions that it may run."""
    functions = functions_below(module, module.forward)
    return names_of_properties(type(module)).union(*map(names_in, functions))


def _tells_apart(module: nn.Module) -> bool:
    """Whether the code of a forward asks if two values are one object."""
    functions = functions_below(module, module.forward)
    return any(_compares_objects(function.__code__) for function in functions)


@cache
def _compares_objects(function: CodeType) -> bool:
    for code in codes_in(function):
        root = ""  # what the operand on the right begins with: constants and classes are no values
        for step in dis.get_instructions(code):
            if step.opname == "IS_OP" and not root.startswith(("LOAD_CONST", "LOAD_GLOBAL")):
                return True
            if step.argval in _SAME and step.opname.startswith("LOAD_"):
                return True
            if step.opname not in ("LOAD_ATTR", "LOAD_METHOD"):
                root = step.opname
    return False
