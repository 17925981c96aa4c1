"""What is known of torch's and Python's operators by their names: the one table of all of it.

An operator that is not listed has no trait, and then the least is taken for granted of it. Where
torch's own schemas tell something, they are asked, and no trait repeats it. Not here, since it is
no yes or no: what an operator does to an affine form (`reparam.rules`), and the number of axes of
a value where that is not the operand's (`reparam.analysis.ranks`).
"""

from __future__ import annotations

import builtins
import re
from collections.abc import Iterator
from enum import Flag, auto
from functools import cache, lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from reparam.capture.checked_values import checked_axes, checked_sizes
from reparam.capture.item_assignment import assign
from reparam.modules import fetch, is_torchs


class Trait(Flag):
    """A property of an operator."""

    METADATA = auto()
    """Tells a shape, a type or a device alone: it is a number, and no use of the value."""

    SHAPE_OF_OTHER = auto()
    """Asks its second operand for its shape or type alone, which is no use of that value."""

    NUMBERS = auto()
    """Makes a number of numbers, so that what it makes of sizes is a size."""

    CONSTANTS = auto()
    """Makes the same tensor whenever it is given the same numbers: a constant of the graph."""

    MAKES = auto()
    """Makes a tensor of nothing but numbers, so that no operand of it is a tensor."""

    CHECKS = auto()
    """Only raises where a number is not what was assumed, though no operand of it is a tensor."""

    REACHES_OUT = auto()
    """Touches a file, a device or the process besides its operands."""

    SPLITS = auto()
    """Its value is a tuple of tensors, so that each entry is a tensor."""

    FRESH = auto()
    """Its value has memory of its own, where torch's schemas do not know the operator."""

    ALIASES = auto()
    """May return its input as it is, or a view of it, though no schema says so."""

    WRITES = auto()
    """Writes to its first operand, in Python's own way of saying so."""

    RETURNS_WHAT_IT_WROTE = auto()
    """And returns it, so that its value is that operand from then on."""

    MAY_COPY = auto()
    """Its value is a view or a copy, as its operand lies in memory: no write may follow a move."""

    READS_LAYOUT = auto()
    """Sees how its operand lies in memory: what it reads must not lie otherwise."""

    MUST_VIEW = auto()
    """Its value is a view, or it fails, as its operand lies in memory."""

    KEEPS_FORMAT = auto()
    """Its value lies in memory as its operand does, in order or with the channels last."""

    LAYS_OUT_ANEW = auto()
    """Its value lies in memory the same way however its operands do: nobody behind it sees them."""

    OWN_LAYOUT = auto()
    """Its value lies in memory in an order of its own, which nothing in its place would keep."""

    PERMUTES = auto()
    """Only changes the order of axes, and so the layout in memory."""

    INDEXES = auto()
    """Only takes a part of its operand, and copies nothing, so that it costs nothing."""

    RANDOM = auto()
    """Draws random numbers, unless it is told that nobody trains: two calls of it are not one."""

    DRAWS_BY_LAYOUT = auto()
    """Draws them in the order in which its operand lies in memory, which then must stay."""

    MODAL = auto()
    """Does something else in training: code that holds it must not stand for both modes."""

    SWITCHES = auto()
    """Enters or leaves a context, such as autocast, that tells of all operators behind it."""

    CONVERTS = auto()
    """Gives a value the type that it is asked for: nothing to do, if it has it already."""

    KEEPS_TYPE = auto()
    """Of floating-point operands it makes a floating-point value."""

    PASSES_TYPE = auto()
    """Its value has the very type of its operand: who reads it as floats reads the operand so."""

    COMPUTES = auto()
    """Does arithmetic, which costs something even if it changes nothing: ``x + 0``."""

    CONVOLVES = auto()
    """A convolution: it computes any scale of its channels at the same cost, if it is one."""

    DIVIDES = auto()
    """A division: unless it rounds, it makes floats of integers before anything overflows."""

    MULTIPLIES = auto()
    """A product: a scale of one factor is a scale of it."""

    DISCONTINUOUS = auto()
    """Its value jumps, or has a type of its own: two forms of a model may differ much behind it."""

    KEEPS_SHAPE = auto()
    """Its value has the shape of its first operand."""

    KEEPS_ORDER = auto()
    """Its value has all entries of its first operand in their order, whatever its axes are."""

    KEEPS_RANK = auto()
    """Its value has as many axes as its first operand."""

    FIRST_KEEPS_RANK = auto()
    """The first of its several results has as many axes as its first operand."""

    BROADCASTS = auto()
    """Its value has the shape to which its operands broadcast."""

    POSITIVELY_HOMOGENEOUS = auto()
    """f(s * x) = s * f(x) for every s > 0, position by position: a positive scale may cross it."""

    CLAMPS = auto()
    """So it may if its bounds are zero, or not there."""

    EXTREME = auto()
    """So it may if its two operands share the scale: it is the larger or smaller one."""

    WINDOWED = auto()
    """So it may along other axes than the last ones, as many of them as its name says."""


