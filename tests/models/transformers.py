"""Attention and what stands around it: batch norms of tokens, adapters, averaged heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import ONE_LINEAR, Block, Refused, features, images, tokens
from tests.models.parts import Residual, convolution_norm, depthwise_norm
from tests.support.counting import OperatorCounts

C = 8


class LinearNorm(nn.Sequential):
    """A linear layer and a batch norm of all tokens (LeViT, arXiv 2104.01136, §4)."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Linear(channels, out_channels, bias=False), nn.BatchNorm1d(out_channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        linear, norm = self.children()
        y: Tensor = linear(x)
        return norm(y.flatten(0, 1)).reshape_as(y)


class LevitAttention(nn.Module):
    """Attention of two heads, biased by position; values twice as wide (2104.01136, §4.2)."""

    heads, key_channels, value_channels, length = 2, 4, 8, 6

    def __init__(self) -> None:
        super().__init__()
        self.widths = [self.key_channels, self.key_channels, self.value_channels]
        self.query_key_value = LinearNorm(C, self.heads * sum(self.widths))
        outer = self.heads * self.value_channels
        self.projection = nn.Sequential(nn.Hardswish(), LinearNorm(outer, C))
        self.biases = nn.Parameter(torch.zeros(self.heads, self.length))
        positions = torch.arange(self.length)
        self.register_buffer("distances", (positions[:, None] - positions[None, :]).abs())

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        several = self.query_key_value(x).view(batch, length, self.heads, -1)
        query, key, value = several.split(self.widths, dim=3)
        query, key, value = (each.permute(0, 2, 1, 3) for each in (query, key, value))
        scores = query @ key.transpose(-2, -1) * self.key_channels**-0.5
        scores = scores + self.biases[:, self.distances]
        mixed = (scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, -1)
        result: Tensor = self.projection(mixed)
        return result


class LevitMlp(nn.Sequential):
    """Two linear layers with a batch norm each (LeViT, arXiv 2104.01136, §4.2)."""

    def __init__(self) -> None:
        super().__init__(LinearNorm(C, 2 * C), nn.Hardswish(), LinearNorm(2 * C, C))


