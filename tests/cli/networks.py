"""What `package.module:factory` may name."""

import sys
import time
from typing import Any

from torch import Tensor, nn


def small(width: int = 8, activation: str = "ReLU") -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3),
        nn.BatchNorm2d(width),
        getattr(nn, activation)(),
        nn.Conv2d(width, 4, 1),
        nn.BatchNorm2d(4),
    )


instance = small()


class Tied(nn.Module):
    """Two names for one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(6, 6) for _ in range(3))
        self.second.weight = self.first.weight
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.third(self.second(self.first(x).relu()).relu()))


def tied() -> nn.Module:
    return Tied()


class Named(nn.Module):
    """Takes one input by its place and others by name."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(6, 8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor, *, values: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(self.first(values)) + x
        return y if mask is None else y * mask


def named() -> nn.Module:
    return Named()


def normed() -> nn.Module:
    return nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6))


def nothing_to_fuse() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6)
        self.last = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 2))

    def forward(self, words: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(words) * mask[..., None]
        return {"last": self.last(x), "mean": x.mean(1)}


def words() -> nn.Module:
    return Words()


def chatty() -> nn.Module:
    print("building")
    return small()


def no_module() -> Any:
    return {"weights": 1}


def failing() -> nn.Module:
    raise KeyError("two\nlines")


def ending() -> nn.Module:
    sys.exit(0)


def interrupted() -> nn.Module:
    raise KeyboardInterrupt


def sleeping() -> nn.Module:
    print("asleep", flush=True)
    time.sleep(60)
    return small()


number = 3


def pooled() -> nn.Module:
    """Fused it has fewer multiply-adds, but more weights."""
    return nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.AvgPool2d(2), nn.ReLU())
