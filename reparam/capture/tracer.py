"""The tracer: what it looks into, what it takes for certain, and who made each node."""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from threading import get_ident
from types import FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from reparam.capture.code_statement import returned
from reparam.capture.given_arguments import Reading, arguments_of
from reparam.capture.given_objects import GivenObjects
from reparam.capture.item_assignment import assign
from reparam.capture.operator_traits import is_of_torch, returns_what_it_wrote
from reparam.capture.reading import functions_below
from reparam.capture.stand_ins import (
    Answer,
    ConstantProxy,
    ConstantValues,
    Contexts,
    Decisions,
    Doubts,
    KeptValues,
    Kinds,
    KnownDtype,
    KnownDtypes,
    Proxy,
    RewrittenWeights,
    SetAttributes,
    comes_of_tensors,
    settled_by,
    unanswerable,
)
from reparam.capture.structures import proxies_in, without_proxies
from reparam.capture.trace import Call, WayIn, bound, has_options, surely_given
from reparam.errors import MadeTensorError, UntraceableError
from reparam.modules import (
    Watch,
    computes_its_weights,
    has_hooks,
    has_own_call,
    is_as_made,
    names_of_tensors,
    random_state,
    weights_of_hooks,
)
from reparam.rules import Rules


def _is_observed(module: nn.Module) -> bool:
    """Whether hooks see the values of a module, or change them."""
    return has_hooks(module) and not computes_its_weights(module)


def _is_checkpointed() -> bool:
    """Whether checkpointing makes the call that is entered, inside the one entered before it."""
    frame: FrameType | None = sys._getframe(2)
    while frame is not None and frame.f_code is not Tracer._enter.__code__:
        if frame.f_globals.get("__name__") == checkpoint.__module__:
            return True
        frame = frame.f_back
    return False


def _returned(result: Any) -> Any:
    """What a call returns if it does not end early."""
    proxies = [*proxies_in(result)]
    if len(proxies) != sum(isinstance(leaf, fx.Proxy) for leaf in tree_leaves(result)):
        raise UntraceableError("it returns early, or a container of a class of its own")
    return tree_map_only(fx.Proxy, returned, result)


def _is_like_a_function(module: nn.Module) -> bool:
    """Whether a module outside the model holds nothing of its own: made in a forward, or global."""
    if type(module) is nn.Sequential:
        return True  # a slice of one: its parts are registered, or asked for in turn
    plain = is_of_torch(type(module)) and not has_hooks(module)
    return plain and not any(True for _ in chain(module.parameters(), module.buffers()))


