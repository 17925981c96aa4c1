"""Remove what died: the modules and tensors that only replaced code reached."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from reparam.capture import Call
from reparam.capture.reading import names_computed_with, names_of_public_methods
from reparam.modules import all_names, drop_idle_hooks, fetch, find
from reparam.rewriting.changes import Rewrite


def prune(
    target: nn.Module,
    rewrite: Rewrite,
    owners: Iterable[Call],
    unused: Iterable[tuple[str, Call]],
    moved: Callable[[Call, Call], bool],
    elsewhere: Iterable[int],
    flexible: Collection[Call] = (),
    released: Mapping[Call, Collection[str]] = MappingProxyType({}),
) -> list[str]:
    """Remove the modules and tensors that only replaced code reached.

    The code of the owners never runs again as it was, save for that of flexible ones, of which
    nothing is removed; where a call's code moved into an owner's, no
    code of its own that could reach its parts goes on running. What is unused is a path that some
    call's code does not use any more, as what the rewrite removed; other code of the model uses
    what is elsewhere, by identity. Of the parts that methods besides forward use, some are released
    since these methods have new code as well.

    Returns:
        The paths of what stays although the edited graph does not use it.
    """
    kept = _kept(target, rewrite) | set(elsewhere)
    removed: dict[Call, list[tuple[str, Call]]] = defaultdict(list)
    for path, caller in (*rewrite.removed, *unused):
        for call in caller.ancestry():
            removed[call].append((path, caller))
    names, staying = all_names(target), dict[str, None]()
    going: list[tuple[nn.Module, list[str]]] = []
    for owner in owners:
        root = fetch(target, owner.path)
        protected = names_of_public_methods(type(root)) | rewrite.protected.get(owner, set())
        protected.difference_update(released.get(owner, ()))
        prefix = f"{owner.path}." if owner.path else ""
        for first, caller in removed[owner]:
            for path in names.get(first, [first]) if moved(caller, owner) else ():
                relative = path.removeprefix(prefix).split(".")
                if not path.startswith(prefix):
                    continue
                if (
                    owner in flexible
                    or relative[0] in protected
                    or _is_computed_with(root, relative, released.get(owner, ()))
                ):
                    staying[path] = None
                else:
                    going.append((root, relative))
    parts = {path: _parts_at(target, path) for path in staying}
    # What some code still runs does not go because other code has no need of it.
    needed = kept.union(*parts.values())
    for root, relative in going:
        _remove(root, relative, needed)
    return [idle for path in staying for idle in _idle(target, path, parts[path], kept)]


def _is_computed_with(root: nn.Module, path: Sequence[str], released: Collection[str]) -> bool:
    """Whether a public method of its holder computes something with a tensor."""
    holder = find(root, ".".join(path[:-1]))
    if not isinstance(holder, nn.Module) or path[-1] in holder._modules:
        return False
    kind: type = type(holder)
    return path[-1] in names_computed_with(kind) and path[-1] not in released


def _kept(target: nn.Module, rewrite: Rewrite) -> set[int]:
    """Identities of all modules and tensors that the edited graph still uses."""
    kept: set[int] = set()
    paths = {
        str(node.target)
        for node in rewrite.graph.nodes
        if node.op == "call_module" or (node.op == "get_attr" and node.users)
    }
    for path in paths | set(rewrite.modules):
        used = fetch(target, path)
        kept |= _parts(used) if isinstance(used, nn.Module) else {id(used)}
    return kept


def _idle(target: nn.Module, path: str, parts: set[int], kept: set[int]) -> list[str]:
    """What the edited graph does not use of what stays at a path: all of it, or some parameters."""
    if kept.isdisjoint(parts):
        return [path] if parts else []
    there = find(target, path)
    parameters = there.named_parameters(path) if isinstance(there, nn.Module) else ()
    return [name for name, parameter in parameters if id(parameter) not in kept]


def _parts_at(target: nn.Module, path: str) -> set[int]:
    """Identities of a tensor, or of all in a module, at a path; none if it went after all."""
    there = find(target, path)
    if there is None:
        return set()
    return _parts(there) if isinstance(there, nn.Module) else {id(there)}


def _parts(module: nn.Module) -> set[int]:
    """Identities of all modules and tensors in a module, itself included."""
    return {id(part) for part in (*module.modules(), *module.parameters(), *module.buffers())}


def _remove(root: nn.Module, path: list[str], kept: set[int]) -> None:
    """Remove a module or a tensor, and the containers that have nothing left to hold."""
    parents = [root]
    for name in path[:-1]:
        child = parents[-1]._modules.get(name)
        if child is None:
            return
        parents.append(child)
    holder, name = parents[-1], path[-1]
    for tensors in (holder._parameters, holder._buffers):
        if tensors.get(name) is not None and id(tensors[name]) not in kept:
            tensors[name] = None
            _say_what_is_left(holder)
            return
    module = holder._modules.get(name)
    if module is None:
        return
    if not kept.isdisjoint(_parts(module)):
        _drop_tensors(module, kept)
        return
    if isinstance(holder, nn.Sequential):
        _become_identity(holder, name)
        return
    _drop(holder, name)
    # A list that holds nothing any more goes too.
    for parent, inner, at in zip(parents[-2::-1], parents[:0:-1], path[-2::-1], strict=True):
        empty = all(child is None for child in inner.children())
        if not isinstance(inner, nn.ModuleList | nn.ModuleDict) or not empty:
            return
        _drop(parent, at)


def _drop_tensors(module: nn.Module, kept: set[int]) -> None:
    """Remove what is left of a module whose tensors alone are read, but for these."""
    if kept.isdisjoint(map(id, module.modules())):
        for inner in module.modules():
            for tensors in (inner._parameters, inner._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and id(tensor) not in kept:
                        tensors[name] = None
            _say_what_is_left(inner)


def _become_identity(holder: nn.Sequential, name: str) -> None:
    """Make a module of a sequence do nothing; a sequence within keeps its class."""
    module = holder._modules[name]
    if isinstance(module, nn.Sequential):
        for inner in module._modules:
            _become_identity(module, inner)
    else:
        holder._modules[name] = nn.Identity().eval()


def _drop(holder: nn.Module, name: str) -> None:
    """Remove a module; without what computes its weights a layer is an ordinary one."""
    module = holder._modules[name]
    if isinstance(module, nn.ModuleDict) and is_parametrized(holder) and name == "parametrizations":
        del holder._modules[name]
        holder.__class__ = type(holder).__mro__[1]
        for tensor in module:
            holder._parameters.setdefault(tensor, None)
    else:
        holder._modules[name] = None


def _say_what_is_left(holder: nn.Module) -> None:
    """What has no tensors any more does without them.

    Without those of which a hook computes a weight there is no hook. A norm is one without
    parameters, or statistics, to other tools.
    """
    drop_idle_hooks(holder)
    if isinstance(holder, nn.modules.batchnorm._NormBase):
        holder.affine = holder.affine and holder.weight is not None
        if holder.running_mean is None and holder.running_var is None:
            holder.track_running_stats = False
            holder.num_batches_tracked = None
