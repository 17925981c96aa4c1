"""What is known of the values of one graph: constants, ranks, aliases and writes.

Everything unknown is taken at its worst: an unknown operator may return a view of its arguments
and may write to them.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.rules import Rules

_METADATA = {"shape", "ndim", "dtype", "device", "requires_grad", "is_cuda", "names", "layout"}
_METADATA_METHODS = {
    "size",
    "dim",
    "ndimension",
    "numel",
    "nelement",
    "is_floating_point",
    "stride",
    "get_device",
    "element_size",
    "is_contiguous",
}
_NUMBER_FUNCTIONS = {
    operator.floordiv,
    operator.mod,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.pow,
    operator.neg,
    operator.getitem,
    int,
    float,
    max,
    min,
    len,
    round,
    abs,
    bool,
    torch.sym_int,
    torch.sym_float,
    torch.sym_max,
    torch.sym_min,
}
# Aliases that no schema declares: these return their input as it is, in eval mode or always.
_QUIET_ALIASES = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_alpha_dropout",
    "feature_dropout",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "AlphaDropout",
    "FeatureAlphaDropout",
    "Identity",
    "Flatten",
    "Unflatten",
    "type_as",
    "contiguous",
    "float",
    "half",
    "double",
    "bfloat16",
    "to",
    "cpu",
    "cuda",
    "type",
    "conj",
    "real",
    "requires_grad_",
}
_INPLACE_OPERATORS = {
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.iand,
    operator.ior,
    operator.ixor,
    operator.imatmul,
    operator.setitem,
}
_FRESH_OPERATORS = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.neg,
    operator.matmul,
    operator.pow,
    operator.floordiv,
    operator.mod,
    operator.eq,
    operator.ne,
    operator.lt,
    operator.le,
    operator.gt,
    operator.ge,
    operator.and_,
    operator.or_,
    operator.invert,
}


@dataclass(eq=False)
class Facts:
    """What is known of one graph.

    Args:
        order: Position of each node.
        constants: Value of each node that depends on parameters and buffers only, as used so far.
        sources: For each constant node the parameters and buffers it depends on.
        numbers: Nodes whose value is no tensor but a size or a flag.
        ranks: Number of axes of a value, where known.
        shapes: Shapes of values, where example inputs were given.
        dtypes: Types of values, where example inputs were given.
        asserted: Nodes that only feed assertions on shapes and types.
        unread: Nodes without effect whose value nobody reads.
    """

    root: nn.Module
    order: dict[fx.Node, int]
    sources: dict[fx.Node, frozenset[str]]
    numbers: set[fx.Node]
    ranks: dict[fx.Node, int]
    shapes: dict[fx.Node, torch.Size]
    dtypes: dict[fx.Node, torch.dtype]
    asserted: set[fx.Node] = field(default_factory=set)
    unread: set[fx.Node] = field(default_factory=set)
    storage: dict[fx.Node, fx.Node] = field(default_factory=dict)
    members: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    writers: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    written: dict[fx.Node, tuple[fx.Node, ...]] = field(default_factory=dict)
    constants: dict[fx.Node, Any] = field(default_factory=dict)

    def alias_class(self, node: fx.Node) -> list[fx.Node]:
        """All values that may share memory with this one."""
        return self.members.get(self.storage.get(node, node), [node])

    def write_between(
        self, node: fx.Node, first: int, last: int, ignoring: Collection[fx.Node] = ()
    ) -> bool:
        """Whether a value's memory may be written after one position, up to another.

        Args:
            node: The value.
            first: Position after which writes count.
            last: Last position at which they count.
            ignoring: Nodes whose writes do not count.
        """
        return any(
            first < self.order[writer] <= last and writer not in ignoring
            for writer in self.writers.get(self.storage.get(node, node), ())
        )

    def constant(self, node: fx.Node) -> Any:
        """The value of a constant node: the tensor itself, or computed in float64."""
        if node not in self.constants:
            self._compute(node)
        return self.constants[node]

    def _compute(self, node: fx.Node) -> None:
        pending = [node]
        while pending:
            current = pending[-1]
            missing = [arg for arg in current.all_input_nodes if arg not in self.constants]
            if missing:
                pending.extend(missing)
                continue
            pending.pop()
            if current in self.constants:
                continue
            if current.op == "get_attr":
                self.constants[current] = fetch(self.root, str(current.target))
                continue

            def value(argument: fx.Node) -> Any:
                constant = self.constants[argument]
                if isinstance(constant, Tensor) and constant.is_floating_point():
                    return constant.double()
                return constant

            args = fx.map_arg(current.args, value)
            kwargs = fx.map_arg(current.kwargs, value)
            if current.op == "call_function":
                self.constants[current] = current.target(*args, **kwargs)  # type: ignore[operator]
            else:
                self.constants[current] = getattr(args[0], str(current.target))(*args[1:], **kwargs)


def fetch(root: nn.Module, path: str) -> Any:
    """What a dotted path names in a module."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def gather(
    root: nn.Module,
    graph: fx.Graph,
    rules: Rules,
    shapes: Mapping[fx.Node, torch.Size],
    dtypes: Mapping[fx.Node, torch.dtype],
) -> Facts:
    """Collect what is known of a graph.

    Args:
        root: The module that the graph's paths refer to.
        graph: The flat graph.
        rules: The rules of this call.
        shapes: Shapes seen in a run on example inputs.
        dtypes: Types seen in that run.
    """
    nodes = list(graph.nodes)
    order = {node: index for index, node in enumerate(nodes)}
    effects = {node: _effects(node, root, rules) for node in nodes}
    sources: dict[fx.Node, frozenset[str]] = {}
    numbers: set[fx.Node] = set()
    for node in nodes:
        if node.op == "get_attr":
            sources[node] = frozenset((str(node.target),))
        elif (
            node.op in ("call_function", "call_method")
            and node.all_input_nodes
            and all(argument in sources for argument in node.all_input_nodes)
            and effects[node].pure
        ):
            sources[node] = frozenset().union(*(sources[arg] for arg in node.all_input_nodes))
        if reads_metadata(node) or (
            node.op == "call_function"
            and node.target in _NUMBER_FUNCTIONS
            and node.all_input_nodes
            and all(argument in numbers for argument in node.all_input_nodes)
        ):
            numbers.add(node)
    facts = Facts(root, order, sources, numbers, {}, dict(shapes), dict(dtypes))
    for node in reversed(nodes):
        if node.target is torch._assert or node in numbers:
            if all(user in facts.asserted for user in node.users):
                facts.asserted.add(node)
        if node.op not in ("placeholder", "output") and node.target is not torch._assert:
            if effects[node].pure and all(user in facts.unread for user in node.users):
                facts.unread.add(node)
    _find_aliases(facts, nodes, effects)
    for node in list(sources):
        # A constant that somebody writes to is none.
        if facts.writers.get(facts.storage.get(node, node)):
            del sources[node]
    facts.ranks = _find_ranks(nodes, root, facts)
    return facts