class Tracer(fx.Tracer):
    """Records a module's forward, and which call made each node.

    Args:
        root: The module.
        rules: The rules of this call; a module type with a rule is a leaf.
        opaque: Identities and types of modules that are leaves.
        inputs: Parameters of the forward that the user gives.
        making: Identities of modules of which what makes tensors of numbers is recorded.
        decided: What example inputs decided of the way that the forward takes.
        reading: How these are read.
        notices_random: Whether to find out which module draws random numbers.
        twice: Whether the forward runs a second time, on what the first run left behind.
    """

    trace_asserts = True

    def __init__(
        self,
        root: nn.Module,
        rules: Rules,
        opaque: Collection[Any],
        inputs: Mapping[str, Any],
        making: Collection[int] = (),
        decided: Sequence[Answer] = (),
        *,
        reading: Reading,
        notices_random: bool,
        twice: bool,
    ) -> None:
        super().__init__()
        self.rules = rules
        self.opaque = opaque
        self.inputs = inputs
        self.reading = reading
        self.model = root
        self.names = names_of_tensors(root)
        self.registered = set(root.modules())
        # Where its parameters are a value has to be, too.
        devices = {tensor.device for tensor in (*root.parameters(), *root.buffers())}
        self.device = devices.pop() if len(devices) == 1 else None
        self.calls: list[Call] = []
        self.stack: list[Call] = []
        self.doubts = Doubts(self, Tracer._enter.__code__)
        self.kinds = Kinds(self)
        self.contexts = Contexts(self)
        self.random_modules: list[nn.Module] = []
        self.writing_modules: list[nn.Module] = []
        self.thread = get_ident()
        self.caller: dict[fx.Node, Call] = {}
        self.types = KnownDtypes()
        self.constants = ConstantValues(self)
        self.rewritten = RewrittenWeights(self.constants)
        self.failed: nn.Module | None = None
        self.watch = Watch(root)
        self.making = making
        self.makers: set[int] = set()
        self.notices_random = notices_random
        self.kept = KeptValues(self)
        self.decisions = Decisions(self, decided)
        self.twice = twice
        self.settled: set[int] = set()
        self.left_behind: list[tuple[nn.Module, str, Any]] = []
        self.ways_in: list[WayIn] = []
        self.put_into_objects: dict[Call, list[fx.Node]] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module stays one node."""
        if id(m) in self.opaque or type(m) in self.opaque or _is_observed(m):
            return True
        if isinstance(m, torch.jit.ScriptModule):
            return True
        if type(m).__module__.startswith("torch.ao.quantization"):
            return True  # it is switched on and off from outside
        if "forward" in vars(m) or parametrize.is_parametrized(m):
            return False  # not the operator that its type says
        if has_hooks(m) or self.rewritten.are_in(m):
            return False  # its weights are computed
        if type(m).__module__.startswith("torch.nn.utils"):
            return False  # what computes a parametrized weight
        if self.rules.find(type(m)) is not None:
            return all(is_as_made(part) for part in m.modules() if part is not m)
        if self.rules.switched_off(type(m)) and type(m).forward.__module__.startswith("torch.nn."):
            return True  # another name of one of torch's, whose forward would show what it is
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self,
        m: nn.Module,
        forward: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Record a leaf, or run a module's forward."""
        if get_ident() != self.thread:
            return forward(*args, **kwargs)  # somebody else's call: torch.fx patches all threads
        if has_own_call(m):
            raise UntraceableError("it runs a module whose __call__ is its own")
        if m not in self.registered and _is_like_a_function(m):
            return forward(*args, **kwargs)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            result = super().call_module(m, forward, args, kwargs)
            self.types.passed(m, path, (*args, result))
            return result
        weights = {name: getattr(m, name) for name in weights_of_hooks(m)}
        try:
            return self._enter(path, m, forward, args, kwargs)
        finally:
            vars(m).update(weights)

    def _enter(
        self,
        path: str,
        module: nn.Module,
        run: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """Run a module's forward as a call of its own."""
        forward = module.forward
        ours = type(module).__module__.startswith("torch.nn.")
        below = () if ours else functions_below(module, forward)
        if question := next(filter(None, map(unanswerable, below)), None):
            self.failed = module if self.failed is None else self.failed
            raise UntraceableError(f"its forward {question}")
        args, kwargs = (
            self.kept.handed_on(args),
            {name: self.kept.handed_on(value) for name, value in kwargs.items()},
        )
        parent = self.stack[-1] if self.stack else None
        if parent is not None:
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, Tensor) and id(leaf) not in self.names:
                    self.create_arg(leaf)  # the caller's graph would have to hold it
        # Now, since the forward may append to a list that it was given.
        named, positional, keywords = without_proxies((bound(forward, args, kwargs), args, kwargs))
        optional, again = has_options(forward), _is_checkpointed()
        call = Call(path, module, parent, named, positional, keywords, optional, again)
        self.calls.append(call)
        self.stack.append(call)
        before = random_state() if self.notices_random else None
        objects = GivenObjects((args, kwargs))
        writes = self.watch.writes
        try:
            result = self.kept.handed_on(run(*args, **kwargs))
            if call in self.doubts.returning_early:
                result = _returned(result)
            call.result = without_proxies(result)
            changed, fresh = objects.put()
            if changed:
                self.put_into_objects[call] = [proxy.node for proxy in fresh]
            if parent is not None and not self._returns_its_own(call):
                parent.handed |= call.deciding
        except Exception:
            if self.failed is None:
                self.failed = module
            raise
        finally:
            self.stack.pop()
        if self.notices_random and random_state() != before:
            self.random_modules.append(module)
        if self.watch.writes != writes:
            self.writing_modules.append(module)
        return result

    def _returns_its_own(self, call: Call) -> bool:
        """Whether a call returns nothing but values that it computes, which its code goes on to."""
        values = call.result if isinstance(call.result, tuple | list) else (call.result,)
        computed = (isinstance(value, fx.Node) and value in self.caller for value in values)
        return all(computed) and all(call in self.caller[value].ancestry() for value in values)

    def innermost(self) -> Call | None:
        """The call whose forward is running; None in code that is not traced."""
        return self.stack[-1] if self.stack and get_ident() == self.thread else None

    def to_bool(self, obj: fx.Proxy) -> bool:
        """The truth of a value: that of a comparison of types, if it is certain."""
        node = obj.node
        if node.target in (operator.eq, operator.ne):
            equal = self._are_equal(*map(self.types.named_by, node.args))
            if equal is not None:
                return equal == (node.target is operator.eq)
        if (truth := self.constants.number(node, bool)) is not None:
            return bool(truth)
        if (answer := self.decisions.truth(obj)) is not None:
            return bool(answer)
        self.doubts.refuse()
        return super().to_bool(obj)

    def _are_equal(self, *types: KnownDtype | None) -> bool | None:
        """Whether types are equal; None where that is not certain, or cannot be checked again.

        Whoever's code depends on the answer has to check it when the new code is called.
        """
        certain = [known for known in types if known is not None]
        weights = {known.weight for known in certain if known.weight is not None}
        prefixes = [f"{call.path}." for call in self.stack if call.path]
        below = all(weight.startswith(prefix) for weight in weights for prefix in prefixes)
        if len(certain) < len(types) or not below:
            return None
        for call in self.stack:
            call.typed.update(weights)
        return len({known.dtype for known in certain}) == 1

    def create_proxy(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Record an operator; a conversion to the type at hand is none."""
        asked = (*args[1:], *kwargs.values())
        if target == "to" and len(asked) == 1 and kwargs.keys() <= {"dtype"}:
            dtype = self.types.named_by(without_proxies(asked[0]))
            if dtype and self._are_equal(self.types.of(args[0].node), dtype):
                return args[0]
        result = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        written = args[0] if args else None
        if isinstance(written, Proxy) and returns_what_it_wrote(kind, target, kwargs):
            self._rebind(written, result, anything=target is assign)
        return result

    def _rebind(self, written: Proxy, result: fx.Proxy, *, anything: bool) -> None:
        """Let what reads a value from now on read what was made of it in place.

        Values of a caller stay as they are: its code cannot name what another's code made.
        """
        old, new = written.node, result.node
        call, tensor = self.caller.get(old), comes_of_tensors(old, self.kinds.is_tensor)
        here = call is not None and self.stack[-1:] and self.stack[-1] in call.ancestry()
        if here and old.op not in ("placeholder", "get_attr") and (anything or tensor):
            if tensor:
                new.meta["tensor"] = True
            self.types.written(old, new)
            written.node = new

    def iter(self, obj: fx.Proxy) -> Iterator[fx.Proxy]:
        """The values in a value, whose number is not known."""
        self.doubts.refuse()
        return super().iter(obj)

    def made(
        self, factory: Callable[..., Any], args: tuple[Any, ...], kwargs: Any, value: Any
    ) -> Any:
        """A tensor made of numbers alone: as it is, or a node in code that cannot do with that."""
        if get_ident() != self.thread or not self.stack:
            return value
        maker = id(self.stack[-1].module)
        self.makers.add(maker)
        if maker not in self.making:
            return value
        recorded = self.create_proxy("call_function", factory, args, kwargs)
        recorded.node.meta["tensor"] = True
        return ConstantProxy(recorded.node, self, value)

    def create_arg(self, a: Any) -> fx.node.Argument:
        """An argument as a graph holds it."""
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, nn.Module):
            return self.create_node("get_attr", self.path_of_module(a), (), {})
        if isinstance(a, Tensor) and id(a) not in self.names:
            # A graph could only hold it as a constant of the whole model.
            raise MadeTensorError("its forward makes a tensor that does not depend on its input")
        argument = super().create_arg(a)
        if isinstance(a, Tensor) and isinstance(argument, fx.Node):
            self.kept.read(a)
            self.constants.read(argument, a)
        return argument

    def get_fresh_qualname(self, prefix: str) -> str:
        """Refuse what torch.fx would hold as a new attribute of the user's model."""
        raise UntraceableError(
            "its forward hands an operator an object that no graph can hold, such as a generator"
        )

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        """Remember which call made a node."""
        node = super().create_node(*args, **kwargs)
        if self.stack:
            self.caller[node] = self.stack[-1]
            if node.op.startswith("call_"):
                self.doubts.note_caught(sys._getframe(1))
        self.types.computed(node)
        self.constants.created(node)
        return node

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The value of a node."""
        return Proxy(node, self)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """A parameter or buffer as a value of the graph."""
        if get_ident() != self.thread:
            return attr_val
        if isinstance(attr_val, Tensor) and id(attr_val) in self.names:
            if (value := self.rewritten.current(attr_val)) is not None:
                return value
            node = self.create_node("get_attr", self.names[id(attr_val)], (), {})
            self.constants.read(node, attr_val)
            return ConstantProxy(node, self, attr_val)
        return attr_val

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """What the root's forward is given."""
        del root_fn, is_module, concrete_args
        forward = self.model.forward

        def placeholder(name: str) -> Any:
            return self.create_proxy("placeholder", name, (), {})

        given = self.inputs or surely_given(forward)
        # Nothing but the graph of a graph module says what may be left out.
        reading = None if isinstance(self.model, fx.GraphModule) else self.reading
        positional, keywords = arguments_of(forward, given, placeholder, reading)

        def run(*args: Any) -> Any:
            again = partial(self._enter, "", self.model, forward, args, keywords)
            modules = self.registered if self.twice else ()
            before = {module: dict(vars(module)) for module in modules}
            result = again()
            if self.twice:
                kept = SetAttributes(before, self.constants, result)
                self.rewritten.forget()
                self.settled = settled_by(self, kept.unchanged_by(again), kept.result)
                self.left_behind = kept.put_back(self.settled, self.calls)
            return result

        return run, positional
