"""The networks that are measured."""

from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.utils import reparameterize_model
from torch import nn

from tests.corpora.network import Network, images


@dataclass(frozen=True)
class Timm(Network):
    """A network of timm at the size that it was made for."""

    name: str
    multi_branch: bool = False
    """Whether it is trained with branches that deployment does without."""

    library = "timm"
    calibrating = 2

    def construct(self) -> nn.Module:
        model: nn.Module = timm.create_model(self.name, pretrained=False)
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        size = timm.get_pretrained_cfg(self.name)
        return images(size.input_size[-1] if size is not None else 224)(count, seed)

    def by_hand(self, model: nn.Module) -> nn.Module | None:
        fused: nn.Module = reparameterize_model(model)
        same = len(list(fused.modules())) == len(list(model.modules()))
        return None if same else fused


class Transformers(Network):
    """A RegNet of transformers as its configuration makes it, 224 x 224."""

    library = "transformers"
    name = "RegNet"
    calibrating = 2

    def construct(self) -> nn.Module:
        from transformers import RegNetConfig, RegNetForImageClassification

        return RegNetForImageClassification(RegNetConfig(return_dict=False))

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return images(224)(count, seed)


class Segmentation(Network):
    """A U-Net of segmentation_models_pytorch, 256 x 256."""

    library = "segmentation_models_pytorch"
    name = "Unet, mobilenet_v2"
    calibrating = 2

    def construct(self) -> nn.Module:
        import segmentation_models_pytorch

        model: nn.Module = segmentation_models_pytorch.Unet("mobilenet_v2", encoder_weights=None)
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return images(256)(count, seed)


def networks() -> list[Network]:
    """All, those of other libraries last."""
    from tests.corpora.ultralytics_networks import UltralyticsNetwork

    detectors = [UltralyticsNetwork(name, size=320) for name in ("yolov6n", "yolov9t", "yolov10n")]
    return [*TIMM, *detectors, Transformers(), Segmentation()]


TIMM = [
    Timm("repvgg_a0", multi_branch=True),
    Timm("repvgg_b1g4", multi_branch=True),
    Timm("mobileone_s0", multi_branch=True),
    Timm("mobileone_s1", multi_branch=True),
    Timm("repvit_m0_9", multi_branch=True),
    Timm("fastvit_t8", multi_branch=True),
    Timm("ghostnetv3_100", multi_branch=True),
    Timm("repghostnet_100", multi_branch=True),
    Timm("lcnetv2_base", multi_branch=True),
    Timm("levit_128"),
    Timm("shvit_s2"),
    Timm("nextvit_small"),
    Timm("resnet50"),
    Timm("mobilenetv2_100"),
    Timm("efficientnet_b0"),
]


class Tiny(Network):
    """Two blocks of a RepVGG, for the tests of the benchmarks themselves."""

    library = "reparam"
    name = "tiny"
    calibrating = 2

    def construct(self) -> nn.Module:
        from repvgg import RepVGG, RepVGGConfig

        return RepVGG(RepVGGConfig(blocks=(1, 1, 1, 1), channels=(4, 4, 4, 4, 4)))

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return (torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)),)
