"""RepVGG networks, to be trained as they are and fused by `reparam`."""

from repvgg.blocks import RepVGGBlock, SqueezeExcitation
from repvgg.config import RepVGGConfig
from repvgg.features import FeatureInfo, RepVGGFeatures
from repvgg.model import RepVGG
from repvgg.zoo import create_model, list_models

__all__ = [
    "FeatureInfo",
    "RepVGG",
    "RepVGGBlock",
    "RepVGGConfig",
    "RepVGGFeatures",
    "SqueezeExcitation",
    "create_model",
    "list_models",
]
