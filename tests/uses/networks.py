"""The networks that the tests fuse."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

import reparam
import repvgg
from repvgg import RepVGGConfig
from tests.support.randomise import randomise_batch_norm
from tests.uses.eager import Eager

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": lambda: repvgg.RepVGG(RepVGGConfig((1, 2, 2, 1), (8, 8, 12, 16, 16)), num_classes=10),
    "byobnet": lambda: timm.create_model("test_byobnet", num_classes=10),
    "mobileone": lambda: timm.create_model("mobileone_s0", num_classes=10),
    "fastvit": lambda: timm.create_model("fastvit_t8", num_classes=10),
    "resnet": lambda: torchvision.models.resnet18(num_classes=10),
    "eager": Eager,
}
SMALL = ["repvgg", "byobnet", "resnet", "eager"]
TRACED = [name for name in SMALL if name != "eager"]


@dataclass(frozen=True)
class Fused:
    """A network in float32 and eval mode, before and after."""

    model: nn.Module
    fused: nn.Module
    x: Tensor


def fused_network(name: str) -> Fused:
    """A copy of a network that is built and fused once."""
    return deepcopy(_fused(name))


@cache
def _fused(name: str) -> Fused:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]().eval()
        x = torch.randn(2, 3, 64, 64)
    model = randomise_batch_norm(model, 0, (x,))
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    return Fused(model, fused, x)


def same(one: Any, two: Any) -> bool:
    """Whether two outputs are equal but for rounding in float32."""
    return bool(torch.allclose(one, two, rtol=1e-3, atol=1e-4 * float(two.abs().max())))
