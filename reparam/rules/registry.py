"""The registry of rules: what an operator does to the affine form that flows into it.

A rule is a plain function from forms to a form. One rule serves every spelling of an operator:
it is registered for module types, functions, tensor methods and ATen operators alike.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import FunctionType, MethodType
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import nn
from torch._library.custom_ops import CustomOpDef

from reparam.errors import ReparamError, warn

Rule = Callable[..., Any]

Target = Any

RuleFunction = TypeVar("RuleFunction", bound=Rule)

_RULES: dict[Target, Rule] = {}


def register_rule(*targets: Target) -> Callable[[RuleFunction], RuleFunction]:
    """Register a rule: a function from the forms flowing in to the form flowing out.

    The rule of a module type is called with the module and the forms of its inputs; meanwhile
    the module holds its parameters and buffers in float64. The rule of a function, a tensor
    method or an ATen operator is called with the arguments of the call: a form for each tensor
    that depends on the model's input, a tensor for each that depends on parameters only. It
    returns a form, a `Refusal` that says why it has none, or NotImplemented if the call is none
    that the rule is about.

    Args:
        *targets: Module types, functions, tensor methods (``torch.Tensor.add``), ATen operators
            (``torch.ops.aten.add``, which means all its overloads) or what
            ``torch.library.custom_op`` returns.

    Raises:
        ReparamError: If a target is none of these, or already has a rule.

    Examples:
        >>> import torch
        >>> import reparam
        >>> class LayerScale2d(torch.nn.Module):
        ...     def __init__(self, channels):
        ...         super().__init__()
        ...         self.gamma = torch.nn.Parameter(torch.rand(channels))
        ...     def forward(self, x):
        ...         return x * self.gamma[:, None, None]
        >>> @reparam.register_rule(LayerScale2d)
        ... def layer_scale(module, x):
        ...     return x.scale(module.gamma)
    """
    if not targets:
        raise ReparamError("register_rule() needs at least one target, for example nn.Conv2d")
    listed = dict.fromkeys(map(as_listed, targets))
    for target in listed:
        if target in _RULES:
            raise ReparamError(
                f"{describe_target(target)} already has a rule, {describe_rule(_RULES[target])}; "
                "to use another one for one call, pass rules={target: rule}"
            )

    def register(rule: RuleFunction) -> RuleFunction:
        if not _is_rule(rule):
            raise ReparamError(f"a rule must be a function, not {rule!r}")
        _RULES.update(dict.fromkeys(listed, rule))
        return rule

    return register


def _is_rule(rule: Any) -> bool:
    return callable(rule) and not inspect.isclass(rule)


def registered_rules() -> dict[Target, Rule]:
    """All registered rules by target, in the order of their registration."""
    return dict(_RULES)


def forget_rules_but(rules: Mapping[Target, Rule]) -> None:
    """Go back to the rules that were registered at some time."""
    _RULES.clear()
    _RULES.update(rules)


def as_listed(target: Target) -> Target:
    """What a target is registered as.

    Raises:
        ReparamError: If no rule can be registered for it.
    """
    if isinstance(target, type) and issubclass(target, nn.Module):
        return target
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return target
    if isinstance(target, CustomOpDef):
        return target._opoverload.overloadpacket
    reason = "expected"
    if isinstance(target, nn.Module):
        reason = f"a rule is for all modules of a type: register {type(target).__name__}. Expected"
    elif owner := _class_of_method(target):
        reason = f"it is a method of {owner}: register the module type that it belongs to. Expected"
    elif callable(target) and isinstance(target, Hashable) and not inspect.isclass(target):
        return target
    raise ReparamError(
        f"{target!r} cannot have a rule: {reason} a type of torch.nn.Module, a function, a tensor "
        "method such as torch.Tensor.add, or an ATen operator such as torch.ops.aten.add"
    )


def _class_of_method(target: Any) -> str:
    """The class, if any, whose method a function is: no graph has a call of it."""
    if isinstance(target, MethodType):
        return getattr(target.__self__, "__name__", type(target.__self__).__name__)
    if not isinstance(target, FunctionType):
        return ""
    if getattr(torch.Tensor, target.__name__, None) is target:
        return ""
    owner = target.__qualname__.rpartition(".")[0].rpartition(".")[2]
    return "" if owner == "<locals>" else owner


def describe_target(target: Target) -> str:
    """A target as a user would write it."""
    return str(getattr(target, "__name__", target))


def describe_rule(rule: Rule) -> str:
    """Where a rule is defined."""
    function = getattr(rule, "func", rule)  # a partial has the name of its function
    name = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{function.__module__}.{name}"


def is_built_in(rule: Rule) -> bool:
    """Whether a rule is one of the library's own."""
    return str(getattr(rule, "__module__", "")).startswith("reparam.")


_OPERATORS_OF = {"torch", "_operator", "None"}  # the methods of tensors have no module

