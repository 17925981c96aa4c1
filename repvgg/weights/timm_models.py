"""The models under timm's roof: `timm.create_model("reparam_repvgg_a0")`.

Importing `repvgg` registers them as soon as timm is imported, before or after. The weights that
timm has for its own RepVGG are theirs, too: `pretrained=True` fetches and renames them. The
variants are those of `repvgg.models.zoo`, the names of weights stand in `layouts`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
)
from torch import Tensor, nn

from reparam import ReparamError
from repvgg.models import VARIANTS, RepVGG, RepVGGConfig, build_classifier
from repvgg.weights.layouts import convert_state_dict

PREFIX = "reparam_"
"""Tells these models from timm's own, which have the same names."""


def _pretrained_config(name: str) -> PretrainedCfg:
    """Where weights are, and which images they expect: as timm says of its own model, if any."""
    config = get_pretrained_cfg(name) or PretrainedCfg()
    # Both branches of stage 0 see the image: timm fits these to images of other channels.
    first_conv: Any = ("stage0.rbr_dense.conv", "stage0.rbr_1x1.conv")
    return replace(config, first_conv=first_conv, classifier="linear")


def _build(
    cfg: RepVGGConfig,
    num_classes: int = 1000,
    in_chans: int = 3,
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    global_pool: str = "avg",
) -> RepVGG:
    if drop_rate or drop_path_rate:
        raise ReparamError("a RepVGG has no dropout: leave drop_rate and drop_path_rate at zero")
    model = build_classifier(cfg, num_classes=num_classes, in_chans=in_chans)
    model.remove_auxiliary_heads()  # the losses of timm's training script take logits alone
    if global_pool != "avg":
        model.reset_classifier(num_classes, global_pool)  # refuses what is no average
    return model


def _to_official(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    return convert_state_dict(state, to="official")


def _entry_point(name: str, config: RepVGGConfig) -> Callable[..., nn.Module]:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        model: nn.Module = build_model_with_cfg(
            _build,
            PREFIX + name,
            pretrained,
            model_cfg=config,
            pretrained_filter_fn=_to_official,
            **options,
        )
        return model

    create.__name__ = create.__qualname__ = PREFIX + name
    create.__doc__ = f"Builds {name}, to be fused by reparam."
    return create


# timm looks for this name in the module of the functions that it registers.
default_cfgs = generate_default_cfgs({PREFIX + name: _pretrained_config(name) for name in VARIANTS})
for _name, _config in VARIANTS.items():
    register_model(_entry_point(_name, _config))