def reads_metadata(node: fx.Node) -> bool:
    """Whether a node only asks for a shape, a type or a device."""
    if node.op == "call_function" and node.target is getattr:
        return node.args[1] in _METADATA
    return node.op == "call_method" and node.target in _METADATA_METHODS


# -- Aliases and writes ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Effects:
    aliases: bool
    writes: tuple[fx.Node, ...]

    @property
    def pure(self) -> bool:
        return not self.writes


_FRESH = _Effects(False, ())
_VIEW = _Effects(True, ())


def _effects(node: fx.Node, root: nn.Module, rules: Rules) -> _Effects:
    arguments = tuple(node.all_input_nodes)
    if node.op in ("placeholder", "get_attr", "output"):
        return _VIEW if node.op == "output" else _FRESH
    if reads_metadata(node):
        return _FRESH
    if node.op == "call_module":
        module = fetch(root, str(node.target))
        ours = type(module).__module__.startswith("torch.nn.modules")
        if not ours and rules.find(type(module)) is not None and "forward" not in vars(module):
            return _Effects(True, arguments) if getattr(module, "inplace", False) else _VIEW
        return _module_effects(module, arguments)
    inplace = node.kwargs.get("inplace", False)
    first = node.args[0] if node.args else node.kwargs.get("input")
    target_nodes = (first,) if isinstance(first, fx.Node) else ()
    if node.op == "call_method":
        name = str(node.target)
        return _named_effects(name, arguments, target_nodes, torch.Tensor)
    target = node.target
    if target in _INPLACE_OPERATORS:
        return _Effects(True, target_nodes)
    if target in _FRESH_OPERATORS:
        return _FRESH
    if target in (operator.getitem, getattr):
        return _VIEW
    if target in _NUMBER_FUNCTIONS:
        return _FRESH
    if isinstance(target, torch._ops.OpOverload):
        return _schema_effects([target._schema], node, arguments)
    name = getattr(target, "__name__", "")
    module = getattr(target, "__module__", None) or ""
    builtin = type(target).__name__ == "builtin_function_or_method"
    if not (builtin or module.startswith("torch")):
        return _VIEW if rules.find(target) is not None else _Effects(True, arguments)
    if inplace is not False or _positional_inplace(target, node):
        return _Effects(True, target_nodes)
    if "out" in node.kwargs:
        return _Effects(True, arguments)
    return _named_effects(name, arguments, target_nodes, F)