class CascadedAttention(nn.Module):
    """Each head adds its result to the next one's channels (EfficientViT, 2305.07027, §3)."""

    heads, key_channels = 2, 2

    def __init__(self) -> None:
        super().__init__()
        value_channels = C // self.heads
        self.widths = [self.key_channels, self.key_channels, value_channels]
        self.query_key_value = nn.ModuleList(
            convolution_norm(value_channels, sum(self.widths), 1) for _ in range(self.heads)
        )
        self.query_kernels = nn.ModuleList(
            depthwise_norm(self.key_channels, kernel) for kernel in (5, 3)
        )
        self.projection = nn.Sequential(nn.ReLU(), convolution_norm(C, C, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        parts = x.chunk(self.heads, dim=1)
        y, results = parts[0], []
        for index, query_key_value in enumerate(self.query_key_value):
            if index > 0:
                y = y + parts[index]
            y = query_key_value(y)
            query, key, value = y.view(batch, -1, height, width).split(self.widths, dim=1)
            query = self.query_kernels[index](query)
            query, key, value = query.flatten(2), key.flatten(2), value.flatten(2)
            scores = (query.transpose(-2, -1) @ key) * self.key_channels**-0.5
            y = value @ scores.softmax(dim=-1).transpose(-2, -1)
            y = y.view(batch, C // self.heads, height, width)
            results.append(y)
        result: Tensor = self.projection(torch.cat(results, 1))
        return result


def efficient_vit() -> nn.Module:
    """Depthwise and feed-forward residuals around attention (EfficientViT, 2305.07027, §3)."""

    def feed_forward() -> nn.Module:
        return nn.Sequential(
            convolution_norm(C, 2 * C, 1), nn.ReLU(), convolution_norm(2 * C, C, 1)
        )

    return nn.Sequential(
        Residual(depthwise_norm(C, 3)),
        Residual(feed_forward()),
        Residual(CascadedAttention()),
        Residual(depthwise_norm(C, 3)),
        Residual(feed_forward()),
    )


class SingleHeadAttention(nn.Module):
    """One head over a part of the channels, the others pass (SHViT, arXiv 2401.16456, §3)."""

    key_channels, part = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, self.part)
        self.widths = [self.key_channels, self.key_channels, self.part]
        self.query_key_value = convolution_norm(self.part, sum(self.widths), 1)
        self.projection = nn.Sequential(nn.ReLU(), convolution_norm(C, C, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        part, others = torch.split(x, [self.part, C - self.part], dim=1)
        several = self.query_key_value(self.norm(part))
        query, key, value = several.split(self.widths, dim=1)
        query, key, value = query.flatten(2), key.flatten(2), value.flatten(2)
        scores = (query.transpose(-2, -1) @ key) * self.key_channels**-0.5
        mixed = (value @ scores.softmax(dim=-1).transpose(-2, -1)).reshape(
            batch, self.part, height, width
        )
        result: Tensor = self.projection(torch.cat([mixed, others], dim=1))
        return result


def single_head_block() -> nn.Module:
    """A depthwise residual and attention (SHViT, arXiv 2401.16456, §3)."""
    return nn.Sequential(Residual(depthwise_norm(C, 3)), Residual(SingleHeadAttention()))


class ReducedAttention(nn.Module):
    """Queries of all tokens, keys and values of pooled ones (NextViT, arXiv 2207.05501, §3)."""

    heads, ratio = 2, 4

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.BatchNorm2d(C)
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)
        self.pool, self.norm = nn.AvgPool1d(self.ratio, self.ratio), nn.BatchNorm1d(C)
        self.projection = nn.Linear(C, C)

    def split(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], -1, self.heads, C // self.heads).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x.relu()).flatten(2).transpose(1, 2)
        query = self.split(self.query(x))
        fewer = self.norm(self.pool(x.transpose(1, 2))).transpose(1, 2)
        key, value = self.split(self.key(fewer)), self.split(self.value(fewer))
        mixed = F.scaled_dot_product_attention(query, key, value)
        result: Tensor = self.projection(mixed.transpose(1, 2).flatten(2))
        return result


class Pooling(nn.Module):
    """What an average pool adds to its input, within a scaled residual (2111.11418, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, C)
        self.pool = nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
        self.gamma = nn.Parameter(1e-5 * torch.ones(C))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        result: Tensor = x + self.gamma[:, None, None] * (self.pool(y) - y)
        return result


class AveragedHeads(nn.Module):
    """A head and a distilled one, each a batch norm and a linear layer (RepViT, 2307.09283, §3)."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.last = convolution_norm(C, C, 1)
        self.head = nn.Sequential(nn.BatchNorm1d(C), nn.Linear(C, 5))
        self.distilled = nn.Sequential(nn.BatchNorm1d(C), nn.Linear(C, 5))

    def forward(self, x: Tensor) -> Tensor:
        if self.pooled:
            x = F.adaptive_avg_pool2d(self.last(x).relu(), 1).flatten(1)
        heads = self.head(x), self.distilled(x)
        if not self.training:
            return (heads[0] + heads[1]) / 2
        raise NotImplementedError("both heads are trained by losses of their own")


class RepAdapter(nn.Module):
    """Two 1×1 with a scale and a shortcut, before a linear layer (arXiv 2302.08106, §3)."""

    scale = 10

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Conv1d(C, 4, 1), nn.Conv1d(4, C, 1, groups=2)
        self.dropout = nn.Dropout(0.1)
        self.linear = nn.Linear(C, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        x = self.up(self.dropout(self.down(x))) * self.scale + x
        result: Tensor = self.linear(x.transpose(1, 2).contiguous())
        return result


class LowRank(nn.Module):
    """A linear layer and an update of low rank (LoRA, arXiv 2106.09685, §4.1)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C, 16)
        self.down, self.up = nn.Linear(C, 2, bias=False), nn.Linear(2, 16, bias=False)
        self.dropout, self.scaling = nn.Dropout(0.1), 8 / 2

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x) + self.up(self.down(self.dropout(x))) * self.scaling
        return result


POINT, THREE = (C, C, 1, 1), (C, 1, 3, 3)
FEED_FORWARD = (2 * C, C, 1, 1), (C, 2 * C, 1, 1)

BLOCKS = [
    # Two residuals and the bias by position; the scores are scaled.
    Block(
        "LeViT",
        lambda: nn.Sequential(Residual(LevitAttention()), Residual(LevitMlp())),
        ((2, 6, C), (1, 6, C)),
        ((32, C), (C, 16), (2 * C, C), (C, 2 * C)),
        OperatorCounts(additions=3, multiplications=1),
        OperatorCounts(linears=4, additions=3),
    ),
    # The residual around a depthwise convolution goes into it; three residuals and the sum of the
    # second head's part with the first head's result stay, and a scale of the scores per head.
    Block(
        "EfficientViT",
        efficient_vit,
        images(C),
        (
            THREE,
            *FEED_FORWARD,
            (8, 4, 1, 1),
            (2, 1, 5, 5),
            (8, 4, 1, 1),
            (2, 1, 3, 3),
            POINT,
            THREE,
            *FEED_FORWARD,
        ),
        OperatorCounts(additions=4, multiplications=2),
        OperatorCounts(convolutions=11, additions=4),
    ),
    Block(
        "SHViT",
        single_head_block,
        images(C),
        (THREE, (8, 4, 1, 1), POINT),
        OperatorCounts(additions=1, multiplications=1),
        OperatorCounts(convolutions=3, additions=1),
    ),
    # The pool stays; both batch norms go into the three layers that read them.
    Block(
        "NextViT",
        ReducedAttention,
        ((2, C, 4, 6), (1, C, 5, 7)),
        ((C, C),) * 4,
        OperatorCounts(average_pools=1),
        OperatorCounts(linears=4),
    ),
    Block(
        "PoolFormer",
        Pooling,
        images(C),
        (),
        OperatorCounts(additions=2, multiplications=1, average_pools=1),
        refused=(Refused("pool", "count_include_pad=False"),),
    ),
    Block(
        "RepViT, averaged heads",
        lambda: AveragedHeads(pooled=True),
        images(C),
        (POINT, (5, C)),
        OperatorCounts(average_pools=1),
        OperatorCounts(convolutions=1, linears=1),
    ),
    # That its channels come last is taken for granted of the input, and checked.
    Block(
        "RepViT, averaged heads alone",
        lambda: AveragedHeads(pooled=False),
        features(C),
        ((5, C),),
        by_hand=OperatorCounts(linears=1),
    ),
    Block("RepAdapter", RepAdapter, tokens(C), ((16, C),), by_hand=ONE_LINEAR),
    Block("LoRA", LowRank, tokens(C), ((16, C),), by_hand=ONE_LINEAR),
]