_T = Trait
_SHAPED = _T.KEEPS_SHAPE | _T.KEEPS_RANK | _T.KEEPS_TYPE
_HANDS_ON = _SHAPED | _T.PASSES_TYPE
_CONVERSION = _T.CONVERTS | _T.DISCONTINUOUS
_ARITHMETIC = _T.COMPUTES | _T.BROADCASTS | _T.KEEPS_TYPE
_OF_PYTHON = _T.NUMBERS | _T.FRESH
_IN_PLACE = _T.NUMBERS | _T.WRITES | _T.RETURNS_WHAT_IT_WROTE

# Names are compared without underscores and capitals: nn.LeakyReLU, F.leaky_relu, F.leaky_relu_ and
# aten.leaky_relu are one operator. What ends in an underscore writes in place, unless it is listed
# so itself; then it is an operator of its own.
_TABLE = {
    # What a value is, not what it holds.
    "shape ndim dtype device requires_grad is_cuda names layout size dim ndimension numel nelement "
    "is_floating_point get_device element_size sym_size sym_numel": _T.METADATA,
    "stride is_contiguous": _T.METADATA | _T.READS_LAYOUT,
    # Numbers, constants and contexts.
    "len": _T.NUMBERS,
    "max min round": _T.NUMBERS | _T.DISCONTINUOUS,
    "sym_int sym_float sym_max sym_min": _OF_PYTHON,
    "zeros ones full eye arange linspace": _T.CONSTANTS | _T.MAKES,
    "tensor": _T.CONSTANTS,
    "empty logspace scalar_tensor tril_indices triu_indices bartlett_window blackman_window "
    "hamming_window hann_window kaiser_window": _T.MAKES,
    "rand randn randint randperm": _T.MAKES | _T.RANDOM,
    "_assert_scalar sym_constrain_range sym_constrain_range_for_size": _T.CHECKS,
    "from_file save pin_memory record_stream set_data retain_grad backward _print": (
        _T.REACHES_OUT
    ),
    "requires_grad_": _T.REACHES_OUT | _T.ALIASES,
    "set_grad_enabled _enter_autocast _exit_autocast _enter_inference_mode": _T.SWITCHES,
    # Arithmetic.
    "add sub": _ARITHMETIC | _OF_PYTHON,
    "mul": _ARITHMETIC | _OF_PYTHON | _T.MULTIPLIES,
    "subtract rsub": _ARITHMETIC,
    "multiply": _ARITHMETIC | _T.MULTIPLIES,
    "truediv": _ARITHMETIC | _OF_PYTHON | _T.DIVIDES,
    "div divide true_divide": _ARITHMETIC | _T.DIVIDES,
    "addcmul addcdiv": _T.BROADCASTS,
    "neg": _SHAPED | _T.COMPUTES | _OF_PYTHON,
    "pow": _OF_PYTHON,
    "floordiv mod eq ne lt le gt ge": _OF_PYTHON | _T.DISCONTINUOUS,
    "and_ or_ invert": _T.FRESH,
    "iadd isub": _ARITHMETIC | _IN_PLACE,
    "imul": _ARITHMETIC | _IN_PLACE | _T.MULTIPLIES,
    "itruediv": _ARITHMETIC | _IN_PLACE | _T.DIVIDES,
    "ifloordiv imod ipow iand ior ixor imatmul": _IN_PLACE,
    "assign": _T.KEEPS_SHAPE | _T.KEEPS_RANK | _T.WRITES | _T.RETURNS_WHAT_IT_WROTE,
    "setitem": _T.WRITES,
    "matmul": _T.FRESH | _T.LAYS_OUT_ANEW,
    "bmm": _T.LAYS_OUT_ANEW,
    "linear": _T.KEEPS_RANK | _T.LAYS_OUT_ANEW,
    "einsum": _T.ALIASES | _T.OWN_LAYOUT,
    "conv1d conv2d conv3d convolution": _T.CONVOLVES,
    # Position by position.
    "relu": _HANDS_ON | _T.POSITIVELY_HOMOGENEOUS,
    "leaky_relu": _SHAPED | _T.COMPUTES | _T.POSITIVELY_HOMOGENEOUS,
    "prelu _prelu_kernel": _SHAPED | _T.POSITIVELY_HOMOGENEOUS,
    "abs": _SHAPED | _T.NUMBERS | _T.POSITIVELY_HOMOGENEOUS,
    "absolute": _SHAPED | _T.POSITIVELY_HOMOGENEOUS,
    "relu6 gelu silu sigmoid tanh hardswish hardsigmoid hardtanh elu selu celu mish softplus "
    "softmax log_softmax exp sqrt rsqrt normalize group_norm rms_norm": _SHAPED,
    "clamp": _SHAPED | _T.CLAMPS,
    "clip clamp_min": _T.CLAMPS,
    "layer_norm": _SHAPED | _T.LAYS_OUT_ANEW,
    "batch_norm": _SHAPED | _T.MODAL | _T.KEEPS_FORMAT,
    "BatchNorm2d BatchNorm3d SyncBatchNorm": _T.KEEPS_FORMAT,
    "instance_norm": _SHAPED | _T.MODAL,
    "native_batch_norm _native_batch_norm_legit_no_training": _T.FIRST_KEEPS_RANK,
    "maximum minimum fmax fmin": _T.EXTREME,
    # What jumps.
    "sign sgn floor ceil trunc frac floor_divide remainder fmod argmax argmin topk sort argsort "
    "heaviside bucketize searchsorted nonzero": _T.DISCONTINUOUS,
    # Random numbers.
    "dropout": _HANDS_ON | _T.ALIASES | _T.MODAL | _T.RANDOM,
    "dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout": (
        _T.ALIASES | _T.MODAL | _T.RANDOM
    ),
    "rrelu": _T.RANDOM | _T.DRAWS_BY_LAYOUT | _T.MODAL,
    "gumbel_softmax rand_like randn_like randint_like bernoulli normal uniform random "
    "exponential": _T.RANDOM | _T.DRAWS_BY_LAYOUT,
    "fractional_max_pool2d fractional_max_pool3d": _T.RANDOM,
    # The same numbers, elsewhere or of another type.
    "Identity": _HANDS_ON | _T.ALIASES | _T.KEEPS_ORDER,
    "checked_axes checked_sizes": _HANDS_ON
    | _T.ALIASES
    | _T.POSITIVELY_HOMOGENEOUS
    | _T.KEEPS_ORDER,
    "detach": _HANDS_ON | _T.POSITIVELY_HOMOGENEOUS,
    "clone": _HANDS_ON | _T.KEEPS_ORDER,
    "contiguous": _HANDS_ON | _T.ALIASES | _T.MAY_COPY | _T.KEEPS_ORDER,
    "to half double": _SHAPED | _CONVERSION | _T.ALIASES,
    "float": _SHAPED | _CONVERSION | _T.ALIASES | _T.NUMBERS,
    "type_as": _SHAPED | _CONVERSION | _T.ALIASES | _T.SHAPE_OF_OTHER,
    "bfloat16 type": _CONVERSION | _T.ALIASES,
    "_to_copy long": _CONVERSION,
    "int": _CONVERSION | _T.NUMBERS,
    "bool": _T.DISCONTINUOUS | _T.NUMBERS,
    "cpu cuda conj real to_dense": _T.ALIASES,
    # Axes in another order, merged, split, new, gone, longer or shorter.
    "permute transpose swapaxes swapdims movedim moveaxis": (
        _T.KEEPS_RANK | _T.KEEPS_TYPE | _T.PASSES_TYPE | _T.PERMUTES
    ),
    "view": _T.KEEPS_TYPE | _T.PASSES_TYPE | _T.MUST_VIEW | _T.KEEPS_ORDER,
    "view_as": _T.MUST_VIEW | _T.SHAPE_OF_OTHER | _T.KEEPS_ORDER,
    "as_strided data_ptr": _T.READS_LAYOUT,
    "reshape": _T.KEEPS_TYPE | _T.PASSES_TYPE | _T.MAY_COPY | _T.KEEPS_ORDER,
    "reshape_as": _T.MAY_COPY | _T.SHAPE_OF_OTHER | _T.KEEPS_ORDER,
    "flatten": _T.KEEPS_TYPE | _T.PASSES_TYPE | _T.MAY_COPY | _T.ALIASES | _T.KEEPS_ORDER,
    "unflatten": _T.KEEPS_TYPE | _T.ALIASES | _T.KEEPS_ORDER,
    "ravel": _T.MAY_COPY | _T.KEEPS_ORDER,
    "expand_as": _T.SHAPE_OF_OTHER,
    "atleast_1d atleast_2d atleast_3d broadcast_tensors meshgrid cartesian_prod": _T.ALIASES,
    "squeeze unsqueeze": _T.KEEPS_TYPE | _T.KEEPS_ORDER,
    "cat stack sum mean pixel_shuffle": _T.KEEPS_TYPE,
    "getitem": _T.KEEPS_TYPE | _T.INDEXES | _T.NUMBERS | _T.ALIASES,
    "narrow slice": _T.INDEXES | _T.KEEPS_RANK,
    "flip fliplr index_select repeat_interleave": _T.KEEPS_RANK | _T.KEEPS_TYPE | _T.PASSES_TYPE,
    "roll": _HANDS_ON,
    "chunk split": _T.KEEPS_TYPE | _T.SPLITS,
    "unbind tensor_split": _T.SPLITS,
    "unsafe_chunk unsafe_split unsafe_split_with_sizes": _T.ALIASES,
    "pad": _T.KEEPS_RANK | _T.KEEPS_TYPE | _T.PASSES_TYPE,
    "ZeroPad2d": _T.PASSES_TYPE,
    "interpolate": _T.KEEPS_RANK | _T.KEEPS_TYPE,
    "max_pool1d max_pool2d max_pool3d": _T.KEEPS_TYPE | _T.PASSES_TYPE | _T.WINDOWED,
    "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d "
    "upsample_bicubic2d upsample_trilinear3d": _T.WINDOWED,
}


