"""Put an edited graph back into the module tree it was traced from.

Only modules whose own code changed get a new forward; every ancestor keeps its class, attributes
and methods, and goes on calling its children.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Hashable, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from typing import Any

from torch import fx, nn

from reparam.capture import (
    Call,
    RecordedTrace,
    Trace,
    Trait,
    calls_between,
    knows_only_tensors,
    nodes_in,
    operator_name,
    outline,
    traits,
)
from reparam.capture.reading import names_forward_uses
from reparam.modules import all_names, fetch, find
from reparam.rewriting.changes import Rewrite
from reparam.rewriting.fused_forward import FusedForward, Guards, held_at
from reparam.rewriting.new_code import (
    GraftError,
    NewCode,
    Slicer,
    TornError,
    UnlikeError,
    is_given_twice,
    path_below,
)
from reparam.rewriting.other_methods import methods_with_new_code, needs_new_code, released
from reparam.rewriting.placement import keep_for_methods, run_by_methods, sites_of_calls
from reparam.rewriting.pruning import prune
from reparam.rewriting.repeats import graph_outline, repeated_calls


@dataclass(frozen=True)
class Grafted:
    """What became of a module tree.

    Args:
        gone: The calls that are calls no more: their code became a part of their caller's.
        staying: Paths of what stays although no new code uses it: other code may.
    """

    gone: Set[Call] = frozenset()
    staying: Sequence[str] = ()


def graft(rewrite: Rewrite, target: nn.Module, elsewhere: Collection[int]) -> Grafted:
    """Change a module tree, the traced root or a copy of it, as an edited trace says.

    What is elsewhere, by identity, other code of the model uses.

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
    prune(target, rewrite, rewrite.trace.calls, (), lambda call, owner: True, elsewhere)
    return Grafted()


def _register(rewrite: Rewrite, target: nn.Module) -> None:
    for path, module in rewrite.modules.items():
        parent, _, name = path.rpartition(".")
        holder = fetch(target, parent)
        if holder is None:
            raise GraftError(f"{parent} went with the code around it", [])
        holder._modules[name] = module  # its class may forbid to set attributes