_LEAVES_FORWARD_ALONE = {"__init__", "extra_repr", "__repr__", "reset_parameters"}


def _stands_for(kind: type) -> type:
    """The class whose forward a subclass has, if it changes nothing that a forward could use."""
    for parent in kind.__mro__:
        functions = {name for name, value in vars(parent).items() if callable(value)}
        if functions - _LEAVES_FORWARD_ALONE - {"__class__"}:
            return parent
    return kind


class Rules:
    """The rules that one call uses: the registered ones and those given for it.

    Args:
        scoped: For each target a rule, or None to switch its rule off.
        kept: Identities of the modules that are to stay as they are, whatever their rules say.

    Raises:
        ReparamError: If something that is given is no target, or no rule.
    """

    def __init__(
        self,
        scoped: Mapping[Target, Rule | None] | None = None,
        kept: Collection[int] = frozenset(),
    ) -> None:
        self.kept = kept
        self._rules: dict[Target, Rule | None] = dict(_RULES)
        for target, rule in (scoped or {}).items():
            if rule is not None and not _is_rule(rule):
                raise ReparamError(f"the rule for {target!r} must be a function or None: {rule!r}")
            self._rules[as_listed(target)] = rule

    def find(self, target: Target) -> Rule | None:
        """The rule of a module type, function, method or operator."""
        return self._rules.get(self._listed(target))

    def switched_off(self, target: Target) -> bool:
        """Whether a rule exists but this call does without."""
        listed = self._listed(target)
        return listed is not None and self._rules[listed] is None

    def functions(self) -> Iterator[Callable[..., Any]]:
        """The functions with a rule that are not torch's own, nor an operator of its library."""
        for target, rule in self._rules.items():
            package = str(getattr(target, "__module__", None)).partition(".")[0]
            if rule is not None and not isinstance(target, type) and package not in _OPERATORS_OF:
                yield target

    def _listed(self, target: Target) -> Target | None:
        """What a target is listed as, by itself or as what it stands for."""
        try:
            if target in self._rules:
                return target
        except TypeError:  # an unhashable callable has no rule
            return None
        if isinstance(target, torch._ops.OpOverload):
            target = target.overloadpacket
        elif isinstance(target, torch._ops.OpOverloadPacket) and len(target.overloads()) == 1:
            target = getattr(target, *target.overloads())
        elif isinstance(target, type):
            target = _stands_for(target)
        return target if target in self._rules else None


GROUP = "reparam.rules"
"""The entry points of other packages that bring rules; each names a module that registers them."""


@cache
def load_rules() -> None:
    """Import what installed packages name in the group ``reparam.rules``, once.

    One that cannot be imported is warned of and left out, with all of its rules: that a rule is
    missing makes no model wrong, and whoever fuses another model need not wait for its author.
    """
    for entry in sorted(entry_points(group=GROUP), key=_name):
        before = registered_rules()
        try:
            entry.load()
        except Exception as error:
            forget_rules_but(before)
            warn(
                f"the rules of {_name(entry)} cannot be loaded and are left out "
                f"({type(error).__name__}: {error}); please tell its authors, or uninstall it",
            )


def _name(entry: EntryPoint) -> str:
    """The distribution of an entry point, and what it says."""
    distribution = "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}, "
    return f"{distribution}entry point {entry.name!r} = {entry.value!r}"


_HOMES: dict[str, Any] = {
    "nn": nn,
    "F": F,
    "torch": torch,
    "Tensor": torch.Tensor,
    "operator": operator,
    "aten": torch.ops.aten,
}
"""Where a target may be found, the place that people write first."""


def spellings(
    names: str, homes: str = "operator torch F Tensor aten", *, in_place: bool = False
) -> tuple[Any, ...]:
    """Every spelling of an operator that torch and Python have, as targets of its rule.

    The names are separated by spaces. With ``in_place`` the operators of Python, the methods and
    the functions that write in place (``operator.iadd``, ``torch.Tensor.add_``) are spellings, too.

    Raises:
        AttributeError: If a name is found nowhere.
    """
    targets: dict[Any, None] = {}
    for name in names.split():
        here = [getattr(_HOMES[home], name, None) for home in homes.split()]
        if in_place:
            here += [
                getattr(_HOMES[home], f"i{name}" if home == "operator" else f"{name}_", None)
                for home in homes.split()
                if home != "torch"
            ]
        if not any(here):
            raise AttributeError(f"{name} is found in none of {homes}")
        targets.update(dict.fromkeys(filter(None, here)))
    return tuple(targets)


def spelled(target: Any) -> str:
    """A target as people write it."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return str(target)
    name = str(getattr(target, "__name__", target))
    homes = [home for home, holder in _HOMES.items() if getattr(holder, name, None) is target]
    return f"{homes[0] if homes else getattr(target, '__module__', '')}.{name}"


def first_line(documented: Any) -> str:
    """The first line of a docstring."""
    return (inspect.getdoc(documented) or "").partition("\n")[0]
