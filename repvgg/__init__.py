"""RepVGG networks, to be trained as they are and fused by `reparam`."""

from types import ModuleType

from wrapt import when_imported

from reparam.deployment.checkpoints import read_state_dict
from repvgg.blocks import RepVGGBlock, SqueezeExcitation
from repvgg.checkpoints import load_checkpoint, save_checkpoint
from repvgg.config import RepVGGConfig
from repvgg.features import FeatureInfo, RepVGGFeatures
from repvgg.hub import from_pretrained, save_pretrained
from repvgg.layouts import Layout, convert_state_dict
from repvgg.model import RepVGG
from repvgg.zoo import create_model, list_models

__all__ = [
    "FeatureInfo",
    "Layout",
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


@when_imported("timm")
def _register(timm: ModuleType) -> None:
    """Registers the models with timm, which is slow to import, when somebody imports it."""
    import repvgg.timm_models  # noqa: F401
