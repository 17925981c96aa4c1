"""Put an edited graph back into the module tree it was traced from.

Only modules whose own code changed get a new forward; every ancestor keeps its class, attributes
and methods, and goes on calling its children.
"""

from __future__ import annotations

import inspect
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable
from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from reparam.capture.operators import operator_name
from reparam.capture.reading.method_names import names_forward_uses
from reparam.capture.recorded import RecordedTrace
from reparam.capture.structures import nodes_in, outline
from reparam.capture.trace import Call, knows_only_tensors
from reparam.modules.tree import all_names, fetch
from reparam.rewriting.changes import Rewrite
from reparam.rewriting.fused_forward import FusedForward, Guards
from reparam.rewriting.new_code import GraftError, Slicer, TornError, UnlikeError
from reparam.rewriting.pruning import prune
from reparam.rewriting.repeats import graph_outline


@dataclass(frozen=True)
class Grafted:
    """What a graft did to the modules.

    Args:
        owners: The calls whose modules have new code.
        gone: The calls that are calls no more: their code became a part of their caller's.
    """

    owners: list[Call]
    gone: set[Call] = field(default_factory=set)

    def home(self, call: Call) -> Call:
        """The innermost call around a call that still is one."""
        return next(outer for outer in call.ancestry() if outer not in self.gone)


def graft(rewrite: Rewrite, target: nn.Module, elsewhere: Collection[int]) -> Grafted:
    """Change a module tree as an edited trace says.

    Args:
        rewrite: The edited trace.
        target: The module tree to change: the traced root or a copy of it.
        elsewhere: Identities of the modules and tensors that other code of the model uses.

    Raises:
        GraftError: If that cannot be; the module tree is as it was.
    """
    if isinstance(rewrite.trace, RecordedTrace):
        return _put_back(rewrite, target, elsewhere)
    return _Graft(rewrite, target).run(elsewhere)


def _put_back(rewrite: Rewrite, target: Any, elsewhere: Collection[int]) -> Grafted:
    """Give a graph module its own graph again, edited."""
    _register(rewrite, target)
    removed = {path for path, _ in rewrite.removed}
    for node in rewrite.graph.find_nodes(op="get_attr"):
        if node.target in removed and not node.users:
            rewrite.graph.erase_node(node)
    target.graph = rewrite.graph
    prune(target, rewrite, rewrite.trace.calls, (), lambda call: False, elsewhere)
    return Grafted(rewrite.trace.calls)


def _register(rewrite: Rewrite, target: nn.Module) -> None:
    for path, module in rewrite.modules.items():
        parent, _, name = path.rpartition(".")
        holder = fetch(target, parent) if parent else target
        if holder is None:
            raise GraftError(f"{parent} went with the code around it", [])
        holder._modules[name] = module  # its class may forbid to set attributes


