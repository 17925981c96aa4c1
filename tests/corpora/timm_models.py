"""One small network of each of timm's families with batch norm.

`timm` 1.0.31 has 98 families; 59 register at least one network with batch norm.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import timm
from timm.utils import reparameterize_model
from torch import nn

from tests.corpora.network import Network, images


@dataclass(frozen=True)
class TimmModel(Network):
    """A network, the smallest image that it takes well, and what is known of it."""

    family: str
    name: str
    size: int = 96
    resizable: bool = False
    """Whether the image size is an argument of the model."""
    hand: bool = False
    """Whether timm has a hand-written fused form (`timm.utils.reparameterize_model`)."""
    quick: bool = False
    """Whether the default run of the tests takes it."""

    library = "timm"

    @property
    def calibrating(self) -> int:
        return 8 if self.size < 200 else 4

    @property
    def mark(self) -> str:
        return "" if self.quick else "corpus"

    def construct(self) -> nn.Module:
        size = {"img_size": self.size} if self.resizable else {}
        model: nn.Module = timm.create_model(self.name, pretrained=False, **size)
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return images(self.size)(count, seed)

    def by_hand(self, model: nn.Module) -> nn.Module | None:
        return reparameterize_model(deepcopy(model)) if self.hand else None


TIMM_MODELS = [
    TimmModel("byoanet", "eca_botnext26ts_256", size=256),
    TimmModel("byobnet", "test_byobnet", quick=True),
    TimmModel("byobnet", "repvgg_a0", hand=True, quick=True),
    TimmModel("byobnet", "mobileone_s0", hand=True),
    TimmModel("byobnet", "mobileone_s4", hand=True),
    TimmModel("convmixer", "convmixer_768_32", size=64),
    TimmModel("cpubone", "cpubone_nano"),
    TimmModel("cspnet", "cs3darknet_focus_s"),
    TimmModel("cspnext", "cspnext_tiny"),
    TimmModel("densenet", "densenet121"),
    TimmModel("dla", "dla46x_c"),
    TimmModel("dpn", "dpn48b"),
    TimmModel("efficientformer", "efficientformer_l1", size=224),
    TimmModel("efficientformer_v2", "efficientformerv2_s0", resizable=True),
    TimmModel("efficientnet", "mobilenetv2_100"),
    TimmModel("efficientnet", "mixnet_s"),
    TimmModel("efficientnet", "tf_efficientnet_b0"),
    TimmModel("efficientvim", "efficientvim_m1", hand=True),
    TimmModel("efficientvit_mit", "efficientvit_b0"),
    TimmModel("efficientvit_msra", "efficientvit_m0", size=128, hand=True),
    TimmModel("fasternet", "fasternet_t0"),
    TimmModel("fastvit", "fastvit_t8", hand=True, quick=True),
    TimmModel("ghostnet", "ghostnet_050"),
    TimmModel("ghostnet", "ghostnetv3_100", hand=True),
    TimmModel("hardcorenas", "hardcorenas_a"),
    TimmModel("hgnet", "hgnetv2_b0"),
    TimmModel("hrnet", "hrnet_w18_small"),
    TimmModel("iformer", "iformer_t", hand=True),
    TimmModel("inception_next", "inception_next_atto"),
    TimmModel("inception_resnet_v2", "inception_resnet_v2"),
    TimmModel("inception_v3", "inception_v3"),
    TimmModel("inception_v4", "inception_v4"),
    TimmModel("lcnetv2", "lcnetv2_small", hand=True),
    TimmModel("lcnetv2", "lcnetv2_base", hand=True),
    TimmModel("levit", "levit_128s", size=128, resizable=True, hand=True, quick=True),
    TimmModel("levit", "levit_conv_128s", size=128, resizable=True, hand=True),
    TimmModel("lowformer", "lowformer_b0"),
    TimmModel("maxxvit", "test_coatnet", size=64, resizable=True, quick=True),
    TimmModel("mobilenetv3", "mobilenetv3_small_050"),
    TimmModel("mobilenetv3", "lcnet_050", quick=True),
    TimmModel("mobilevit", "mobilevit_xxs"),
    TimmModel("nasnet", "nasnetalarge", size=64),
    TimmModel("nextvit", "nextvit_small", hand=True),
    TimmModel("pnasnet", "pnasnet5large", size=64),
    TimmModel("regnet", "regnetx_002"),
    TimmModel("repghost", "repghostnet_050", hand=True),
    TimmModel("repvit", "repvit_m0_9", hand=True),
    TimmModel("res2net", "res2next50"),
    TimmModel("resnest", "resnest14d"),
    TimmModel("resnet", "resnet18", quick=True),
    TimmModel("resnetv2", "resnetv2_18"),
    TimmModel("rexnet", "rexnet_100"),
    TimmModel("selecsls", "selecsls42"),
    TimmModel("senet", "legacy_seresnet18"),
    TimmModel("shvit", "shvit_s1", hand=True),
    TimmModel("sknet", "skresnet18"),
    TimmModel("starnet", "starnet_s050"),
    TimmModel("swiftformer", "swiftformer_xs"),
    TimmModel("tiny_vit", "tiny_vit_5m_224", hand=True),
    TimmModel("tresnet", "tresnet_m"),
    TimmModel("vgg", "vgg11_bn", size=64),
    TimmModel("visformer", "visformer_tiny", resizable=True),
    TimmModel("vision_transformer_hybrid", "vit_small_resnet26d_224", size=64, resizable=True),
    TimmModel("volo", "volo_d1_224", size=64, resizable=True),
    TimmModel("vovnet", "ese_vovnet19b_slim_dw"),
    TimmModel("xception", "legacy_xception"),
    TimmModel("xception_aligned", "xception41p"),
    TimmModel("xcit", "xcit_nano_12_p8_224", size=64),
]
"""Several of a family where they are built differently or one is a target of the design."""