def _plain(name: str) -> str:
    return name.replace("_", "").lower()


_LISTED = {name: traits for names, traits in _TABLE.items() for name in names.split()}

_TRAITS = {_plain(name): traits for name, traits in _LISTED.items() if not name.endswith("_")}

_NOTHING = Trait(0)

_BUILTINS = {getattr(builtins, name) for name in "int float max min len round abs bool".split()}


def listed() -> Iterator[tuple[str, Trait]]:
    """Every name of the table, as it is written there, and what is known of its operator."""
    for names, traits in _TABLE.items():
        yield from ((name, traits) for name in names.split())


@cache
def traits_of(name: str) -> Trait:
    """What is known of an operator of torch or Python."""
    return _LISTED[name] if name in _LISTED else _TRAITS.get(_plain(name), _NOTHING)


def traits(node: fx.Node, root: nn.Module | None = None) -> Trait:
    """What is known of a node's operator, if it is torch's; of a module, only with its root."""
    if node.op == "call_module" and root is not None:
        kind = type(fetch(root, str(node.target)))
        return traits_of(kind.__name__) if is_of_torch(kind) else _NOTHING
    return traits_of(torch_name(node))


def is_of_torch(kind: type) -> bool:
    """Whether a module's class is torch's own."""
    return kind.__module__.startswith("torch.nn.modules")


