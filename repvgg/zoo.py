"""The published RepVGG variants as a table, and `create_model`, which builds one by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType

from reparam import ReparamError
from repvgg.model import RepVGG, RepVGGConfig


def _variant(
    blocks: tuple[int, int, int, int],
    width: float,
    last_width: float,
    *,
    groups: int = 1,
    squeeze_excitation: bool = False,
) -> RepVGGConfig:
    stage_widths = (64 * width, 128 * width, 256 * width, 512 * last_width)
    return RepVGGConfig(
        blocks=blocks,
        channels=(min(64, int(64 * width)), *(int(channels) for channels in stage_widths)),
        groups=groups,
        squeeze_excitation=squeeze_excitation,
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
    }
)


def list_models() -> list[str]:
    """Returns the names that `create_model` knows, from the smallest family to the largest."""
    return list(VARIANTS)


def create_model(name: str, *, num_classes: int = 1000, in_chans: int = 3) -> RepVGG:
    """Builds a RepVGG variant with fresh weights.

    Args:
        name: One of `list_models()`.
        num_classes: Number of classes.
        in_chans: Number of channels of the images.

    Returns:
        The model, in training mode as every new module; call `.eval()` before `reparam.fuse`.

    Raises:
        ReparamError: If the name is unknown or a number is not a positive integer.

    Examples:
        >>> model = create_model("repvgg_a0", num_classes=10)
        >>> sum(parameter.numel() for parameter in model.parameters())
        7840778
    """
    config = VARIANTS.get(name)
    if config is None:
        close = difflib.get_close_matches(name, VARIANTS, n=3)
        known = f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(VARIANTS)}"
        raise ReparamError(f"unknown model {name!r}; {known}")
    return RepVGG(config, num_classes=num_classes, in_chans=in_chans)