def _positional_inplace(target: Any, node: fx.Node) -> bool:
    """Whether a functional got ``inplace=True`` by position, as in ``F.relu(x, True)``."""
    names = getattr(getattr(target, "__code__", None), "co_varnames", ())
    if "inplace" not in names:
        return False
    position = names.index("inplace")
    return position < len(node.args) and node.args[position] is not False


def _named_effects(
    name: str, arguments: tuple[fx.Node, ...], first: tuple[fx.Node, ...], home: Any
) -> _Effects:
    if name in _QUIET_ALIASES:
        return _VIEW
    if name.endswith("_") and not name.endswith("__"):
        return _Effects(True, first)
    packet = getattr(torch.ops.aten, name.strip("_"), None)
    if packet is None:
        # A functional of many operators (F.normalize, F.interpolate): it writes to nothing.
        return _VIEW if hasattr(home, name) else _Effects(True, arguments)
    for overload in packet.overloads():
        schema = getattr(packet, overload)._schema
        if "out" in overload:
            continue
        if any(result.alias_info is not None for result in schema.returns):
            return _VIEW
    return _FRESH


def _schema_effects(
    schemas: Iterable[Any], node: fx.Node, arguments: tuple[fx.Node, ...]
) -> _Effects:
    aliases = False
    for schema in schemas:
        if schema.is_mutable:
            return _Effects(True, arguments)
        aliases = aliases or any(result.alias_info is not None for result in schema.returns)
        aliases = aliases or schema.name.rsplit("::", 1)[-1] in _QUIET_ALIASES
    return _VIEW if aliases else _FRESH


def _module_effects(module: nn.Module, arguments: tuple[fx.Node, ...]) -> _Effects:
    home = type(module).__module__
    hooked = module._forward_hooks or module._forward_pre_hooks
    if not home.startswith("torch.nn.modules") or hooked or "forward" in vars(module):
        return _Effects(True, arguments)
    if getattr(module, "inplace", False):
        return _Effects(True, arguments)
    if type(module).__name__ in _QUIET_ALIASES:
        return _VIEW
    return _FRESH


