"""The architectures of `segmentation_models_pytorch`, each over several encoders."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from tests.corpora.network import Network, images


@dataclass(frozen=True)
class SegmentationNetwork(Network):
    """A decoder over an encoder."""

    architecture: str
    encoder: str
    size: int = 64
    settings: dict[str, Any] = field(default_factory=dict)
    selected: bool = False
    library = "segmentation_models_pytorch"
    calibrating = 4

    @property
    def name(self) -> str:
        return f"{self.architecture}, {self.encoder}"

    def construct(self) -> nn.Module:
        import segmentation_models_pytorch as smp

        kind = getattr(smp, self.architecture)
        model: nn.Module = kind(self.encoder, encoder_weights=None, classes=2, **self.settings)
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return images(self.size)(count, seed)

    def by_hand(self, model: nn.Module) -> nn.Module | None:
        from segmentation_models_pytorch.encoders import mobileone
        from timm.utils import reparameterize_model

        convert = {
            "mobileone_s0": mobileone.reparameterize_model,
            "tu-repvgg_a0": reparameterize_model,
        }
        return convert[self.encoder](model) if self.encoder in convert else None


_SELECTED = {
    ("Unet", "mobileone_s0"),
    ("UnetPlusPlus", "resnet18"),
    ("Linknet", "resnet18"),
    ("FPN", "mobilenet_v2"),
    ("PSPNet", "resnet18"),
    ("DeepLabV3", "resnet18"),
    ("DeepLabV3Plus", "resnet18"),
    ("PAN", "resnet18"),
    ("MAnet", "resnet18"),
    ("UPerNet", "resnet18"),
    ("Segformer", "mit_b0"),
}
_ENCODERS = {
    "Unet": (
        "resnet18 mobilenet_v2 efficientnet-b0 timm-efficientnet-b0 timm-regnetx_002 mit_b0 "
        "mobileone_s0 vgg11_bn densenet121 xception se_resnet50 dpn68 tu-repvgg_a0"
    ),
    "UnetPlusPlus": "resnet18 mobilenet_v2",
    "Linknet": "resnet18 vgg11_bn",
    "FPN": "resnet18 mobilenet_v2 efficientnet-b0 mit_b0",
    "PSPNet": "resnet18 mobileone_s0",
    "DeepLabV3": "resnet18 mobilenet_v2",
    "DeepLabV3Plus": "resnet18 mobilenet_v2 efficientnet-b0",
    "PAN": "resnet18 mobilenet_v2",
    "MAnet": "resnet18 efficientnet-b0",
    "UPerNet": "resnet18 mit_b0",
    "Segformer": "mit_b0 resnet18",
}

SEGMENTATION_NETWORKS = [
    SegmentationNetwork(
        architecture,
        encoder,
        size=128 if architecture == "PAN" else 64,
        selected=(architecture, encoder) in _SELECTED,
    )
    for architecture, encoders in _ENCODERS.items()
    for encoder in encoders.split()
] + [
    SegmentationNetwork(
        "DPT",
        "tu-vit_tiny_patch16_224",
        settings={
            "dynamic_img_size": True,
            "decoder_fusion_channels": 16,
            "decoder_intermediate_channels": (16, 24, 32, 48),
        },
        selected=True,
    )
]
