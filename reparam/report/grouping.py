"""Many rows as few: by the parts of a model that they are in, and by reasons."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Generic, TypeVar

from reparam.report.entries import FusedRow, RefusedRow

RowT = TypeVar("RowT", FusedRow, RefusedRow)

_MOST_KINDS = 4

_NAMES = re.compile(
    r"\b(?!example_inputs|fold_norms|drop_unused)[a-zA-Z]\w*(?:\.\w+|_\w+|\d)[\w.]*\w(?: \(\w+\))?"
    r"|\b(?!example_inputs|fold_norms|drop_unused)[a-zA-Z]+_\w+|\b[a-zA-Z]+\d+\b"
)
"""What in a reason may be the name or the place of a value."""

_HELPED = re.compile(r"example_inputs|fold_norms|drop_unused|verify=|a rule|rules=|pass ")
"""What is in a reason that says what its reader may do."""


@dataclass(frozen=True)
class Part(Generic[RowT]):
    """Rows of one part of a model.

    Args:
        label: The part, or several that are numbered.
        rows: The rows, in order.
    """

    label: str
    rows: tuple[RowT, ...]


def path_of(place: str) -> str:
    """The path of the module that a place is in; the name of a value in the model's own code."""
    return place.partition(" (")[0]


def by_parts(rows: Sequence[RowT], depth: int) -> list[Part[RowT]]:
    """The rows of each part, where parts have no more than so many names in their paths."""
    return _gathered(rows, lambda row: ".".join(path_of(row.place).split(".")[:depth]))


def within(rows: Sequence[RowT], most: int) -> list[Part[RowT]]:
    """The rows in no more than so many groups, of parts as small as that allows.

    Parts that are numbered, such as ``stages.0`` to ``stages.3``, are taken together first.
    """
    deepest = max((path_of(row.place).count(".") + 1 for row in rows), default=1)
    groups: list[Part[RowT]] = []
    for depth in range(deepest, 0, -1):
        groups = by_parts(rows, depth)
        if len(groups) <= most:
            return groups
        groups = _numbered(groups)
        if len(groups) <= most:
            return groups
    rest = tuple(row for group in groups[most - 1 :] for row in group.rows)
    others: Any = Part("others", rest)  # mypy takes a type for each of RowT
    return [*groups[: most - 1], others]


def _gathered(rows: Iterable[RowT], key: Callable[[RowT], str]) -> list[Part[RowT]]:
    gathered: dict[str, list[RowT]] = {}
    for row in rows:
        gathered.setdefault(key(row), []).append(row)
    return [Part(label or "the model", tuple(held)) for label, held in gathered.items()]


def _numbered(groups: Sequence[Part[RowT]]) -> list[Part[RowT]]:
    """Groups whose labels differ in their last number alone, as one."""
    found: dict[str, list[tuple[int, Part[RowT]]]] = {}
    for group in groups:
        match = re.fullmatch(r"(.*?)(\d+)(\D*)", group.label)
        stem = group.label if match is None else f"{match[1]}#{match[3]}"
        found.setdefault(stem, []).append((int(match[2]) if match else 0, group))
    merged: list[Part[RowT]] = []
    for stem, members in found.items():
        rows = tuple(chain.from_iterable(group.rows for _, group in members))
        numbers = [number for number, _ in members]
        span = f"{min(numbers)}-{max(numbers)}"
        label = members[0][1].label if len(members) == 1 else stem.replace("#", span)
        merged.append(Part(label, rows))
    return merged


def by_reasons(rows: Sequence[RefusedRow]) -> list[Part[RefusedRow]]:
    """The rows of each reason: those first that say what to do, then the most frequent ones.

    Reasons that differ in the names of values alone are one.
    """
    groups = _gathered(rows, lambda row: _NAMES.sub("…", row.reason))
    return sorted(groups, key=lambda group: (not can_be_helped(group.rows[0]), -len(group.rows)))


def can_be_helped(row: RefusedRow) -> bool:
    """Whether a reason says what its reader may do."""
    return _HELPED.search(row.reason) is not None


def kinds(texts: Iterable[str]) -> str:
    """Operators of several rows by kind and number: ``18 Conv2d + 18 BatchNorm2d + …``."""
    counts: Counter[str] = Counter()
    for text in texts:
        for part in text.split(" + "):
            number, space, kind = part.partition(" ")
            several = bool(space) and number.isdigit()
            counts[kind if several else part] += int(number) if several else 1
    named = [f"{count} {kind}" if count > 1 else kind for kind, count in counts.most_common()]
    return " + ".join([*named[:_MOST_KINDS], *["…"] * (len(named) > _MOST_KINDS)])


def without_sizes(result: str) -> str:
    """What a new operator is, but for its channels: ``conv 3x3``."""
    return re.split(r", | \d+ -> ", result)[0]