def _find_aliases(facts: Facts, nodes: list[fx.Node], effects: Mapping[fx.Node, _Effects]) -> None:
    parent: dict[fx.Node, fx.Node] = {}

    def find(node: fx.Node) -> fx.Node:
        while (above := parent.get(node, node)) is not node:
            parent[node] = parent.get(above, above)
            node = above
        return node

    for node in nodes:
        if effects[node].aliases and node.op != "output" and node not in facts.numbers:
            for argument in node.all_input_nodes:
                if argument not in facts.numbers:
                    parent[find(argument)] = find(node)
    for node in nodes:
        top = find(node)
        facts.storage[node] = top
        facts.members.setdefault(top, []).append(node)
        written = effects[node].writes
        if written:
            facts.written[node] = written
        for argument in written:
            facts.writers.setdefault(find(argument), []).append(node)


# -- Ranks ----------------------------------------------------------------------------------------

_FIXED_RANKS: dict[Any, int] = {
    **dict.fromkeys((F.conv1d, F.conv_transpose1d, F.avg_pool1d, F.max_pool1d), 3),
    **dict.fromkeys((F.conv2d, F.conv_transpose2d, F.avg_pool2d, F.max_pool2d), 4),
    **dict.fromkeys((F.conv3d, F.conv_transpose3d, F.avg_pool3d, F.max_pool3d), 5),
    **dict.fromkeys((F.adaptive_avg_pool1d,), 3),
    **dict.fromkeys((F.adaptive_avg_pool2d,), 4),
    **dict.fromkeys((F.adaptive_avg_pool3d,), 5),
}
_RANKED_MODULE = {"1d": 3, "2d": 4, "3d": 5}
_RANKED_FAMILIES = (
    "Conv",
    "BatchNorm",
    "AvgPool",
    "MaxPool",
    "ConvTranspose",
    "Pad",
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "InstanceNorm",
)
_KEEPING_MODULES = (
    nn.Linear,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.Identity,
    nn.Dropout,
    nn.Softmax,
    nn.SyncBatchNorm,
)
_KEEPING_NAMES = {
    "relu",
    "relu_",
    "relu6",
    "gelu",
    "silu",
    "sigmoid",
    "sigmoid_",
    "tanh",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "mish",
    "softplus",
    "softmax",
    "log_softmax",
    "dropout",
    "layer_norm",
    "group_norm",
    "batch_norm",
    "linear",
    "contiguous",
    "clone",
    "detach",
    "neg",
    "abs",
    "exp",
    "sqrt",
    "rsqrt",
    "clamp",
    "clamp_",
    "pad",
    "normalize",
    "float",
    "half",
    "double",
    "to",
    "type_as",
    "mul_",
    "add_",
    "sub_",
    "div_",
    "interpolate",
    "transpose",
    "prelu",
    "reshape_as_",
}
_BROADCASTING = {
    operator.add,
    operator.sub,
    operator.mul,
    operator.truediv,
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    torch.add,
    torch.sub,
    torch.mul,
    torch.div,
    "add",
    "sub",
    "mul",
    "div",
    "add_",
    "sub_",
    "mul_",
    "div_",
}


def _find_ranks(nodes: list[fx.Node], root: nn.Module, facts: Facts) -> dict[fx.Node, int]:
    """Infer ranks forwards and backwards until nothing new is learned."""
    ranks = {node: len(shape) for node, shape in facts.shapes.items()}
    if len(ranks) >= len(nodes) - 1:
        return ranks
    for node in facts.sources:
        value = None
        if node.op == "get_attr":
            value = fetch(root, str(node.target))
        elif node not in ranks:
            value = facts.constant(node)
        if isinstance(value, Tensor):
            ranks[node] = value.dim()
    changed = True
    while changed:
        changed = False
        for node in nodes:
            for value, rank in _rank_facts(node, root, ranks):
                if value not in ranks:
                    ranks[value] = rank
                    changed = True
        # Knowledge also flows against the order of the graph.
        for node in reversed(nodes):
            for value, rank in _rank_facts(node, root, ranks):
                if value not in ranks:
                    ranks[value] = rank
                    changed = True
    return ranks


