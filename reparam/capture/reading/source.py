"""The functions that a class of modules defines, and the code of a function."""

from __future__ import annotations
import __future__

import ast
import dis
import inspect
import operator
import textwrap
from collections.abc import Iterator, Sequence
from copy import copy
from functools import cache, reduce
from types import CodeType, FunctionType
from typing import Any, TypeAlias, cast

from torch import nn

Definition: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef


def methods(kind: type) -> dict[str, FunctionType]:
    """The functions that a class and its bases define, without those that every module has."""
    return _functions(kind, "torch.nn.modules.module.Module")


def own_methods(kind: type) -> dict[str, FunctionType]:
    """The functions that a class and its bases define, without those of torch's own modules."""
    return _functions(kind, "torch.nn.modules")


def public_methods(kind: type) -> dict[str, FunctionType]:
    """The methods that a user may call, those of torch's own classes left out."""
    functions = _functions(kind, "torch.").items()
    return {n: f for n, f in functions if n != "forward" and not n.startswith("_")}


@cache
def _functions(kind: type, without: str) -> dict[str, FunctionType]:
    """The functions that a class and its bases define, without those of bases of certain names."""
    functions: dict[str, FunctionType] = {}
    for base in reversed(kind.__mro__):
        if base is object or f"{base.__module__}.{base.__qualname__}".startswith(without):
            continue
        for name, value in vars(base).items():
            function = inspect.unwrap(value) if callable(value) else None
            if isinstance(function, FunctionType) and name != "__init__":
                functions[name] = function
    return functions


def layers(value: Any) -> list[FunctionType]:
    """The functions that run where a class has some value: wrappers, and what they wrap."""
    for inner in ("fget", "func", "__func__"):  # of properties, cached ones and class methods
        value = getattr(value, inner, value)
    functions: list[FunctionType] = []
    while isinstance(value, FunctionType):
        functions.append(value)
        value = getattr(value, "__wrapped__", None)
    return functions


def is_torchs(function: FunctionType) -> bool:
    """Whether torch defines a function, such as what ``torch.no_grad()`` makes of another."""
    return str(function.__globals__.get("__name__")).partition(".")[0] == "torch"


def forget_classes() -> None:
    """Look at every class anew: somebody may have changed one since."""
    for function in (_functions, _attribute_of_class, _functions_below, parameters_of):
        function.cache_clear()


def functions_below(module: nn.Module, forward: Any) -> tuple[FunctionType, ...]:
    """The function of a forward, and the methods and plain functions that it may run."""
    kind: Any = type(module)
    held = tuple(value for value in vars(module).values() if isinstance(value, FunctionType))
    return _functions_below(kind, getattr(forward, "__func__", forward), held)


@cache
def _functions_below(
    kind: Any, forward: Any, held: tuple[FunctionType, ...]
) -> tuple[FunctionType, ...]:
    pending: list[Any] = [forward, *held]
    functions: dict[CodeType, FunctionType] = {}
    own = methods(kind)
    while pending:
        function = inspect.unwrap(pending.pop())
        if (
            not isinstance(function, FunctionType)
            or function.__code__ in functions
            or str(function.__module__).partition(".")[0] == "torch"
        ):
            continue
        functions[function.__code__] = function
        for name in function.__code__.co_names:
            values = own.get(name), function.__globals__.get(name)
            pending.extend(value for value in values if isinstance(value, FunctionType))
    return tuple(functions.values())


def setting(module: nn.Module, name: str, code: CodeType) -> bool | None:
    """Whether an attribute is true, if it is a plain value that running the module leaves alone.

    Args:
        module: The module.
        name: The attribute's name.
        code: The code that asks.
    """
    value = vars(module).get(name, static_attribute(type(module), name))
    if isinstance(value, property) and isinstance(value.fget, FunctionType):
        getter = definition(value.fget)
        match getter.body[-1:] if getter else []:
            case [
                ast.Return(
                    value=ast.Attribute(value=ast.Name(), attr=flag)
                    | ast.Call(func=ast.Name(id="bool"), args=[ast.Attribute(attr=flag)])
                )
            ] if flag != name:
                return setting(module, flag, code)
    plain = isinstance(value, bool | int | str) or value == []
    below = [function.__code__ for function in functions_below(module, module.forward)]
    set_by = _set_by((code, *below)) if plain else ()
    return bool(value) if plain and name not in set_by else None


@cache
def _set_by(codes: tuple[CodeType, ...]) -> frozenset[str]:
    """Names of the attributes that code may set, or fill if they are lists."""
    names: set[str] = set()
    for code in codes:
        names |= attributes_set(code)
        if not _FILLS.isdisjoint(code.co_names):
            names.update(code.co_names)
    return frozenset(names)


@cache
def attributes_set(code: CodeType) -> frozenset[str]:
    """Names of the attributes that code assigns to."""
    steps = dis.get_instructions(code)
    return frozenset(step.argval for step in steps if step.opname == "STORE_ATTR")


_FILLS = {"append", "extend", "insert", "setattr", "__setattr__", "__dict__"}


