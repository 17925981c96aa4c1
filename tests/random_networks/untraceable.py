"""Modules that a graph pass stumbles over: control flow, containers, state, hooks, own forwards."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

__all__ = [
    "Checkpointed",
    "Counted",
    "Doubled",
    "EachOf",
    "EarlyExit",
    "EvenWidth",
    "FromMapping",
    "GridShift",
    "LimitedWindows",
    "Masked",
    "Noise",
    "Pair",
    "Recorder",
    "SignDependent",
    "WithKeywords",
    "WithoutGradient",
    "doubled_output",
    "halved_input",
    "with_own_forward",
]


class Pair(NamedTuple):
    """An output of several values with names."""

    first: Tensor
    second: Tensor


class EvenWidth(nn.Module):
    """Control flow on a shape."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 2:
            x = torch.nn.functional.pad(x, (0, 1))
        return x


class SignDependent(nn.Module):
    """Control flow on data."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            return self.m(x)
        return self.m(-x)


class EarlyExit(nn.Module):
    """A loop over layers that the data ends."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
            if x.abs().mean() > 0.8:
                break
        return x


class EachOf(nn.Module):
    """Takes a list, and gives one: a head per scale."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.heads = nn.ModuleList(modules)

    def forward(self, values: list[Tensor]) -> list[Tensor]:
        for index, head in enumerate(self.heads):
            values[index] = head(values[index])
        return values


class FromMapping(nn.Module):
    """Takes a dictionary, and gives one with a new entry."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, values: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**values, "out": self.m(values["x"])}


class Masked(nn.Module):
    """An optional second input, usually left out."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor, mask: Tensor | None = None, scale: float = 1.0) -> Tensor:
        y = self.m(x)
        if mask is not None:
            y = y * mask
        return y * scale if scale != 1.0 else y


class WithKeywords(nn.Module):
    """Arguments of any name, some of which it passes on."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor, *rest: Tensor, **settings: Any) -> Tensor:
        y = self.m(x)
        for other in rest:
            y = y + other.mean()
        return y * settings.get("scale", 1)


class LimitedWindows(nn.Module):
    """Shape arithmetic on Python numbers: a crop to a multiple of the window."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, x: Tensor) -> Tensor:
        height = int(x.shape[-2]) // self.window * self.window or self.window
        return x[..., :height, :]


class GridShift(nn.Module):
    """Adds a grid that is computed once for each size and kept."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: tuple[int, ...] | None = None
        self.grid: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.grid is None or self.sizes != tuple(x.shape[1:]):
            self.sizes = tuple(x.shape[1:])
            self.grid = torch.linspace(-1, 1, x[0].numel(), dtype=x.dtype).reshape(self.sizes)
        return x + self.grid


class Counted(nn.Module):
    """Counts its calls, in an attribute and in a buffer."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module
        self.calls = 0
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.steps += 1
        return self.m(x)


class Noise(nn.Module):
    """Draws random numbers in evaluation mode too."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn_like(x)


class WithoutGradient(nn.Module):
    """Computes without gradients whatever the caller says."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = self.m(x)
        return y.detach()


class Checkpointed(nn.Module):
    """Computes twice in training to save memory."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.m = module

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = checkpoint(self.m, x, use_reentrant=False)
        return y


class Doubled(nn.Conv2d):
    """A subclass that does more than its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Recorder:
    """A forward hook that keeps what it saw."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def __call__(self, module: nn.Module, args: Sequence[Any], output: Any) -> None:
        self.seen.append(output.clone() if isinstance(output, Tensor) else output)


def doubled_output(module: nn.Module, args: Sequence[Any], output: Any) -> Any:
    """A forward hook that changes the value."""
    return 2 * output


def halved_input(module: nn.Module, args: Sequence[Any]) -> Any:
    """A forward pre-hook that changes the value."""
    return (0.5 * args[0], *args[1:])


def with_own_forward(module: nn.Module) -> nn.Module:
    """The module with another forward, set on the instance."""
    module.forward = partial(_negated, module)
    return module


def _negated(module: nn.Module, x: Tensor) -> Tensor:
    return -type(module).forward(module, x)
