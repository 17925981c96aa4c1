"""RepVGG networks, to be trained as they are and fused by `reparam`."""

from repvgg.model import RepVGG, RepVGGBlock, RepVGGConfig, SqueezeExcitation
from repvgg.zoo import create_model, list_models

__all__ = [
    "RepVGG",
    "RepVGGBlock",
    "RepVGGConfig",
    "SqueezeExcitation",
    "create_model",
    "list_models",
]
