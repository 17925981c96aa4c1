"""Branches that are concatenated, or that read one value."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.block import Block, images, tokens
from tests.models.parts import convolution_norm

C = 8


class Inception(nn.Module):
    """Branches of one shape, concatenated (GoogLeNet, arXiv 1409.4842, §5)."""

    def __init__(self, kernels: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(convolution_norm(C, 4, kernel) for kernel in kernels)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(torch.cat([branch(x) for branch in self.branches], dim=1))


class QueryKeyValue(nn.Module):
    """Three linear layers of one value (Transformer, arXiv 1706.03762, §3.2)."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = nn.Linear(C, C), nn.Linear(C, C), nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))


class TwinPoints(nn.Module):
    """Two 1×1 of one value, each with its own way on (CSPNet, arXiv 1911.11929, §3)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = convolution_norm(C, 4, 1), convolution_norm(C, 4, 1)
        self.inner, self.last = convolution_norm(4, 4, 3), convolution_norm(8, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.silu(self.first(x)), F.silu(self.second(x))
        result: Tensor = self.last(torch.cat([F.silu(self.inner(first)), second], 1))
        return F.silu(result)


class JoinedQueryKeyValue(QueryKeyValue):
    """The same, the three results side by side before they are used."""

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.query(x), self.key(x), self.value(x)], dim=-1)
        query, key, value = joined.chunk(3, dim=-1)
        return F.scaled_dot_product_attention(query, key, value)


BLOCKS = [
    Block("Inception, equal kernels", lambda: Inception((3, 3, 3)), images(C), ((12, C, 3, 3),)),
    Block(
        "Inception, different kernels",  # one kernel of 5x5 would cost twice as much
        lambda: Inception((1, 3, 5)),
        images(C),
        ((4, C, 1, 1), (4, C, 3, 3), (4, C, 5, 5)),
    ),
    Block("query, key and value", QueryKeyValue, tokens(C), ((C, C),) * 3),
    Block("query, key and value, concatenated", JoinedQueryKeyValue, tokens(C), ((3 * C, C),)),
    Block(
        "twin 1x1",
        TwinPoints,
        images(C),
        ((4, C, 1, 1), (4, C, 1, 1), (4, 4, 3, 3), (C, 8, 1, 1)),
    ),
]
