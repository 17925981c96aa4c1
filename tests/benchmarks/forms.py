"""The forms of one network that are compared."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse as fuse_with_fx
from torch.nn.modules.conv import _ConvNd

import reparam
from tests.corpora.network import Network

TRAINING, BY_HAND, FX, OURS, AGAIN, LIMIT = (
    "training form", "by hand", "torch.fx", "reparam", "reparam again", "bare convolutions",
)  # fmt: skip
"""What the forms are called; `AGAIN`, a copy of ours, shows how far a form is from itself."""


class BareConvolutions(nn.Module):
    """The convolutions and linear layers of a model alone, each on an input of its size.

    Args:
        model: The model.
        inputs: Its inputs.
        layout: The memory format of the images.
    """

    def __init__(self, model: nn.Module, inputs: tuple[Any, ...], layout: torch.memory_format):
        super().__init__()
        self.layers: list[nn.Module] = []
        self.operands: list[Tensor] = []

        def note(module: nn.Module, given: tuple[Any, ...]) -> None:
            self.layers.append(module)
            operand = torch.rand_like(given[0])
            if operand.dim() == 4:
                operand = operand.contiguous(memory_format=layout)
            self.operands.append(operand)

        layers = [module for module in model.modules() if isinstance(module, _ConvNd | nn.Linear)]
        hooks = [layer.register_forward_pre_hook(note) for layer in layers]
        try:
            model(*inputs)
        finally:
            for hook in hooks:
                hook.remove()

    def forward(self, *_: Any) -> Tensor:
        result = self.operands[0]
        for layer, operand in zip(self.layers, self.operands, strict=True):
            result = layer(operand)
        return result


def reason(problem: Exception) -> str:
    """Why a form is missing, as the beginning of an error."""
    return f"{type(problem).__name__}: {problem}".strip().split("\n", 1)[0][:160]


@torch.no_grad()
def forms(network: Network, inputs: tuple[Any, ...]) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """All forms of a network that there are, and why others are missing.

    Args:
        network: The network.
        inputs: What each form is tried on.

    Returns:
        The forms, and the reasons, by the names of the forms.
    """
    training = network.build(0)
    ours = reparam.fuse(training)
    makers: dict[str, Callable[[], nn.Module | None]] = {
        BY_HAND: lambda: network.by_hand(training),
        FX: lambda: fuse_with_fx(training),
    }
    found: dict[str, nn.Module] = {TRAINING: training}
    missing: dict[str, str] = {}
    for form, make in makers.items():
        try:
            made = make()
            if made is None:
                missing[form] = "there is none"
                continue
            made(*deepcopy(inputs))
        except Exception as problem:  # the fuser cannot trace it, or breaks it
            missing[form] = reason(problem)
        else:
            found[form] = made
    return {**found, OURS: ours, AGAIN: deepcopy(ours)}, missing
