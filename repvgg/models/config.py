"""What a RepVGG network looks like, as data."""

from __future__ import annotations

from dataclasses import dataclass

from reparam import ReparamError
from repvgg.models.blocks import POST_REDUCTION, REDUCTION

LEVELS = 5
"""Stage 0 and the four stages; each ends a level of features."""


@dataclass(frozen=True)
class RepVGGConfig:
    """The shape of a RepVGG network: a single block (stage 0) and four stages of blocks.

    Attributes:
        blocks: Number of blocks in stages 1 to 4.
        channels: Output channels of stages 0 to 4.
        strides: Stride of stages 0 to 4; the first block of a stage applies it.
        groups: Groups of every second 3×3 and 1×1 convolution, counted over the whole network.
        squeeze_excitation: Whether each block rescales its channels before the ReLU.
        plus: Whether it is a RepVGGplus: each block rescales its channels after the ReLU, stage 3
            has two halves, and while training auxiliary classifiers stand behind stage 1, stage 2
            and the first half of stage 3.

    Raises:
        ReparamError: If a length or a number does not fit.
    """

    blocks: tuple[int, ...]
    channels: tuple[int, ...]
    strides: tuple[int, ...] = (2, 2, 2, 2, 2)
    groups: int = 1
    squeeze_excitation: bool = False
    plus: bool = False

    def __post_init__(self) -> None:
        for name, length in (("blocks", 4), ("channels", 5), ("strides", 5)):
            numbers = getattr(self, name)
            if len(numbers) != length:
                raise ReparamError(f"`{name}` needs {length} numbers, got {numbers!r}")
            for number in numbers:
                check_positive(name, number)
        check_positive("groups", self.groups)
        if self.plus:
            self._check_plus()
        reduction = POST_REDUCTION if self.plus else REDUCTION
        for channels in self.channels:
            if channels % self.groups:
                raise ReparamError(f"{channels} channels cannot be split into {self.groups} groups")
            if (self.squeeze_excitation or self.plus) and channels < reduction:
                raise ReparamError(
                    f"squeeze-and-excitation divides the channels by {reduction}: "
                    f"a stage of {channels} has too few"
                )

    def _check_plus(self) -> None:
        if self.groups != 1 or self.squeeze_excitation:
            raise ReparamError(
                "a RepVGGplus has no groups, and squeeze-and-excitation after the ReLU only: "
                "leave `groups` and `squeeze_excitation` out, or `plus`"
            )
        if self.blocks[2] % 2:
            raise ReparamError(
                f"stage 3 of a RepVGGplus has two halves: {self.blocks[2]} blocks cannot be halved"
            )

    @property
    def level_ends(self) -> tuple[str, ...]:
        """The name of the last stage of each level."""
        return ("stage0", "stage1", "stage2", "stage3_second" if self.plus else "stage3", "stage4")


def check_positive(name: str, value: object) -> None:
    """Refuses what is not a positive integer.

    Raises:
        ReparamError: Naming the argument and the value.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ReparamError(f"`{name}` must be a positive integer, got {value!r}")