def syntax_tree(code: FunctionType | CodeType) -> ast.Module | None:
    """The syntax tree of the source of some code; None where what runs is not at hand."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):
        return None
    runs = inspect.unwrap(code).__code__ if isinstance(code, FunctionType) else code
    named = (node for node in ast.walk(tree) if isinstance(node, Definition))
    node = next((node for node in named if node.name == runs.co_name), None)
    return tree if node is None or _compiles_to(node, runs) else None


def _compiles_to(node: Definition, code: CodeType) -> bool:
    """Whether source is that of some code: its file may say something else since it was read.

    A notebook goes on with the classes that it has imported while their file is edited, and an
    import hook may have changed what a file says.
    """
    codes = list(codes_in(code))
    if any("@pytest_ar" in inner.co_names for inner in codes):
        return True  # pytest takes the place of `assert`, which does the same
    body: Definition | ast.ClassDef = copy(node)
    body.decorator_list = []
    *_, holder = ("", *code.co_qualname.split(".")[:-1])
    if holder not in ("", "<locals>"):  # private names take the name of the class
        body = _template(f"class {holder}: pass", body)
    free = [name for name in code.co_freevars if name not in ("__class__", holder)]
    around = _template(f"def around({', '.join(free)}): pass", body)
    if body.name not in code.co_freevars:
        around.body.insert(0, ast.Global([body.name]))  # where code finds itself, and its class
    names = sorted(set().union(*(inner.co_names for inner in codes)))
    imports: list[ast.stmt] = [ast.Import([ast.alias(name)]) for name in names]
    # A call of what the same file imports is compiled in another way than any other.
    return any(_makes([*above, around], codes) for above in ([], imports))


def _makes(statements: list[ast.stmt], codes: Sequence[CodeType]) -> bool:
    """Whether statements compile to some code, with what is nested in it."""
    module = ast.fix_missing_locations(ast.Module(statements, []))
    flags = codes[0].co_flags & _FUTURE
    compiled = compile(module, "", "exec", flags=flags, dont_inherit=True)
    made = next(inner for inner in codes_in(compiled) if inner.co_name == codes[0].co_name)
    return [list(_steps(code)) for code in codes_in(made)] == [list(_steps(c)) for c in codes]


def _template(text: str, body: ast.stmt) -> ast.ClassDef | ast.FunctionDef:
    """A class or a function with another body."""
    holder = cast("ast.ClassDef | ast.FunctionDef", ast.parse(text).body[0])
    holder.body = [body]
    return holder


def _steps(code: CodeType) -> Iterator[tuple[str, str]]:
    """What code does in turn, but for what is nested in it.

    Strings of several lines lose their indents with the code around them.
    """
    for step in dis.get_instructions(code):
        if step.opname not in _LEFT_OUT:
            goes = step.opcode in _JUMPS or isinstance(step.argval, CodeType)
            name = "LOAD_ATTR" if step.opname == "LOAD_METHOD" else step.opname
            value = step.argval
            if isinstance(value, frozenset):  # of constants: it has no order of its own
                value = sorted(map(repr, value))
            yield name, "" if goes else " ".join(repr(value).split())


_LEFT_OUT = {"PUSH_NULL", "PRECALL", "CACHE", "NOP", "EXTENDED_ARG"}

_JUMPS = {*dis.hasjrel, *dis.hasjabs}

_FUTURE = reduce(
    operator.or_, (getattr(__future__, name).compiler_flag for name in __future__.all_feature_names)
)
"""The flags of code that a file's ``from __future__ import`` sets."""


@cache
def definition(function: FunctionType) -> Definition | None:
    """The syntax tree of a function; None where its source is not at hand."""
    tree = syntax_tree(function)
    for node in ast.walk(tree) if tree is not None else ():
        if isinstance(node, Definition) and node.name == function.__name__:
            return node
    return None


@cache
def repeats(code: Definition) -> bool:
    """Whether code may run more than once in a call, so that it reads above what it sets below."""
    return any(isinstance(node, _REPEATING) for node in ast.walk(code) if node is not code)


_REPEATING = (
    ast.For, ast.AsyncFor, ast.While, ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda,
    ast.GeneratorExp, ast.NamedExpr,
)  # fmt: skip


def static_attribute(holder: Any, name: str, after: type | None = None) -> Any:
    """An attribute of a class or of a Python module, with no descriptor called; None if none.

    Args:
        holder: The class or the Python module.
        name: The attribute's name.
        after: Leave out the classes up to this one, as ``super`` does.
    """
    if isinstance(holder, type):
        return _attribute_of_class(holder, name, after)
    return vars(holder).get(name)


@cache
def _attribute_of_class(kind: type, name: str, after: type | None) -> Any:
    order = kind.__mro__
    bases = order[order.index(after) + 1 :] if after in order else order
    return next((vars(base)[name] for base in bases if name in vars(base)), None)


@cache
def parameters_of(function: FunctionType) -> tuple[inspect.Parameter, ...]:
    """The parameters of a function."""
    return tuple(inspect.signature(function).parameters.values())


def codes_in(code: CodeType) -> Iterator[CodeType]:
    """Some code, and that of the functions and comprehensions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes_in(constant)