class _Graft:
    def __init__(self, rewrite: Rewrite, target: nn.Module) -> None:
        self.rewrite = rewrite
        self.target = target
        self.trace = rewrite.trace
        self.inside: dict[Call, list[fx.Node]] = {call: [] for call in self.trace.calls}
        for node in rewrite.graph.nodes:
            for call in rewrite.caller[node].ancestry():
                self.inside[call].append(node)
        self.shrunk = {call for _, caller in rewrite.removed for call in caller.ancestry()}
        self.repeated = repeated_calls(self.trace)
        self.sites = sites_of_calls()
        self.paths = all_names(self.trace.root)
        self.returned = set(map(rewrite.current, nodes_in(self.trace.calls[0].result)))
        self.reaching_out = _reaching_out(self.trace)
        self._settle()

    def run(self, elsewhere: Collection[int]) -> Grafted:
        """Change the module tree; nothing is changed before it is certain that it can be."""
        dropped: list[fx.Node] = []
        while idle := self._drop_idle():
            dropped.extend(idle)
            self._settle()  # a call of which nothing is left is none for its caller either
        self._check()
        calls = self.trace.calls
        codes = [
            NewCode(self.slicer, call)
            for call in calls
            if call in self.edited and self._is_live(call)
        ]
        owners = {code.call for code in codes if code.call not in self.repeated}
        ways = dict(methods_with_new_code(self.trace, self.slicer, owners))
        _register(self.rewrite, self.target)
        first = {id(code.call.module): code for code in reversed(codes)}
        # The other calls of a module would need the same.
        attached = [code for code in codes if code is first[id(code.call.module)]]
        for code in attached:
            self._attach(code)
        for way, code in ways.items():
            if needs_new_code(way, self.slicer):
                self._attach(code, way.name)
        # Where other arguments may come, the code as it was must go on running.
        changed = [code.call for code in codes]
        flexible = {call for call in changed if not knows_only_tensors(call)}
        for call in self.inlined:  # a method that runs its module runs the code that is there
            if call.parent is not None:
                keep_for_methods(call.path, call.parent, self.rewrite, self.sites)
        removed = [*self._unused(dropped), *self._vanished_calls(), *self._asked()]
        free = released(self.trace, ways)
        staying = prune(
            self.target, self.rewrite, changed, removed, self._moved, elsewhere, flexible, free
        )
        self._leave_behind()
        staying += self._numbers_checked(attached)
        return Grafted({call for call in calls if not self._stays(call)}, staying)

    def _unused(self, dropped: Collection[fx.Node]) -> list[tuple[str, Call]]:
        """What some code used for nodes that were left out, kept where methods may run it."""
        used = [node for node in dropped if node.op in ("call_module", "get_attr")]
        unused = [(str(node.target), self.rewrite.caller[node]) for node in used]
        for path, call in unused:
            keep_for_methods(path, call, self.rewrite, self.sites)
        return unused

    def _asked(self) -> list[tuple[str, Call]]:
        """The weights whose numbers decided what some code does, with its call."""
        return [(path, call) for call in self.trace.calls for path in sorted(call.asked)]

    def _leave_behind(self) -> None:
        """Leave what the code that is gone left in attributes whenever it ran."""
        paths = {id(call.module): call.path for call in self.edited | self.inlined}
        for module, name, value in self.trace.left_behind:
            path = paths.get(id(module))
            holder = None if path is None else find(self.target, path)
            if holder is not None:
                vars(holder)[name] = value

    def _numbers_checked(self, codes: Collection[NewCode]) -> list[str]:
        """Let new code check the numbers that decided what it is, where they may still change.

        Returns:
            The paths of the weights that hold them.
        """
        paths: dict[str, None] = {}
        for code in codes:
            moved = [call for call in self.trace.calls if self._moved(call, code.owner)]
            deciding = sorted(set[str]().union(*(call.deciding for call in moved)))
            held = {path: weight for path in deciding if (weight := held_at(self.target, path))}
            forward = vars(fetch(self.target, code.owner.path)).get("forward")
            if held and isinstance(forward, FusedForward):
                forward.check(held.values())
                paths.update(dict.fromkeys(held))
        return list(paths)

    def _settle(self) -> None:
        """Find the calls that cannot stay calls, and those that stay and have new code.

        Whoever takes in the code of another call has new code, too. A value that leaves a call by
        an attribute, say, goes on to do so where neither end has new code.
        """
        calls = self.trace.calls[1:]
        ends = {call: others for call in calls if (others := self._other_ends(call))}
        leaking = set[Call]()
        while True:
            self.inlined, self.edited = self._settled(leaking)
            changed = self.inlined | self.edited
            more = {
                call
                for call, others in ends.items()
                if call in changed or not changed.isdisjoint(others)
            }
            if more <= leaking:
                break
            leaking |= more
        self.slicer = Slicer(self.rewrite, self.inside, self.inlined, self.paths)

    def _settled(self, leaking: Set[Call]) -> tuple[set[Call], set[Call]]:
        """The calls that become code of others, these included, and those that have new code."""
        changes = self.rewrite.changes
        inlined, edited = set[Call](), set[Call]().union(*changes.values())
        touched = {call for value in changes for call in self.trace.caller[value].ancestry()}
        edited |= {call for call in touched if call.decided}  # which must check what was decided
        present = set(self.rewrite.graph.nodes)
        for call in reversed(self.trace.calls):  # those inside a call before it
            if call.parent is None:
                continue
            if not self._is_live(call):
                if call in self.shrunk or call in edited:
                    edited.add(call.parent)
            elif (
                call in self.rewrite.inlined
                or (call in edited and not self._can_change_alone(call))
                or (call in edited and call in self.reaching_out)
                or call in leaking
                or any(
                    node.op != "get_attr" and self.rewrite.current(node) not in present
                    for node in nodes_in((call.args, call.kwargs))
                )
            ):
                inlined.add(call)
                edited.add(call.parent)
                edited.discard(call)
        return inlined, edited

    def _can_change_alone(self, call: Call) -> bool:
        """Whether a module can have new code: for all its calls, and it sees all that it needs."""
        if call in self.repeated and id(call.module) not in self.rewrite.alike:
            return False
        around = islice(call.ancestry(), 1, None)
        if is_given_twice(call) and not all(map(knows_only_tensors, around)):
            return False  # called otherwise, the code around it may give it two values
        return all(
            path_below(call, str(node.target), self.paths) is not None
            for node in self.inside[call]
            if node.op in ("call_module", "get_attr")
        )

    def _other_ends(self, call: Call) -> set[Call]:
        """The calls that a call shares values with otherwise than by its arguments and result."""
        inside = set(self.inside[call])
        results = {self.rewrite.current(node) for node in nodes_in(call.result)}
        arguments = {self.rewrite.current(node) for node in nodes_in(call.arguments)}
        # The graph also holds on to what calls return for nobody: see `tracing_attempts`.
        escaping = (
            user
            for node in inside - results
            for user in node.users
            if node.op != "get_attr"
            and user not in inside
            and (user.op != "output" or node in self.returned)
        )
        read = results.union(*(node.all_input_nodes for node in inside)) - inside - arguments
        met = (*escaping, *(node for node in read if node.op != "get_attr"))
        return {self.rewrite.caller.get(node, self.trace.calls[0]) for node in met}

    def _check(self) -> None:
        """Raise a GraftError if code would change that must stay."""
        apart = self._unlike()
        if apart:
            raise UnlikeError("calls of one block would need different code", apart)
        keeping = {call for call in self.trace.calls if call.keeps}
        stateful = (self.edited & self.trace.stateful) | (
            self.inlined & (self.trace.stateful | keeping)
        )
        if stateful:
            raise GraftError(
                "a module that changes its own attributes would get new code", stateful
            )
        unchanged = {
            call for call in self.edited | self.inlined if id(call.module) in self.trace.unchanged
        }
        if unchanged:
            raise GraftError("a module that keep= lets stay would get new code", unchanged)
        early = self.inlined & set(self.trace.returning_early)
        if early:
            raise GraftError("a module that may return early would run in its caller's code", early)
        lost = self._lost()
        if lost:
            raise GraftError("a module that changes its own attributes would not run", lost)
        torn = {
            frame
            for value, frame in self.rewrite.frames.items()
            if self._parts_change(value, frame) and self._may_run_as_it_was(value, frame)
        }
        if torn:
            raise TornError("its parts would change for code that may run as it was", torn)

    def _parts_change(self, value: fx.Node, frame: Call) -> bool:
        """Whether parts of a call, and not only its own code, change for the region in it."""
        return value in self.rewrite.swapped or any(
            call is not frame and frame in call.ancestry() and self._stays(call)
            for call in self.rewrite.changes[value]
        )

    def _lost(self) -> set[Call]:
        """The calls whose new code would leave out one that does more than compute."""
        acting = (call for call in self.trace.calls if call.keeps or call in self.trace.stateful)
        left_out = (call for call in acting if not self._is_live(call))
        owners = (next(filter(self._stays, call.ancestry())) for call in left_out)
        return {owner for owner in owners if owner in self.edited}

    def _unlike(self) -> set[Call]:
        """The calls of modules whose calls would need different code after all."""
        codes: dict[int, list[Hashable]] = defaultdict(list)
        for call in self.trace.calls:
            needed = not self.rewrite.idle.issuperset(self.inside[call])
            if call in self.repeated and id(call.module) in self.rewrite.alike and needed:
                codes[id(call.module)].append(self._code(call))
        apart = {key for key, (first, *rest) in codes.items() if any(c != first for c in rest)}
        return {call for call in self.repeated if id(call.module) in apart}

    def _code(self, call: Call) -> Hashable:
        """What tells the new code of a module from what another call of it would need."""
        if call not in self.edited:
            return call in self.inlined
        try:
            code = NewCode(self.slicer, call)
        except GraftError:
            return call
        return graph_outline(code.graph), code.parameters

    def _may_run_as_it_was(self, value: fx.Node, frame: Call) -> bool:
        """Whether code that moved into its caller's may run as it was, with parts of a new region.

        It does in a caller that is given other arguments. A method that runs it is right if the
        region needed no new code.
        """
        if frame not in self.inlined:
            return False
        owner = next(outer for outer in frame.ancestry() if outer not in self.inlined)
        if not knows_only_tensors(owner):
            return True
        moved = self.rewrite.changes[value] & self.inlined
        return any(
            True
            for call in moved
            if call.parent is not None
            for _ in run_by_methods(call.path, call.parent, self.sites)
        )

    def _is_live(self, call: Call) -> bool:
        return call.parent is None or bool(self.inside[call])

    def _stays(self, call: Call) -> bool:
        return call not in self.inlined and self._is_live(call)

    def _moved(self, call: Call, owner: Call) -> bool:
        """Whether a call's code becomes a part of an owner's new code."""
        return not any(map(self._stays, calls_between(call, owner)))

    def _drop_idle(self) -> list[fx.Node]:
        """Leave out of new code what it need not compute, and say what that is."""
        idle, caller = self.rewrite.idle, self.rewrite.caller
        dropped: list[fx.Node] = []
        for owner in self.trace.calls:
            if owner not in self.edited or owner in self.repeated:
                continue
            for node in [node for node in reversed(self.inside[owner]) if node in idle]:
                inner = self.slicer.called_from(owner, caller[node])
                whole = inner is None or idle.issuperset(self.inside[inner])
                if node.users or not whole:
                    continue
                dropped.append(node)
                for call in caller[node].ancestry():
                    self.inside[call].remove(node)
                    self.shrunk.add(call)
                self.rewrite.graph.erase_node(node)
        return dropped

    def _attach(self, code: NewCode, name: str = "forward") -> None:
        """Give a module its new code."""
        code.graph.lint()
        owner = fetch(self.target, code.call.path)
        if isinstance(owner, fx.GraphModule):
            owner.graph = code.graph
            return
        modal = self._is_modal(code.owner, code.graph)
        guards = self._guards(code)
        keeps = name == "forward" and bool(code.call.keeps)
        FusedForward(owner, code.graph, code.parameters, guards, modal, name, keeps=keeps).attach()

    def _guards(self, code: NewCode) -> Guards:
        """What was taken for granted while a module was traced."""
        call = code.call
        outlines = {name: outline(call.arguments[name]) for name in code.parameters}
        types = {
            self.slicer.named(self._weight(path), call): self.trace.root.get_parameter(path).dtype
            for path in call.typed
        }
        flexible = () if knows_only_tensors(call) else self._flexible_parts(code.owner)
        return Guards(
            baked=code.baked,
            outlines={name: shape for name, shape in outlines.items() if shape is not None},
            tensors=frozenset(call.tensors),
            lengths=dict(call.lengths),
            types=types,
            unhooked=tuple(sorted(flexible)),
        )

    def _flexible_parts(self, owner: Call) -> set[str]:
        """The parts that new code stands for and whose own code depends on how they are called."""
        moved = (call for call in self.trace.calls if self._moved(call, owner))
        paths = {call.path for call in moved if call is not owner and not knows_only_tensors(call)}
        return {name for path in paths if (name := path_below(owner, path, self.paths))}

    def _weight(self, path: str) -> str:
        """A weight of the type of one that may be gone: that of the operator in its place."""
        holder = path.rpartition(".")[0]
        return f"{self.rewrite.joined[holder]}.weight" if holder in self.rewrite.joined else path

    def _is_modal(self, owner: Call, graph: fx.Graph) -> bool:
        """Whether new code holds a dropout or the like that the old code did in training only."""
        if not any(Trait.MODAL in traits(node) and _does_work(node) for node in graph.nodes):
            return False
        return any(
            "training" in names_forward_uses(type(call.module))
            or getattr(vars(call.module).get("forward"), "modal", False)
            for call in self.trace.calls
            if self._moved(call, owner)
        )

    def _vanished_calls(self) -> list[tuple[str, Call]]:
        """The calls of which nothing is left, kept where methods may make them."""
        live = {id(call.module) for call in self.trace.calls if self._is_live(call)}
        vanished = [
            (call.path, call.parent)
            for call in reversed(self.trace.calls)
            if call.parent is not None
            and id(call.module) not in live
            and (call in self.shrunk or call in self.edited)
        ]
        for path, caller in vanished:
            keep_for_methods(path, caller, self.rewrite, self.sites)
        return vanished


def _reaching_out(trace: Trace) -> set[Call]:
    """The calls whose code reads what code around them computed, and did not hand to them.

    Where that code put it, it would go on putting it, though nobody reads it any more.
    """
    reaching: set[Call] = set()
    for node, caller in trace.caller.items():
        for operand in node.all_input_nodes:
            if operand.op == "get_attr" or trace.caller.get(operand) is caller:
                continue
            around = set(trace.caller[operand].ancestry()) if operand in trace.caller else set()
            for call in caller.ancestry():
                if call in around:
                    break
                if operand not in nodes_in(call.arguments):
                    reaching.add(call)
    return reaching


def _does_work(node: fx.Node) -> bool:
    """Whether an operator would do something in training: a dropout of nothing does not."""
    probability = node.args[1:2] or (node.kwargs.get("p"),)
    return "dropout" not in operator_name(node) or probability != (0,)
