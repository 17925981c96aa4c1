"""RepVGG networks, to be trained as they are and fused by `reparam`.

Rooms, in the order in which data flows: `models`, `weights`, `data`, `training`, `cli`.
"""

from types import ModuleType

from wrapt import when_imported

from reparam.deployment import read_state_dict
from repvgg.models import (
    FeatureInfo,
    RepVGG,
    RepVGGBlock,
    RepVGGConfig,
    RepVGGFeatures,
    SqueezeExcitation,
    create_model,
    list_models,
)
from repvgg.weights import (
    Layout,
    convert_state_dict,
    from_pretrained,
    load_checkpoint,
    save_checkpoint,
    save_pretrained,
)

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
    import repvgg.weights.timm_models  # noqa: F401
