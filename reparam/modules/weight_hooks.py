"""Weights that torch computes in a hook before each call: weight and spectral norm, and pruning.

In eval mode they depend on the parameters alone, as those of a parametrization do.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils import prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

_SUFFIXES = ("_g", "_v", "_orig", "_mask", "_u")


def computes_its_weights(module: nn.Module) -> bool:
    """Whether a module has hooks, and they do nothing but compute its weights."""
    others = (
        module._forward_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
        module._forward_pre_hooks_with_kwargs,
    )
    hooks = module._forward_pre_hooks.values()
    return bool(hooks) and not any(others) and all(map(_computes_a_weight, hooks))


def weights_of_hooks(module: nn.Module) -> list[str]:
    """The attributes into which hooks put the weights of a module."""
    hooks = module._forward_pre_hooks.values()
    return [_name_of(hook) for hook in hooks if _computes_a_weight(hook)]


def _name_of(hook: Any) -> str:
    name: str = hook._tensor_name if isinstance(hook, prune.BasePruningMethod) else hook.name
    return name


def _computes_a_weight(hook: Any) -> bool:
    """Whether a hook is one of torch's that computes a weight of others."""
    if isinstance(hook, prune.BasePruningMethod):
        base, kind = prune.BasePruningMethod, type(hook)
        return kind.__call__ is base.__call__ and kind.apply_mask is base.apply_mask
    return type(hook) in (WeightNorm, SpectralNorm)


def drop_idle_hooks(module: nn.Module) -> None:
    """Remove the hooks of a module that compute a weight of parameters which are gone."""
    registered = module._parameters | module._buffers
    for key, hook in list(module._forward_pre_hooks.items()):
        if not _computes_a_weight(hook):
            continue
        name = _name_of(hook)
        held = [each for suffix in _SUFFIXES if (each := f"{name}{suffix}") in registered]
        if any(registered[each] is None for each in held):
            del module._forward_pre_hooks[key]
            vars(module).pop(name, None)
            module._parameters[name] = None
            for each in held:
                module._parameters.pop(each, None)
                module._buffers.pop(each, None)
            for hooks in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
                _drop_those_of(hook, hooks)


def _drop_those_of(hook: Any, hooks: dict[int, Any]) -> None:
    """Remove what spectral norm does when a model is saved or loaded."""
    for key, other in list(hooks.items()):
        if getattr(getattr(other, "hook", other), "fn", None) is hook:
            del hooks[key]