class _Graft:
    def __init__(self, rewrite: Rewrite, target: nn.Module) -> None:
        self.rewrite = rewrite
        self.target = target
        self.trace = rewrite.trace
        self.present = set(rewrite.graph.nodes)
        self.inside: dict[Call, list[fx.Node]] = {call: [] for call in self.trace.calls}
        for node in rewrite.graph.nodes:
            caller = self.rewrite.caller.get(node)
            for call in caller.ancestry() if caller is not None else ():
                self.inside[call].append(node)
        times = Counter(id(call.module) for call in self.trace.calls)
        self.repeated = {call for call in self.trace.calls if times[id(call.module)] > 1}
        self.paths = all_names(self.trace.root)
        self.edited = set(rewrite.edited)
        self.inlined: set[Call] = set()
        self.slicer = Slicer(rewrite, self.inside, self.inlined, self.paths)
        self.shrunk = {call for _, caller in rewrite.removed for call in caller.ancestry()}

    def run(self, elsewhere: Collection[int]) -> Grafted:
        self._settle()
        apart = self._unlike()
        if apart:
            raise UnlikeError("calls of one block would need different code", apart)
        stateful = self.edited & self.trace.stateful
        if stateful:
            raise GraftError(
                "a module that changes its own attributes would get new code", stateful
            )
        torn = {frame for _, frame in self.rewrite.swapped if self._may_run_as_it_was(frame)}
        if torn:
            raise TornError("its parts would change for code that may run as it was", torn)
        self._drop_idle()
        forwards: list[tuple[Call, fx.Graph, dict[str, Any], tuple[str, ...]]] = []
        for call in self._owners(self.edited):
            if self._is_live(call):
                graph, baked, parameters = self.slicer.slice(call)
                forwards.append((call, graph, baked, parameters))
        _register(self.rewrite, self.target)
        attached: set[int] = set()
        for call, graph, baked, parameters in forwards:
            if id(call.module) not in attached:
                attached.add(id(call.module))
                self._attach(call, graph, baked, parameters)
        # Where other arguments may come, the code as it was must go on running.
        owners = [call for call, *_ in forwards if knows_only_tensors(call)]
        vanished = self._vanished_calls()
        prune(self.target, self.rewrite, owners, vanished, self._stays, elsewhere)
        gone = {call for call in self.trace.calls if call.parent and not self._stays(call)}
        return Grafted([call for call, *_ in forwards], gone)

    def _owners(self, calls: Collection[Call]) -> list[Call]:
        """Those of some calls that stay calls, in order."""
        return [call for call in self.trace.calls if call in calls and call not in self.inlined]

    def _is_live(self, call: Call) -> bool:
        return call.parent is None or bool(self.inside[call])

    def _may_run_as_it_was(self, call: Call) -> bool:
        """Whether a call's code moved into code that runs as it was with other arguments."""
        if call not in self.inlined:
            return False
        owner = next(outer for outer in call.ancestry() if outer not in self.inlined)
        return not knows_only_tensors(owner)

    # -- Which calls stay calls -----------------------------------------------------------------

    def _settle(self) -> None:
        """Inline the calls that cannot stay calls; whoever inlines has new code too."""
        for call in reversed(self.trace.calls):
            if call.parent is None:
                continue
            if not self._is_live(call):
                if self._vanished(call):
                    self.edited.add(call.parent)
                continue
            if (
                call in self.rewrite.inlined
                or (call in self.edited and not self._can_change_alone(call))
                or self._leaks(call)
                or any(self._is_gone(node) for node in nodes_in((call.args, call.kwargs)))
            ):
                self.inlined.add(call)
            if call in self.inlined:
                self.edited.add(call.parent)
                self.edited.discard(call)

    def _unlike(self) -> set[Call]:
        """The calls of modules whose calls would need different code after all."""
        codes: dict[int, list[Hashable]] = defaultdict(list)
        for call in self.trace.calls:
            needed = not self.rewrite.idle.issuperset(self.inside[call])
            if call in self.repeated and id(call.module) in self.rewrite.alike and needed:
                codes[id(call.module)].append(self._code(call))
        apart = {key for key, found in codes.items() if any(code != found[0] for code in found)}
        return {call for call in self.repeated if id(call.module) in apart}

    def _code(self, call: Call) -> Hashable:
        """What tells the new code of a module from what another call of it would need."""
        if call in self.inlined or call not in self.edited:
            return call in self.inlined
        try:
            graph, _, parameters = self.slicer.slice(call)
        except GraftError:
            return call
        return graph_outline(graph), parameters

    def _drop_idle(self) -> None:
        """Leave out of new code what it need not compute."""
        idle, caller = self.rewrite.idle, self.rewrite.caller
        owners = self._owners(self.edited - self.repeated)
        for owner in owners:
            for node in [node for node in reversed(self.inside[owner]) if node in idle]:
                inner = self.slicer.called_from(owner, caller[node])
                whole = inner is None or idle.issuperset(self.inside[inner])
                if node.users or not whole:
                    continue
                if node.op in ("call_module", "get_attr"):
                    self.rewrite.removed.append((str(node.target), caller[node]))
                for call in caller[node].ancestry():
                    self.inside[call].remove(node)
                    self.shrunk.add(call)
                self.present.remove(node)
                self.rewrite.graph.erase_node(node)

    def _is_gone(self, node: fx.Node) -> bool:
        return node.op != "get_attr" and self.rewrite.current(node) not in self.present

    def _vanished(self, call: Call) -> bool:
        """Whether a call had nodes of its own and has none any more."""
        return call in self.shrunk or call in self.edited

    def _can_change_alone(self, call: Call) -> bool:
        if call in self.repeated and id(call.module) not in self.rewrite.alike:
            return False
        return all(
            self.slicer.relative(str(node.target), call) is not None
            for node in self.inside[call]
            if node.op in ("call_module", "get_attr")
        )

    def _leaks(self, call: Call) -> bool:
        """Whether nodes inside are read outside by another way than the call's result."""
        inner = set(self.inside[call])
        results = {self.rewrite.current(node) for node in nodes_in(call.result)}
        arguments = {self.rewrite.current(node) for node in nodes_in(call.arguments)}
        for node in inner:
            if node in results or node.op == "get_attr":
                continue
            if any(user not in inner for user in node.users):
                return True
        visible = inner | arguments
        reads = {argument for node in inner for argument in node.all_input_nodes}
        return any(node not in visible and node.op != "get_attr" for node in results | reads)

    def _attach(
        self,
        call: Call,
        graph: fx.Graph,
        baked: dict[str, Any],
        parameters: tuple[str, ...],
    ) -> None:
        graph.lint()
        owner = fetch(self.target, call.path)
        if isinstance(owner, fx.GraphModule):
            owner.graph = graph
            return
        code = graph.python_code("self")
        names = {name: value for name, value in code.globals.items() if name in code.src}
        taken = list(inspect.signature(owner.forward).parameters.values())
        positional = tuple(p.name for p in taken[: len(parameters)]) == parameters and all(
            p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD for p in taken[: len(parameters)]
        )
        outlines = {name: outline(call.arguments[name]) for name in parameters}
        outlines = {name: was for name, was in outlines.items() if was is not None}
        types = {
            self.slicer.named(self._weight(path), call): self.trace.root.get_parameter(path).dtype
            for path in call.typed
        }
        guards = Guards(
            baked,
            outlines,
            frozenset(call.tensors),
            dict(call.lengths),
            types,
            () if knows_only_tensors(call) else tuple(self._flexible_parts(call)),
        )
        positional = positional and not guards.look_inside
        modal = self._is_modal(call, graph)
        FusedForward(owner, code.src, names, parameters, positional, guards, modal).attach()

    def _weight(self, path: str) -> str:
        """A weight of the type of one that may be gone: that of the operator in its place."""
        holder = path.rpartition(".")[0]
        return f"{self.rewrite.joined[holder]}.weight" if holder in self.rewrite.joined else path

    def _flexible_parts(self, owner: Call) -> list[str]:
        """The parts that new code stands for and whose own code depends on how they are called."""
        moved = [call for call in self.trace.calls if self._moves_into(call, owner)]
        paths = {call.path for call in moved if call is not owner and not knows_only_tensors(call)}
        return sorted(name for path in paths if (name := self.slicer.relative(path, owner)))

    def _is_modal(self, owner: Call, graph: fx.Graph) -> bool:
        """Whether new code holds a dropout or the like that the old code did in training only."""
        if not any(operator_name(node) in _MODAL and _does_work(node) for node in graph.nodes):
            return False
        replaced = [call.module for call in self.trace.calls if self._moves_into(call, owner)]
        return any(
            "training" in names_forward_uses(type(module))
            or getattr(vars(module).get("forward"), "modal", False)
            for module in replaced
        )

    def _moves_into(self, call: Call, owner: Call) -> bool:
        """Whether a call's code becomes a part of an owner's new code."""
        while call is not owner:
            if call.parent is None or self._stays(call):
                return False
            call = call.parent
        return True

    # -- What died must go ----------------------------------------------------------------------

    def _stays(self, call: Call) -> bool:
        return call not in self.inlined and self._is_live(call)

    def _vanished_calls(self) -> list[tuple[str, Call]]:
        """The calls of which nothing is left."""
        live = {id(call.module) for call in self.trace.calls if self._is_live(call)}
        return [
            (call.path, call.parent)
            for call in reversed(self.trace.calls)
            if call.parent is not None and id(call.module) not in live and self._vanished(call)
        ]


_MODAL = set(
    "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout rrelu batch_norm "
    "instance_norm".split()
)


def _does_work(node: fx.Node) -> bool:
    """Whether an operator would do something in training: a dropout of nothing does not."""
    rest = (*node.args[1:2], *(node.kwargs[name] for name in ("p",) if name in node.kwargs))
    return "dropout" not in operator_name(node) or rest != (0,)
