"""Lists the public names and their signatures: `python -m tests.support.public_api` renews it."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import reparam.report

RETURNED = (
    "DroppedRow",
    "EqualizedRow",
    "ExpandedRow",
    "ExpansionReport",
    "FrozenRow",
    "FusedRow",
    "RefusedRow",
    "Report",
)
"""What public calls return, of `reparam.report`; nobody makes these."""

LISTING = Path(__file__).resolve().parents[1] / "public_api.txt"


def public_names() -> Iterator[tuple[str, Any]]:
    """Every public name of the library, as people write it, with what it is."""
    for name in sorted(reparam.__all__):
        thing = getattr(reparam, name)
        if inspect.ismodule(thing):
            for inner, member in sorted(vars(thing).items()):
                home = str(getattr(member, "__module__", ""))
                if f"{home}.".startswith(f"{thing.__name__}.") and inner[0] != "_":
                    yield f"reparam.{name}.{inner}", member
        else:
            yield f"reparam.{name}", thing
    for name in RETURNED:
        yield f"reparam.report.{name}", getattr(reparam.report, name)


def listing() -> str:
    """One line per function, and per class with its public methods, properties and attributes."""
    lines: list[str] = []
    for name, thing in public_names():
        if not inspect.isclass(thing):
            lines.append(f"{name}{inspect.signature(thing)}")
            continue
        bases = ", ".join(base.__name__ for base in thing.__bases__ if base is not object)
        lines.append(f"class {name}({bases})" if bases else f"class {name}")
        lines += [f"    {line}" for line in _members(thing)]
    return "\n".join(lines) + "\n"


def _members(kind: type) -> list[str]:
    lines: list[str] = []
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if not field.name.startswith("_"):
                needed = field.default is field.default_factory is dataclasses.MISSING
                lines.append(f"{field.name}: {field.type}{'' if needed else ' = ...'}")
    elif "__init__" in vars(kind):
        lines.append(f"__init__{inspect.signature(kind.__init__)}")
    own = [base for base in kind.__mro__ if base.__module__.partition(".")[0] == "reparam"]
    for name in sorted({name for base in own for name in vars(base) if not name.startswith("_")}):
        member = inspect.getattr_static(kind, name)
        if isinstance(member, property):
            kinds = inspect.signature(member.fget).return_annotation
            lines.append(f"{name} -> {kinds}")
        elif inspect.isfunction(member):
            lines.append(f"{name}{inspect.signature(member)}")
    return lines


if __name__ == "__main__":
    LISTING.write_text(listing(), encoding="utf-8")
