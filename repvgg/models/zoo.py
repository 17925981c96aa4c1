"""The published RepVGG variants as a table, and `create_model`, which builds one by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Literal, overload

from reparam import ReparamError
from repvgg.models.classifier import RepVGG
from repvgg.models.config import LEVELS, RepVGGConfig
from repvgg.models.features import RepVGGFeatures


def _variant(
    blocks: tuple[int, int, int, int],
    width: float,
    last_width: float,
    *,
    groups: int = 1,
    squeeze_excitation: bool = False,
    plus: bool = False,
) -> RepVGGConfig:
    stage_widths = (64 * width, 128 * width, 256 * width, 512 * last_width)
    return RepVGGConfig(
        blocks=blocks,
        # Stage 0 works on the largest images: wider variants keep it at 64 channels.
        channels=(min(64, int(64 * width)), *(int(channels) for channels in stage_widths)),
        groups=groups,
        squeeze_excitation=squeeze_excitation,
        plus=plus,
    )


_A = (2, 4, 14, 1)
_B = (4, 6, 16, 1)
_D = (8, 14, 24, 1)

VARIANTS: Mapping[str, RepVGGConfig] = MappingProxyType(
    {
        "repvgg_a0": _variant(_A, 0.75, 2.5),
        "repvgg_a1": _variant(_A, 1, 2.5),
        "repvgg_a2": _variant(_A, 1.5, 2.75),
        "repvgg_b0": _variant(_B, 1, 2.5),
        "repvgg_b1": _variant(_B, 2, 4),
        "repvgg_b1g2": _variant(_B, 2, 4, groups=2),
        "repvgg_b1g4": _variant(_B, 2, 4, groups=4),
        "repvgg_b2": _variant(_B, 2.5, 5),
        "repvgg_b2g2": _variant(_B, 2.5, 5, groups=2),
        "repvgg_b2g4": _variant(_B, 2.5, 5, groups=4),
        "repvgg_b3": _variant(_B, 3, 5),
        "repvgg_b3g2": _variant(_B, 3, 5, groups=2),
        "repvgg_b3g4": _variant(_B, 3, 5, groups=4),
        "repvgg_d2se": _variant(_D, 2.5, 5, squeeze_excitation=True),
        "repvggplus_l2pse": _variant(_D, 2.5, 5, plus=True),
    }
)


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, from the smallest family to the largest."""
    return list(VARIANTS)


@overload
def create_model(
    name: str,
    *,
    num_classes: int = ...,
    in_chans: int = ...,
    features_only: Literal[False] = ...,
    checkpointing: bool = ...,
) -> RepVGG: ...


@overload
def create_model(
    name: str,
    *,
    in_chans: int = ...,
    features_only: Literal[True],
    out_indices: Sequence[int] | None = ...,
    checkpointing: bool = ...,
) -> RepVGGFeatures: ...


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    checkpointing: bool = False,
) -> RepVGG | RepVGGFeatures:
    """Builds a RepVGG variant with fresh weights.

    Args:
        name: One of `list_models()`.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.
        features_only: Whether to build a `RepVGGFeatures`, whose forward returns a list of
            features, instead of a classifier.
        out_indices: The levels of features to return: 0 is stage 0, 4 is stage 4; all by default.
        checkpointing: Whether training computes activations twice instead of keeping them.

    Returns:
        The model, in training mode as every new module; call `.eval()` before `reparam.fuse`.

    Raises:
        ReparamError: If the name is unknown, a number is not a positive integer, or `out_indices`
            do not fit.

    Examples:
        >>> model = create_model("repvgg_a0", num_classes=10)
        >>> sum(parameter.numel() for parameter in model.parameters())
        7840778
        >>> backbone = create_model("repvgg_a0", features_only=True, out_indices=(1, 2, 3))
        >>> backbone.feature_info.channels()
        [48, 96, 192]
    """
    config = find_variant(name)
    model: RepVGG | RepVGGFeatures
    if features_only:
        levels = range(LEVELS) if out_indices is None else out_indices
        model = RepVGGFeatures(config, in_chans=in_chans, out_indices=levels)
    elif out_indices is not None:
        raise ReparamError("`out_indices` chooses features: give `features_only=True` as well")
    else:
        model = RepVGG(config, num_classes=num_classes, in_chans=in_chans)
    model.set_grad_checkpointing(checkpointing)
    return model


def find_variant(name: str) -> RepVGGConfig:
    """Looks up the shape of a variant.

    Raises:
        ReparamError: If the name is unknown, with the names that are nearest.
    """
    config = VARIANTS.get(name)
    if config is None:
        close = difflib.get_close_matches(name, VARIANTS, n=3)
        advice = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(VARIANTS)}"
        raise ReparamError(f"unknown model {name!r}; {advice}")
    return config
