"""Writes docs/rules.md from the registry: `python -m tests.support.rules_page`."""

import importlib
import sys
from pathlib import Path
from typing import Any

import reparam.fusing  # noqa: F401 -- whatever brings rules is there from now on
from reparam.rules import first_line, is_built_in, registered_rules, spelled
from tests.support.correctness_page import table

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "rules.md"

INTRODUCTION = """\
# Built-in rules

What `reparam` knows of torch's operators, from its registry: one rule serves all spellings of an
operator. `aten.add` means all overloads of that operator. What is not listed ends a region. A rule
still refuses a call that is not affine, for example a batch norm in training mode; the reason is in
the report. [Custom rules](custom-rules.md) shows how to add one, and
`python -m tests.support.rules_page` writes this page.
"""


def built_in_rules() -> dict[Any, Any]:
    """The rules that the families define, not those of an example in a docstring of theirs."""
    return {
        target: rule
        for target, rule in registered_rules().items()
        if is_built_in(rule) and vars(sys.modules[rule.__module__]).get(rule.__name__) is rule
    }


def page() -> str:
    """The whole page."""
    families: dict[str, dict[str, list[str]]] = {}
    rules = built_in_rules().items()
    for target, rule in sorted(rules, key=lambda pair: pair[1].__module__):
        rows = families.setdefault(rule.__module__, {})
        rows.setdefault(first_line(rule), []).append(f"`{spelled(target)}`")
    parts = [INTRODUCTION]
    for family, rows in sorted(families.items()):
        heading = family.rpartition(".")[2].capitalize()
        parts.append(f"## {heading}\n\n{first_line(importlib.import_module(family))}\n")
        parts.append(
            table(["what it does", "spellings"], [[does, ", ".join(s)] for does, s in rows.items()])
        )
    return "\n".join(parts)


def write_page() -> None:
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write_page()
