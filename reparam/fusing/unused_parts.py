"""What eval mode never needs: parts that no code runs, and what computes for nobody."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import fx, nn

from reparam.analysis import Part
from reparam.modules import fetch, find, join
from reparam.report import DroppedRow, Report
from reparam.rewriting import Rewrite


def unused_parts(
    model: nn.Module, parts: Sequence[Part], untraced: Iterable[str]
) -> list[DroppedRow]:
    """The parts with weights that no code runs, or runs for nobody, in the mode that it is in.

    What code runs if it is called in another way stays, and so does what other methods run.

    Args:
        model: The model.
        parts: Its parts that were traced.
        untraced: The paths of the modules whose code is not known.
    """
    used = {id(inner) for path in untraced for inner in _modules_at(model, path)}
    for_nobody = {id(module) for part in parts for module in _run_for_nobody(part)}
    by_methods: set[int] = set()
    apart = for_nobody if not used else set()  # code that is not known may run them
    for part in parts:
        if id(part.trace.root) in for_nobody:
            continue
        idle = idle_operators(part)
        running = [node for node in part.trace.graph.nodes if node not in idle]
        used |= part.touched(running) | part.typed()
        by_methods |= part.trace.by_methods.keys()
        used |= {id(fetch(part.trace.root, path)) for path in part.elsewhere} - apart
    # Of what a method runs all may run.
    used |= {
        id(inner)
        for module in model.modules()
        if id(module) in by_methods
        for inner in module.modules()
    }
    rows: list[DroppedRow] = []
    for path, module in model.named_modules(remove_duplicate=False):
        inside = any(path.startswith(f"{row.place}.") for row in rows)
        names = tuple(join(path, name) for name, _ in module.named_parameters())
        alone = used.isdisjoint(id(inner) for inner in module.modules())
        if path and names and alone and not inside:
            rows.append(DroppedRow(path, type(module).__name__, names))
    return rows


def _run_for_nobody(part: Part) -> list[nn.Module]:
    """The modules that are called, but whose code computes for nobody."""
    live = part.live()
    calls = (call for call in part.trace.calls if call not in live)
    return [inner for call in calls for inner in call.module.modules()]


def idle_operators(part: Part) -> set[fx.Node]:
    """The modules that code calls although nobody reads what they return."""
    return {node for node in part.facts.idle if node.op == "call_module"}


def idle_paths(part: Part) -> list[str]:
    """Their paths in the model."""
    return [join(part.trace.path, str(node.target)) for node in idle_operators(part)]


def leave_out(rewritten: Rewrite, part: Part) -> None:
    """Let the code that computes for nobody be new, which leaves that out."""
    for node in idle_operators(part):
        rewritten.changes[node] = {rewritten.caller[rewritten.copy(node)]}


def drop(model: nn.Module, rows: Iterable[DroppedRow], report: Report) -> None:
    """Take parts out of a model, which no code calls any more, and take that down."""
    for row in rows:
        holder, _, name = row.place.rpartition(".")
        around = find(model, holder)
        if isinstance(around, nn.Module):  # else it went with what held it
            around._modules[name] = None
        report.dropped.append(row)
        inside = f"{row.place}."
        report.fused[:] = [each for each in report.fused if not each.place.startswith(inside)]


def _modules_at(model: nn.Module, path: str) -> Iterable[nn.Module]:
    module = find(model, path)
    return module.modules() if isinstance(module, nn.Module) else ()
