"""Parts that stay beside the operators in their place: frozen, since training would part them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from functools import partial

from torch import nn

from reparam.modules import fetch


class TrainWarning:
    """The ``train`` of a model with frozen parts, which says what training does to them."""

    def __init__(
        self,
        owner: nn.Module,
        paths: tuple[str, ...],
        original: Callable[[bool], nn.Module] | None,
    ) -> None:
        self.owner = owner
        self.paths = paths
        self.original = original  # one that was set on the instance

    def __call__(self, mode: bool = True) -> nn.Module:
        """Set the mode of the model and of all in it."""
        before = self.owner.training
        train = self.original or partial(type(self.owner).train, self.owner)
        result = train(mode)
        if self.owner.training and not before:
            warnings.warn(
                f"{type(self.owner).__name__} is fused, and some of its code, with other arguments "
                f"or by other methods, still runs parts as they were: {', '.join(self.paths)}. "
                "They are frozen: once the operators in their place are trained, that code returns "
                "something else than these do",
                stacklevel=2,
            )
        return result


def freeze(model: nn.Module, paths: Collection[str]) -> dict[str, list[str]]:
    """Freeze parts of a model, and let it warn when it is switched to training mode.

    What some other module holds, too, other code may train.

    Returns:
        The names of the parameters of each part that are frozen; parts without any are left out.
    """
    frozen: dict[str, list[str]] = {}
    below = tuple(f"{path}." for path in paths)
    places = [
        (name, fetch(model, name.rpartition(".")[0]), name.rpartition(".")[2], parameter)
        for name, parameter in model.named_parameters(remove_duplicate=False)
    ]
    # A module may have several paths.
    staying = {
        (id(m), own) for name, m, own, _ in places if name in paths or name.startswith(below)
    }
    shared = {id(parameter) for _, m, own, parameter in places if (id(m), own) not in staying}
    new: dict[int, nn.Parameter] = {}
    for name, holder, own, parameter in places:
        path = next((p for p in paths if name == p or name.startswith(f"{p}.")), None)
        if path is None or id(parameter) in shared or not parameter.requires_grad:
            continue
        # Another one, since a part that cannot be copied shares them with the user's model.
        holder._parameters[own] = new.setdefault(id(parameter), _frozen(parameter))
        frozen.setdefault(path, []).append(name)
    if frozen:
        before = vars(model).get("train")
        earlier = before if isinstance(before, TrainWarning) else TrainWarning(model, (), before)
        all_paths = tuple(dict.fromkeys((*earlier.paths, *frozen)))
        vars(model)["train"] = TrainWarning(model, all_paths, earlier.original)
    return frozen


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    """The same parameter without a gradient, in the same memory."""
    frozen = nn.Parameter(parameter.detach(), requires_grad=False)
    vars(frozen).update(vars(parameter))
    return frozen
