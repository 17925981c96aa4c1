"""The networks: a block, the stages, and what stands on them; nothing is read or written.

Files, in the order in which data flows: `blocks`, `config`, `activation_checkpointing`, `backbone`,
`classifier`, `features`, `segmentation`, `zoo`.
"""

from repvgg.models.backbone import Backbone
from repvgg.models.blocks import RepVGGBlock, SqueezeExcitation
from repvgg.models.classifier import RepVGG, build_classifier
from repvgg.models.config import RepVGGConfig
from repvgg.models.features import FeatureInfo, RepVGGFeatures
from repvgg.models.segmentation import Segmenter
from repvgg.models.zoo import VARIANTS, create_model, find_variant, list_models

__all__ = [
    "VARIANTS",
    "Backbone",
    "FeatureInfo",
    "RepVGG",
    "RepVGGBlock",
    "RepVGGConfig",
    "RepVGGFeatures",
    "Segmenter",
    "SqueezeExcitation",
    "build_classifier",
    "create_model",
    "find_variant",
    "list_models",
]