def operator_name(node: fx.Node) -> str:
    """The name of a function, a method or an ATen operator, without its overload."""
    return _name(node.target)


def _name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return str(target.overloadpacket.__name__)
    return str(getattr(target, "__name__", target))


def torch_name(node: fx.Node) -> str:
    """The name of torch's or Python's own operator; empty for modules and somebody else's code."""
    if node.op == "call_method":
        return str(node.target)
    function = node.op == "call_function" and _is_hashable(node.target)
    return _named(node.target) if function else ""


def has_known_name(target: Any) -> bool:
    """Whether a function is torch's or Python's own, whose name says what it does."""
    return _is_hashable(target) and _has_known_name(target)


def _is_hashable(target: Any) -> bool:
    return type(target).__hash__ is not None


# Every room asks this of every node. Bounded: users' functions must not be held for ever.
@lru_cache(maxsize=1024)
def _has_known_name(target: Any) -> bool:
    module = getattr(target, "__module__", None) or ""
    if module in ("torch", "_operator") or module.startswith("torch."):
        return True
    if target in (assign, checked_axes, checked_sizes):
        return True  # a tensor's own way to take an assignment, and a check in fused code
    if isinstance(target, torch._ops.OpOverload) or _is_builtin(target):
        return True
    name = getattr(target, "__name__", "")
    return any(getattr(home, name, None) is target for home in (torch, F, torch._C._nn))


