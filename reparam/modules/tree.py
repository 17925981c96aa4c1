"""Where things are in a module tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import MethodType
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from reparam.errors import Refusal


def fetch(root: nn.Module, path: str) -> Any:
    """What a dotted path names in a module; the module itself for the empty path."""
    value: Any = root
    for name in path.split(".") if path else ():
        # A module looks for its children only after everything else failed, which takes long.
        children: Mapping[str, Any] = getattr(value, "_modules", {})
        plain = name in children and not hasattr(type(value), name)
        value = children[name] if plain else getattr(value, name)
    return value


def layer_at(root: nn.Module, path: str) -> nn.Module:
    """The layer at a path; of one that was expanded the layer that the branches stand beside."""
    module = fetch(root, path)
    layer: nn.Module = module.main_layer if hasattr(type(module), "main_layer") else module
    return layer


def find(root: nn.Module, path: str) -> Any:
    """The same; None if there is nothing any more."""
    try:
        return fetch(root, path)
    except AttributeError:
        return None


def all_names(root: nn.Module) -> dict[str, list[str]]:
    """For each path of a module below a root all paths of that module."""
    several: dict[int, list[str]] = {}
    names: dict[str, list[str]] = {}
    for name, module in root.named_modules(remove_duplicate=False):
        names[name] = several.setdefault(id(module), [])
        names[name].append(name)
    return names


def join(path: str, name: str) -> str:
    """A path below another one."""
    return f"{path}.{name}" if path and name else path or name


def own_tensors(module: nn.Module) -> dict[str, Tensor]:
    """A module's parameters and buffers by name, without those of its children."""
    named = (*module._parameters.items(), *module._buffers.items())
    return {name: tensor for name, tensor in named if tensor is not None}


def names_of_tensors(root: nn.Module) -> dict[int, str]:
    """A path for each tensor of a module tree, by identity; plain attributes included."""
    registered = (*root.named_buffers(), *root.named_parameters())
    names = {id(tensor): name for name, tensor in registered}
    for path, module in root.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor):
                names.setdefault(id(value), join(path, name))
    return names


def memory(tensor: Tensor) -> int:
    """Which memory a tensor looks at: equal for all views of it."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # it has none of its own
        return id(tensor)


def special_tensor(module: nn.Module) -> Tensor | None:
    """A parameter or buffer of a class of its own: sharded, quantised, or computing otherwise."""
    tensors = (*module.parameters(), *module.buffers())
    return next((tensor for tensor in tensors if not is_plain(tensor)), None)


def is_plain(tensor: Tensor) -> bool:
    """Whether a tensor is of torch's own class, which computes what operators say."""
    return type(tensor) in (Tensor, nn.Parameter) and not tensor.is_quantized


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody listens to the module's calls."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def is_as_made(module: nn.Module) -> bool:
    """Whether a module runs its class's forward on weights of its own, and nobody listens."""
    own = "forward" not in vars(module) and not parametrize.is_parametrized(module)
    return own and not has_hooks(module)


def unlike_its_class(module: nn.Module) -> Refusal | None:
    """Why a module may compute something else than its class says of what it is given."""
    if has_hooks(module):
        return Refusal("it has hooks, which would not see the same values any more")
    if "forward" in vars(module):
        return Refusal("its forward is set on the instance")
    if (special := special_tensor(module)) is not None:
        return Refusal(f"its parameters are of a class of its own, {type(special).__name__}")
    return None


def count_leaves(module: nn.Module) -> int:
    """How many modules without parts a module is made of."""
    return sum(not any(part.children()) for part in module.modules())


@contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Let a model be in eval mode, and put the mode of each of its modules back."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def has_own_call(module: nn.Module) -> bool:
    """Whether calling a module runs other code than its forward and its hooks."""
    if isinstance(module, fx.GraphModule):
        return False
    kinds = type(module).__mro__
    return any("__call__" in vars(kind) for kind in kinds[: kinds.index(nn.Module)])


def read_from(root: nn.Module, path: str) -> nn.Module:
    """The module whose tensor a path names, or that it names itself."""
    value = fetch(root, path)
    if isinstance(value, nn.Module):
        return value
    holder: nn.Module = fetch(root, path.rpartition(".")[0])
    return holder


def held_aside(root: nn.Module) -> set[int]:
    """Identities of the modules that some attribute holds besides their registration."""
    held: set[int] = set()
    for module in root.modules():
        pending = [value for name, value in vars(module).items() if name != "_modules"]
        while pending:
            value = pending.pop()
            if isinstance(value, nn.Module):
                held.add(id(value))
            elif isinstance(value, list | tuple | set):
                pending.extend(value)
            elif isinstance(value, dict):
                pending.extend(value.values())
            elif isinstance(value, MethodType):
                held.add(id(value.__self__))
            elif isinstance(value, partial):
                pending.extend((value.func, *value.args, *value.keywords.values()))
    return held
