"""The stages of a RepVGG, which its classifier and its feature extractor share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from itertools import accumulate
from operator import mul

from torch import Tensor, nn

from repvgg.models.activation_checkpointing import run_checkpointed
from repvgg.models.blocks import RepVGGBlock
from repvgg.models.config import LEVELS, RepVGGConfig, check_positive


class Stage(nn.Sequential):
    """Blocks one after the other; if `checkpointing`, training computes what is inside them twice.

    Shape:
        - Input: :math:`(N, C_{in}, H, W)`
        - Output: :math:`(N, C_{out}, H', W')`
    """

    checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        """Runs the blocks."""
        for block in self:
            x = run_checkpointed(block, x) if self.checkpointing and self.training else block(x)
        return x


class Backbone(nn.Module):
    """Stage 0 and the stages that follow, as attributes under their official names.

    Args:
        config: The shape of the network.
        in_chans: Number of channels of the images.
        levels: How many levels to build, stage 0 among them.

    Raises:
        ReparamError: If `in_chans` is not a positive integer.
    """

    def __init__(self, config: RepVGGConfig, *, in_chans: int = 3, levels: int = LEVELS) -> None:
        super().__init__()
        check_positive("in_chans", in_chans)
        self.config = config
        self.in_chans = in_chans
        self.stage0 = _block(config, in_chans, 0, 0)
        names = ["stage0"]
        for level in range(1, levels):
            for name, stage in _stages(config, level):
                self.add_module(name, stage)
                names.append(name)
        self.stage_names = tuple(names)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Chooses whether training computes activations twice instead of keeping them.

        Gradients and batch-norm statistics stay the same; evaluation is not affected.
        """
        for module in self.modules():
            if isinstance(module, Stage):
                module.checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Patterns that sort parameter names into groups, from the image to the classifier.

        Args:
            coarse: Whether a stage is one group, instead of each of its blocks.
        """
        block = "" if coarse else r"(?:blocks\.)?(\d+)"
        stem, *stages = self.stage_names
        return {stem: rf"^{stem}\."} | {stage: rf"^{stage}\.{block}" for stage in stages}


def describe_levels(config: RepVGGConfig) -> list[dict[str, str | int]]:
    """Describes the features of each level: their channels, their stride, and who computes them."""
    strides = accumulate(config.strides, mul)
    return [
        {"num_chs": channels, "reduction": stride, "module": name}
        for channels, stride, name in zip(config.channels, strides, config.level_ends, strict=True)
    ]


def _block(config: RepVGGConfig, in_channels: int, level: int, position: int) -> RepVGGBlock:
    layer = sum(config.blocks[: level - 1]) + 1 + position if level else 0
    return RepVGGBlock(
        in_channels,
        config.channels[level],
        stride=1 if position else config.strides[level],
        # Grouping all blocks would keep the groups apart through the whole network.
        groups=1 if layer % 2 or not layer else config.groups,
        squeeze_excitation=config.squeeze_excitation,
        post_squeeze_excitation=config.plus,
    )


def _stages(config: RepVGGConfig, level: int) -> Iterator[tuple[str, nn.Sequential]]:
    """Builds the stages of a level with their names: one, but for the halves of a RepVGGplus."""
    blocks = [
        _block(config, config.channels[level if position else level - 1], level, position)
        for position in range(config.blocks[level - 1])
    ]
    if not config.plus:
        yield f"stage{level}", Stage(*blocks)
    elif level == 3:
        half = len(blocks) // 2
        yield "stage3_first", _named_blocks(blocks[:half])
        yield "stage3_second", _named_blocks(blocks[half:])
    else:
        yield f"stage{level}", _named_blocks(blocks)


def _named_blocks(blocks: list[RepVGGBlock]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(blocks=Stage(*blocks)))
