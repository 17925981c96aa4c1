"""RepVGG as a backbone: the features of chosen levels instead of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from reparam import ReparamError
from repvgg.models.backbone import Backbone, describe_levels
from repvgg.models.config import LEVELS, RepVGGConfig


@dataclass(frozen=True)
class FeatureInfo:
    """What a feature extractor returns, with the methods of timm's class of this name.

    Attributes:
        info: Channels (`num_chs`), `reduction` and `module` of each level.
        out_indices: The levels that are returned.
    """

    info: list[dict[str, str | int]]
    out_indices: tuple[int, ...]

    def channels(self) -> list[int]:
        """The number of channels of each output."""
        return [int(self.info[index]["num_chs"]) for index in self.out_indices]

    def reduction(self) -> list[int]:
        """How many times smaller than the image each output is."""
        return [int(self.info[index]["reduction"]) for index in self.out_indices]

    def module_name(self) -> list[str]:
        """Which stage computes each output."""
        return [str(self.info[index]["module"]) for index in self.out_indices]


class RepVGGFeatures(Backbone):
    r"""Computes the features of the levels that are asked for, and no later one.

    Args:
        config: The shape of the network.
        in_chans: Number of channels of the images.
        out_indices: The levels, in rising order: 0 is stage 0, 4 and −1 are stage 4.

    Shape:
        - Input: :math:`(N, in\_chans, H, W)`
        - Output: a list of :math:`(N, C_i, H / r_i, W / r_i)`, rounded up, where :math:`C_i` and
          :math:`r_i` are what `feature_info.channels()` and `feature_info.reduction()` say

    Raises:
        ReparamError: If `out_indices` names no level, one twice, or not in rising order, or
            `in_chans` is not a positive integer.

    Examples:
        >>> config = RepVGGConfig(blocks=(1, 1, 1, 1), channels=(8, 8, 16, 32, 64))
        >>> features = RepVGGFeatures(config, out_indices=(2, 4))
        >>> features.feature_info.channels(), features.feature_info.reduction()
        ([16, 64], [8, 32])
    """

    def __init__(
        self,
        config: RepVGGConfig,
        *,
        in_chans: int = 3,
        out_indices: Sequence[int] = tuple(range(LEVELS)),
    ) -> None:
        chosen = _check_indices(out_indices)
        super().__init__(config, in_chans=in_chans, levels=chosen[-1] + 1)
        self.feature_info = FeatureInfo(describe_levels(config), chosen)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Computes the features."""
        outputs: list[Tensor] = []
        wanted = self.feature_info.module_name()
        for stage in self.stage_names:
            x = getattr(self, stage)(x)
            if stage in wanted:
                outputs.append(x)
        return outputs


def _check_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    advice = f"give indices from 0 to {LEVELS - 1} in rising order, such as (2, 3, 4)"
    try:
        chosen = tuple(range(LEVELS)[index] for index in out_indices)
    except (TypeError, IndexError) as error:
        raise ReparamError(
            f"`out_indices` is {out_indices!r}, and there are {LEVELS} levels; {advice}"
        ) from error
    if not chosen or list(chosen) != sorted(set(chosen)):
        raise ReparamError(f"`out_indices` is {out_indices!r}; {advice}")
    return chosen
