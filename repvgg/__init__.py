"""RepVGG networks, to be trained as they are and fused by `reparam`."""

from repvgg.blocks import RepVGGBlock, SqueezeExcitation
from repvgg.checkpoint_files import read_state_dict
from repvgg.checkpoints import load_checkpoint, save_checkpoint
from repvgg.config import RepVGGConfig
from repvgg.features import FeatureInfo, RepVGGFeatures
from repvgg.hub import from_pretrained, save_pretrained
from repvgg.layouts import convert_state_dict
from repvgg.model import RepVGG
from repvgg.zoo import create_model, list_models

__all__ = [
    "FeatureInfo",
    "RepVGG",
    "RepVGGBlock",
    "RepVGGConfig",
    "RepVGGFeatures",
    "SqueezeExcitation",
    "convert_state_dict",
    "create_model",
    "from_pretrained",
    "list_models",
    "load_checkpoint",
    "read_state_dict",
    "save_checkpoint",
    "save_pretrained",
]
