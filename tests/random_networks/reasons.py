"""Whether a report explains what stays: in words, at places that exist, and nothing forgotten."""

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from reparam.report.tables import RefusedRow, Report
from tests.random_networks.neighbours import Operator, affine_pairs, has_hooks

NAMES = {
    "convolution": r"conv",
    "linear": r"linear|matmul|addmm|einsum",
    "batch norm": r"norm",
    "addition": r"add|sub",
    "multiplication": r"mul|div|neg",
}
"""What the operators of each kind are called in a report."""

VIEWS = r"view|reshape|flatten|permute|transpose|axes|movedim|squeeze|getitem|contiguous"
"""What operators that only arrange axes are called in a report."""

INTERNALS = r"fx\.|Proxy|placeholder|call_(module|function|method)|get_attr|Traceback|<[a-z_.]+ "
"""What a reason in users' words never says, except where it quotes an exception."""


def path_of(row: RefusedRow, modules: Mapping[str, nn.Module]) -> str:
    """The path of the module of a row: `features.3` for `features.3 (add_1)`, root for `add_1`."""
    path, found, _ = row.place.partition(" (")
    if found or path in modules:
        return path
    assert row.place == "the model" or path.isidentifier(), f"no such place: {row}"
    return ""


def assert_reasons(model: nn.Module, report: Report) -> None:
    """Each refused row has a reason in words and a place in the model."""
    modules = dict(model.named_modules(remove_duplicate=False))
    for row in report.refused:
        assert path_of(row, modules) in modules, f"no such place: {row}"
        assert len(row.reason.split()) >= 3, f"no reason in words: {row}"
        words = re.sub(r"\(.*\w+: .*\)", "", row.reason)
        assert not re.search(INTERNALS, words), f"not a user's words: {row}"
        assert row.operator, f"no operator: {row}"


def assert_explained(
    model: nn.Module, fused: nn.Module, report: Report, inputs: Sequence[Any]
) -> None:
    """Of two affine operators of which one reads the other, one is new or has a reason."""
    modules = dict(model.named_modules(remove_duplicate=False))
    rows = [(path_of(row, modules), row) for row in report.refused]
    whole = {
        path
        for path, row in rows
        if " (" not in row.place and row.operator == type(modules[path]).__name__
    }
    # Hooks see a border, and so do several devices: nothing goes across it.
    whole |= {
        path
        for path, module in modules.items()
        if isinstance(module, nn.DataParallel) or has_hooks(module)
    }
    new = {row.name for row in report.fused}
    pairs, ran = affine_pairs(fused, inputs)
    as_before = {
        path
        for path, module in fused.named_modules()
        if ("forward" in vars(module) or any(_is_inside(path, caller) for caller in whole))
        and _takes_more(module)
        and not _ran_inside(path, new & ran)
    }
    kept = as_before | {path for path, row in rows if "uses what is inside it" in row.reason}
    for pair in pairs:
        first, second = pair
        if any(o.place in new or o.place in whole or _has_row(o, rows) for o in pair):
            continue
        if any(place in whole for _, place in second.views[first]):
            continue
        if _leaves_graph(pair, whole) or _has_view_row(second.views[first], rows):
            continue
        if any(all(_is_inside(o.place, path) for o in pair) for path in kept):
            continue
        raise AssertionError(
            f"unexplained: {second.kind} in {second.place or 'the model'} after {first.kind} in "
            f"{first.place or 'the model'}\n{report}"
        )


def _is_inside(place: str, path: str) -> bool:
    return not path or place == path or place.startswith(f"{path}.")


def _ran_inside(path: str, places: set[str]) -> bool:
    return any(_is_inside(place, path) for place in places)


def _takes_more(module: nn.Module) -> bool:
    """Whether a forward may get other arguments than were traced, and then runs as it was."""
    parameters = inspect.signature(type(module).forward).parameters.values()
    more = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return any(p.default is not p.empty or p.kind in more for p in parameters)


def _has_view_row(views: Sequence[tuple[str, str]], rows: Sequence[tuple[str, RefusedRow]]) -> bool:
    """Whether one of the views between two operators has a reason to stop them."""
    return any(
        _is_inside(path, place) and re.search(VIEWS, row.operator)
        for _, place in views
        for path, row in rows
    )


def _has_row(operator: Operator, rows: Sequence[tuple[str, RefusedRow]]) -> bool:
    return any(
        (
            re.search(NAMES[operator.kind], row.operator, re.IGNORECASE)
            and _is_inside(path, operator.place)
        )
        # Or it runs in code that a run decides, which is one operator of its graph.
        or (row.operator == "code" and path == operator.place)
        for path, row in rows
    )


def _leaves_graph(pair: tuple[Operator, Operator], whole: set[str]) -> bool:
    """Whether the value passes from one to the other through code that has no graph."""
    first, second = (operator.calls for operator in pair)
    shared = sum(one == two for one, two in zip(first, second, strict=False))
    crossed = (first[shared - 1], *first[shared:], *second[shared:])
    return any(call.place in whole for call in crossed)
