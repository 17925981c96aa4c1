"""Parts that stay beside the operators in their place: frozen, since training would part them."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch import nn

from reparam.modules import fetch


class TrainWarning:
    """The ``train`` of a model with frozen parts, which says what training does to them."""

    def __init__(self, owner: nn.Module, paths: tuple[str, ...]) -> None:
        self.owner = owner
        self.paths = paths

    def __call__(self, mode: bool = True) -> nn.Module:
        """Set the mode of the model and of all in it."""
        if mode and not self.owner.training:
            warnings.warn(
                f"{type(self.owner).__name__} is fused, and some of its code, with other arguments "
                f"or by other methods, still runs parts as they were: {', '.join(self.paths)}. "
                "They are frozen: once the operators in their place are trained, that code returns "
                "something else than these do",
                stacklevel=2,
            )
        return type(self.owner).train(self.owner, mode)


def freeze(model: nn.Module, paths: Collection[str]) -> dict[str, list[str]]:
    """Freeze parts of a model, and let it warn when it is switched to training mode.

    What has another path, too, other code may train.

    Returns:
        The names of the parameters of each part that are frozen; parts without any are left out.
    """
    frozen: dict[str, list[str]] = {}
    named = list(model.named_parameters(remove_duplicate=False))
    below = tuple(f"{path}." for path in paths)
    shared = {id(p) for name, p in named if not (name in paths or name.startswith(below))}
    new: dict[int, nn.Parameter] = {}
    for name, parameter in named:
        path = next((p for p in paths if name == p or name.startswith(f"{p}.")), None)
        if path is None or id(parameter) in shared or not parameter.requires_grad:
            continue
        holder, _, own = name.rpartition(".")
        # Another one, since a part that cannot be copied shares them with the user's model.
        fetch(model, holder)._parameters[own] = new.setdefault(id(parameter), _frozen(parameter))
        frozen.setdefault(path, []).append(name)
    if frozen:
        before = vars(model).get("train")
        earlier = before.paths if isinstance(before, TrainWarning) else ()
        vars(model)["train"] = TrainWarning(model, tuple(dict.fromkeys((*earlier, *frozen))))
    return frozen


def _frozen(parameter: nn.Parameter) -> nn.Parameter:
    """The same parameter without a gradient, in the same memory."""
    frozen = nn.Parameter(parameter.detach(), requires_grad=False)
    vars(frozen).update(vars(parameter))
    return frozen
