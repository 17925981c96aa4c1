"""A part of which nothing is left but what nobody reads: its caller does without it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm


class Chunked(nn.Module):
    """Takes some of the channels, and computes something that nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.unread = nn.Conv2d(4, 4, 1)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        first, _ = y.chunk(2, -3)
        self.unread(x)
        return first


class Narrowed(Chunked):
    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        x = self.unread(x.relu()) * 2
        return y.narrow(-3, 1, 2)


class Normed(Chunked):
    """Not of channels, but a batch norm that the convolution before takes in."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        self.unread(x + 1)
        return self.norm(y)


class Nested(nn.Module):
    """The unread code is in a part of the part."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Chunked()

    def forward(self, y: Tensor, x: Tensor) -> Tensor:
        return self.inner(y, x)


class Around(nn.Module):
    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.conv, self.part = nn.Conv2d(4, 4, 1), part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.conv(x), x)


class Twice(Around):
    """Both calls of the part are left with nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.conv(x), x) + self.part(self.conv(x + 1), x)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("around", [Around, Twice])
@pytest.mark.parametrize("part", [Chunked, Narrowed, Normed, Nested])
def test_what_is_left_is_idle(part: type[nn.Module], around: type[Around], verify: bool) -> None:
    model = randomise_batch_norm(around(part()).double().eval(), 0)
    x = torch.randn(2, 4, 6, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fused = reparam.fuse(model, verify=verify)  # a warning would be an error
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12
    if around is Around and part is not Normed:
        assert fused.conv.out_channels == 2
        # At most the check of its axes is left of the part.
        assert fused.part is None or not list(fused.part.parameters())