@lru_cache(maxsize=1024)
def _named(target: Any) -> str:
    """The name of a function if it is the one that the table means by it."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        means = target.__module__ in ("torch._ops.aten", "torch._ops.prims")
    else:
        means = has_known_name(target) and (not isinstance(target, type) or _is_builtin(target))
    return _name(target) if means else ""


def _is_builtin(target: Any) -> bool:
    return getattr(target, "__module__", None) == "builtins" and target in _BUILTINS


def computes_on_tensors(operator: torch._ops.OpOverload) -> bool:
    """Whether an operator is torch's own and only computes: tensors of tensors and numbers."""
    known = traits_of(operator.overloadpacket.__name__)
    if not is_torchs(operator) or Trait.REACHES_OUT in known:
        return False
    arguments = operator._schema.arguments
    taken = [str(argument.type) for argument in arguments if not argument.is_out]
    plain = all(_PLAIN_TYPES.issuperset(re.findall(r"\w+", kind)) for kind in taken)
    tensors = any("Tensor" in kind for kind in taken)
    return plain and (tensors or bool(known & (Trait.MAKES | Trait.CHECKS)))


_PLAIN_TYPES = frozenset(
    "Tensor Optional List int float bool complex number str Device Generator Layout".split()
)


# -- What a node does ------------------------------------------------------------------------------


def reads_metadata(node: fx.Node) -> bool:
    """Whether a node only asks for a shape, a type or a device."""
    if node.op == "call_function" and node.target is getattr:
        return Trait.METADATA in traits_of(str(node.args[1]))
    return Trait.METADATA in traits(node)


def reads_shape(node: fx.Node) -> bool:
    """Whether a node asks for the whole shape of a value: ``x.shape``, or ``x.size()``."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.target is getattr and node.args[1] == "shape"


def reads_rank(node: fx.Node) -> bool:
    """Whether a node asks a value for its number of axes: ``x.ndim``, or ``x.dim()``."""
    if node.op == "call_method":
        return node.target in ("dim", "ndimension")
    return node.target is getattr and node.args[1] == "ndim"


def reads_shape_only(reader: fx.Node, node: fx.Node) -> bool:
    """Whether a reader of a value only asks for its shape or type."""
    if reads_metadata(reader):
        return True
    other = bool(reader.args) and reader.args[0] is not node
    return other and Trait.SHAPE_OF_OTHER in traits(reader)


def converts(node: fx.Node) -> bool:
    """Whether a node gives a value the type that it is asked for."""
    called = node.op == "call_method" or isinstance(node.target, torch._ops.OpOverload)
    return called and Trait.CONVERTS in traits(node)


def type_named_by(node: fx.Node) -> torch.dtype | None:
    """The type that a conversion's own name tells, if it does."""
    dtype = getattr(torch, operator_name(node), None)
    return dtype if isinstance(dtype, torch.dtype) else None


def is_in_place(name: str) -> bool:
    """Whether an operator writes to its first operand, as an underscore at its end says."""
    return name.endswith("_") and not name.endswith("__") and name not in _LISTED


def returns_what_it_wrote(kind: str, target: Any, kwargs: dict[str, Any]) -> bool:
    """Whether an operator surely writes to its first operand, a tensor, and returns it."""
    if target is assign:
        return True
    name = target if kind == "call_method" else getattr(target, "__name__", "")
    if kind == "call_method":
        known = hasattr(Tensor, name)
    else:
        known = any(getattr(home, name, None) is target for home in (torch, F))
    inplace = kind == "call_function" and kwargs.get("inplace") is True
    return known and (inplace or (name.endswith("_") and not name.endswith("__")))


CONSTANT_FACTORIES = frozenset(
    getattr(torch, name) for name, known in listed() if Trait.CONSTANTS in known
)
"""Functions that make the same tensor whenever they are given the same numbers."""
