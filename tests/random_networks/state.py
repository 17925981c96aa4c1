"""Modules that are no function of their input: they draw, count, remember, observe or share."""

import random
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize, MinMaxObserver, MovingAverageMinMaxObserver

__all__ = [
    "AdaptiveNorm",
    "Alternating",
    "CachedBias",
    "Countdown",
    "Cycled",
    "Difference",
    "DrawnScale",
    "DropConnect",
    "KeepsLast",
    "NumpyScale",
    "Observed",
    "PositionTable",
    "Quantised",
    "QuantisedKernel",
    "Rotating",
    "RunningMean",
    "SeededNoise",
    "Shared",
    "StochasticDepth",
    "Variational",
]


class Remembering(nn.Module):
    """Keeps something from one call to the next."""

    def memory(self) -> Any:
        """What can be seen of it from outside."""
        return [buffer.clone() for buffer in self.buffers(recurse=False)]


# draws of random numbers


class DropConnect(nn.Conv2d):
    """Drops elements of its kernel, in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        weight = F.dropout(self.weight, 0.3, True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Variational(nn.Conv2d):
    """Draws its kernel around the mean."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight + 0.2 * torch.empty_like(self.weight).normal_()
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class DrawnScale(nn.Module):
    """A factor that is drawn as a number or as a tensor."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "tensor":
            return x * (1 + torch.rand((), dtype=x.dtype))
        if self.kind == "numpy":
            return x * float(1 + np.random.rand())
        return x * (1 + random.random())


class SeededNoise(nn.Module):
    """Noise of a generator of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape[1:], generator=self.generator, dtype=x.dtype)


class NumpyScale(nn.Module):
    """A factor of a generator of numpy's or of Python's."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        super().__init__()
        self.m = module
        makers = {"state": np.random.RandomState, "generator": np.random.default_rng}
        self.generator: Any = makers.get(kind, random.Random)(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(x) * (0.5 + float(self.generator.random()))


class StochasticDepth(nn.Module):
    """Leaves a branch out as a coin decides, in evaluation mode too."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        return x if torch.rand(()) < 0.5 else x + self.m(x)


# what changes at each call


class Cycle:
    """An iterator over numbers again and again, which can be copied."""

    def __init__(self, *numbers: float) -> None:
        self.numbers, self.place = numbers, -1

    def __iter__(self) -> "Cycle":
        return self

    def __next__(self) -> float:
        self.place = (self.place + 1) % len(self.numbers)
        return self.numbers[self.place]


class Cycled(nn.Module):
    """A factor that an iterator gives: one of Python's, or a class."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        super().__init__()
        self.m = module
        numbers = 0.5, 2.0, -1.0
        self.numbers = Cycle(*numbers) if kind == "class" else iter(numbers * 50)

    def forward(self, x: Tensor) -> Tensor:
        return self.m(x) + x.mean() * next(self.numbers)


class Rotating(nn.Module):
    """Takes its factors from a queue, in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = deque([0.5, 2.0, -1.0])

    def forward(self, x: Tensor) -> Tensor:
        self.factors.rotate(1)
        return x * self.factors[0]


class Countdown(Remembering):
    """Weakens with each call that it counts, in an attribute, an array or a list."""

    def __init__(self, module: nn.Module, kind: str) -> None:
        super().__init__()
        self.m = module
        self.calls: Any = {"array": np.ones(1), "list": [1]}.get(kind, 1)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.calls, int):
            self.calls += 1
            return self.m(x) / self.calls
        self.calls[0] += 1
        return self.m(x) / int(self.calls[0])

    def memory(self) -> Any:
        return float(self.calls if isinstance(self.calls, int) else self.calls[0])


def alternating(*numbers: float) -> tuple[Callable[[], float], Callable[[int], int]]:
    """A function that gives these numbers in turn, and one that sets and tells its place."""
    place = 0

    def following() -> float:
        nonlocal place
        place += 1
        return numbers[place % len(numbers)]

    def moved_to(new: int) -> int:
        nonlocal place
        old, place = place, new
        return old

    return following, moved_to


