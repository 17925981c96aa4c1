"""Weight decay on the kernels that blocks will be fused to, instead of on those of their branches.

The authors of RepVGG call it custom L2 (`get_custom_L2` in the code of
[arXiv:2101.03697](https://arxiv.org/abs/2101.03697)). Of a block with the kernels K₃ and K₁, whose
batch norms multiply by t₃ and t₁, it is::

    Σ K₃² outside of the centre  +  Σ (t₃ K₃ + t₁ K₁)² / (t₃² + t₁²) at the centre

where t = γ / √(σ² + eps) with the running variance, as a constant. At the centre, where both
kernels meet, what decays is the equivalent kernel; the divisor makes its size comparable to that of
K₃, which a batch norm follows. The identity is not counted: its scale decays by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

import reparam
from reparam import ReparamError
from reparam.expansion import ExpandedLayer
from repvgg.models import Backbone, RepVGGBlock


class KernelDecay:
    """The decay of equivalent kernels, as a part of the loss.

    A live form of the network in evaluation mode has the kernels. Its convolutions are the
    parameters of the network itself, so that gradients reach them; its batch norms share the
    memory of the network's and get no gradients. For a layer that `reparam.expand` made, which has
    no norms, it is half the squared equivalent kernel: the weight decay of what will be deployed.

    Args:
        model: The network, where it is trained; it is left in evaluation mode.
        weight_decay: What half the sum of squares is multiplied with.

    Attributes:
        covered: The parameters that decay so, and in no other way.

    Raises:
        ReparamError: If an expanded layer has batch norms.
    """

    def __init__(self, model: Backbone, weight_decay: float) -> None:
        for path, layer in model.named_modules():
            if isinstance(layer, ExpandedLayer) and _has_norms(layer):
                raise ReparamError(
                    f"`custom_l2` has no formula for {path}, whose new branches have norms; "
                    "expand without them, or leave `custom_l2` out"
                )
        self._weight_decay = weight_decay
        live: Any = reparam.fuse(model.eval(), live=True, verify=False)
        self._live: nn.Module = live
        _share(live, model)
        holders = {row.name: _holder(model, row.name) for row in live.reparam_report.fused}
        self._holders = {path: holder for path, holder in holders.items() if holder is not None}
        self.covered: list[nn.Parameter] = []
        for holder in self._holders.values():
            self.covered += _kernels(holder)

    def __call__(self) -> Tensor:
        """Computes the part of the loss, with gradients for what is covered."""
        terms = [self._term(path, holder) for path, holder in self._holders.items()]
        return 0.5 * self._weight_decay * torch.stack(terms).sum()

    def _term(self, path: str, holder: nn.Module) -> Tensor:
        kernel: Tensor = getattr(self._live.get_submodule(path), "weight")  # noqa: B009
        if not isinstance(holder, RepVGGBlock):
            return kernel.square().sum()
        dense = holder.rbr_dense.get_parameter("conv.weight")
        ring = dense.square().sum() - dense[:, :, 1, 1].square().sum()
        squares = _factors(holder.rbr_dense).square() + _factors(holder.rbr_1x1).square()
        smallest = torch.finfo(squares.dtype).tiny
        centre = kernel[:, :, 1, 1].square() / squares.clamp_min(smallest)[:, None]
        return ring + centre.sum()


def _has_norms(layer: nn.Module) -> bool:
    return any(isinstance(module, _BatchNorm) for module in layer.modules())


def _share(live: nn.Module, model: nn.Module) -> None:
    """Lets a live form compute with the tensors of a model: constant norms, and no identity."""
    for path, module in model.named_modules():
        holder = live.get_submodule(path)
        for name, parameter in module.named_parameters(recurse=False):
            shared = parameter
            if isinstance(module, _BatchNorm):
                constant = parameter.detach()  # in the same memory
                if path.endswith(".rbr_identity"):
                    constant = torch.zeros_like(constant)
                shared = nn.Parameter(constant, requires_grad=False)
            setattr(holder, name, shared)
        for name, buffer in module.named_buffers(recurse=False):
            setattr(holder, name, buffer)


def _holder(model: nn.Module, operator: str) -> nn.Module | None:
    """The block or the expanded layer that a live operator stands for, if it is one."""
    modules = dict(model.named_modules())
    expanded = modules.get(operator)
    if isinstance(expanded, ExpandedLayer):
        return expanded
    block = modules.get(operator.rpartition(".")[0])
    return block if isinstance(block, RepVGGBlock) else None


def _kernels(holder: nn.Module) -> list[nn.Parameter]:
    """The weights of which an equivalent kernel is computed."""
    if isinstance(holder, RepVGGBlock):
        return [
            branch.get_parameter("conv.weight") for branch in (holder.rbr_dense, holder.rbr_1x1)
        ]
    return [weight for name, weight in holder.named_parameters() if not name.endswith("bias")]


def _factors(branch: nn.Module) -> Tensor:
    """What the batch norm of a branch multiplies each channel with, as a constant."""
    norm = branch.get_submodule("bn")
    variance = branch.get_buffer("bn.running_var")
    eps: float = getattr(norm, "eps")  # noqa: B009
    return (branch.get_parameter("bn.weight") / (variance + eps).sqrt()).detach()