def _rank_facts(
    node: fx.Node, root: nn.Module, ranks: Mapping[fx.Node, int]
) -> list[tuple[fx.Node, int]]:
    """What a node tells of the ranks of its own value and of its operand's."""
    first = node.args[0] if node.args else node.kwargs.get("input")
    operand = first if isinstance(first, fx.Node) else None
    if node.op == "call_module" and operand is not None:
        module = fetch(root, str(node.target))
        name = type(module).__name__
        if type(module).__module__.startswith("torch.nn"):
            rank = _RANKED_MODULE.get(name[-2:])
            if rank is not None and name.startswith(_RANKED_FAMILIES) and name != "BatchNorm1d":
                return [(node, rank), (operand, rank)]
            if isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1):
                return [(node, 2)]
            if (
                isinstance(module, _KEEPING_MODULES)
                or _is_activation(module)
                or (name == "BatchNorm1d" or name.startswith("Dropout"))
            ):
                return _equal(node, operand, ranks)
        return []
    if node.op not in ("call_function", "call_method") or operand is None:
        return []
    target: Any = node.target
    if node.op == "call_function" and target in _FIXED_RANKS:
        return [(node, _FIXED_RANKS[target]), (operand, _FIXED_RANKS[target])]
    if target in _BROADCASTING:
        return _broadcast(node, ranks)
    if target is getattr and node.args[1] == "shape" and "length" in node.meta:
        return [(operand, int(node.meta["length"]))]
    name = str(target) if node.op == "call_method" else getattr(target, "__name__", "")
    if node.op == "call_method" and name == "size" and "length" in node.meta:
        return [(operand, int(node.meta["length"]))]
    known = ranks.get(operand)
    if name == "flatten":
        return _flatten_rank(node, known)
    if name == "permute":
        dims = node.args[1:]
        order = dims[0] if len(dims) == 1 and isinstance(dims[0], tuple | list) else dims
        return [(node, len(order)), (operand, len(order))] if order else []
    if name in ("view", "reshape"):
        sizes = node.args[1:]
        if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
            sizes = tuple(sizes[0])
        if len(sizes) == 1 and isinstance(sizes[0], fx.Node):
            return []
        return [(node, len(sizes))] if sizes else []
    if name in ("reshape_as", "view_as", "expand_as") and len(node.args) > 1:
        other = node.args[1]
        return _equal(node, other, ranks) if isinstance(other, fx.Node) else []
    if name == "mean" and known is not None:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        count = len(dims) if isinstance(dims, tuple | list) else 1
        keep = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        return [(node, known if keep else known - count)] if dims is not None else []
    if name == "unsqueeze" and known is not None:
        return [(node, known + 1)]
    if name in _KEEPING_NAMES:
        return _equal(node, operand, ranks)
    return []


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__ == "torch.nn.modules.activation" and not isinstance(
        module, nn.MultiheadAttention
    )


def _equal(
    node: fx.Node, operand: fx.Node, ranks: Mapping[fx.Node, int]
) -> list[tuple[fx.Node, int]]:
    if node in ranks:
        return [(operand, ranks[node])]
    return [(node, ranks[operand])] if operand in ranks else []


def _broadcast(node: fx.Node, ranks: Mapping[fx.Node, int]) -> list[tuple[fx.Node, int]]:
    operands = [argument for argument in node.args[:2] if isinstance(argument, fx.Node)]
    known = [ranks[operand] for operand in operands if operand in ranks]
    if len(known) == len(operands) and known:
        return [(node, max(known))]
    if len(operands) == 1 and node in ranks:
        return [(operands[0], ranks[node])]
    return []


def _flatten_rank(node: fx.Node, known: int | None) -> list[tuple[fx.Node, int]]:
    rest = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
    start, end = rest.get("start_dim", 0), rest.get("end_dim", -1)
    if not isinstance(start, int) or not isinstance(end, int):
        return []
    if end == -1 and start >= 0:
        return [(node, start + 1)]
    if known is None:
        return []
    return [(node, known - (end % known - start % known))]