class Alternating(nn.Module):
    """A factor of a closure, which all copies of the module share."""

    def __init__(self) -> None:
        super().__init__()
        self.following, self.moved_to = alternating(0.5, 2.0, -1.0)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.following()


# what an earlier call left


class CachedBias(nn.Module):
    """Computes a bias once per device and type in evaluation mode, and keeps it."""

    def __init__(self, channels: int, axes: int) -> None:
        super().__init__()
        self.biases = nn.Parameter(torch.randn(channels))
        self.register_buffer("order", torch.arange(channels).flip(0), persistent=False)
        self.axes = axes
        self.cache: dict[str, Tensor] = {}

    def bias(self, device: torch.device) -> Tensor:
        if self.training:
            return self.biases[self.order]
        key = f"{device}/{self.biases.dtype}"
        if key not in self.cache:
            self.cache[key] = self.biases[self.order]
        return self.cache[key]

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias(x.device).view(-1, *[1] * self.axes)


class KeepsLast(Remembering):
    """Keeps what it gave, for whoever asks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module
        self.last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.last = self.m(x)
        return self.last

    def memory(self) -> Any:
        return self.last


class Difference(nn.Module):
    """Adds what it got before, where that has the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        before, self.before = self.before, x.detach().clone()
        if before is None or before.shape != x.shape or before.dtype != x.dtype:
            return x
        return x + 0.5 * before


class RunningMean(Remembering):
    """Centres by a mean that it updates in place at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.mean: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.detach().mean(), alpha=0.1)
        return x - self.mean


class AdaptiveNorm(nn.BatchNorm2d, Remembering):
    """Batch norm by its batch in evaluation mode too, whose statistics move."""

    def forward(self, x: Tensor) -> Tensor:
        statistics = self.running_mean, self.running_var
        return F.batch_norm(x, *statistics, self.weight, self.bias, True, 0.1, self.eps)


# observers of quantisation, tables that are renormed, parts that copies share


class Observed(Remembering):
    """Writes down the range of what a module gives."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module
        self.observer = MinMaxObserver()

    def forward(self, x: Tensor) -> Tensor:
        return self.observer(self.m(x))

    def memory(self) -> Any:
        return [self.observer.min_val.clone(), self.observer.max_val.clone()]


class Quantised(Remembering):
    """Rounds what a module gives to 255 levels, whose range is observed or fixed."""

    def __init__(self, module: nn.Module, observing: bool) -> None:
        super().__init__()
        self.m = module
        self.quantise = FakeQuantize(MovingAverageMinMaxObserver, quant_min=0, quant_max=255)
        if not observing:
            self.quantise.disable_observer()

    def forward(self, x: Tensor) -> Tensor:
        return self.quantise(self.m(x))

    def memory(self) -> Any:
        return [buffer.clone() for buffer in self.quantise.buffers()]


class QuantisedKernel(nn.Conv2d, Remembering):
    """Rounds its kernel to 256 levels, whose range is observed or fixed."""

    def __init__(self, *args: Any, observing: bool, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.quantise = FakeQuantize(
            MovingAverageMinMaxObserver,
            quant_min=-128,
            quant_max=127,
            dtype=torch.qint8,
            qscheme=torch.per_tensor_symmetric,
        )
        self.quantise(self.weight)
        if not observing:
            self.quantise.disable_observer()

    def forward(self, x: Tensor) -> Tensor:
        weight = self.quantise(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)

    def memory(self) -> Any:
        return [buffer.clone() for buffer in self.quantise.buffers()]


class PositionTable(Remembering):
    """Adds a row per token of a table that every look-up renorms in place."""

    def __init__(self, rows: int, features: int) -> None:
        super().__init__()
        self.table = nn.Embedding(rows, features, max_norm=0.8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table(torch.arange(x.shape[1], device=x.device))

    def memory(self) -> Any:
        return self.table.weight.detach().clone()


class Shared(nn.Sequential):
    """Parts that every copy of the model shares: a frozen backbone."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "Shared":
        return self
