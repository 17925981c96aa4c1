"""Families of networks of any size, by which the planner's work is to grow in proportion."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.randomise import randomise_batch_norm

CHANNELS = 2


def conv(kernel: int = 1, inner: int = CHANNELS) -> nn.Module:
    return nn.Conv2d(inner, CHANNELS, kernel, padding=kernel // 2, bias=False)


def norm(channels: int = CHANNELS) -> nn.Module:
    return nn.BatchNorm2d(channels)


class Layers(nn.Module):
    """Layers of some kinds, each with a forward that uses all of them in a loop."""

    def __init__(self, **layers: list[nn.Module]) -> None:
        super().__init__()
        for name, modules in layers.items():
            setattr(self, name, nn.ModuleList(modules))


class Chain(Layers):
    """Convolution, batch norm, ReLU."""

    def __init__(self, count: int) -> None:
        super().__init__(
            convs=[conv(3) for _ in range(count)], norms=[norm() for _ in range(count)]
        )

    def forward(self, x: Any) -> Any:
        for layer, scale in zip(self.convs, self.norms, strict=True):
            x = scale(layer(x)).relu()
        return x


class Branches(Layers):
    """A sum of as many branches."""

    def __init__(self, count: int) -> None:
        super().__init__(
            convs=[conv(3) for _ in range(count)], norms=[norm() for _ in range(count)]
        )

    def forward(self, x: Any) -> Any:
        pairs = zip(self.convs, self.norms, strict=True)
        return sum(scale(layer(x)) for layer, scale in pairs)


class Diamonds(Layers):
    """Two branches that meet, and again, with nothing between."""

    def __init__(self, count: int) -> None:
        super().__init__(left=[conv() for _ in range(count)], right=[conv() for _ in range(count)])

    def forward(self, x: Any) -> Any:
        for left, right in zip(self.left, self.right, strict=True):
            x = left(x) + right(x)
        return x


class ReluDiamonds(Diamonds):
    """The same, each with a ReLU."""

    def forward(self, x: Any) -> Any:
        for left, right in zip(self.left, self.right, strict=True):
            x = (left(x) + right(x)).relu()
        return x


class DenseSums(nn.Module):
    """Each value is the sum of all before it, with a convolution at the ends."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.first, self.last = conv(), conv()

    def forward(self, x: Any) -> Any:
        values = [self.first(x)]
        for _ in range(self.count):
            values.append(sum(values))
        return self.last(values[-1])


class Fibonacci(nn.Module):
    """``a, b = b, a + b``."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.first, self.second, self.last = conv(), conv(), conv()

    def forward(self, x: Any) -> Any:
        a, b = self.first(x), self.second(x)
        for _ in range(self.count):
            a, b = b, a + b
        return self.last(b)


class DenseNet(Layers):
    """Each layer reads the last eight values side by side."""

    def __init__(self, count: int) -> None:
        read = [min(index + 1, 8) * CHANNELS for index in range(count)]
        super().__init__(norms=[norm(n) for n in read], convs=[conv(3, n) for n in read])

    def forward(self, x: Any) -> Any:
        values = [x]
        for scale, layer in zip(self.norms, self.convs, strict=True):
            values.append(layer(scale(torch.cat(values[-8:], 1)).relu()))
        return values[-1]


class Factors(nn.Module):
    """Scalar factors, one after another."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count, self.conv = count, conv()

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        for index in range(self.count):
            x = x * (1.01 if index % 2 else 0.99)
        return x


class InPlace(Factors):
    """Operators that write to their operand, one after another."""

    def forward(self, x: Any) -> Any:
        x = self.conv(x)
        for index in range(self.count):
            x = x.mul_(1.01) if index % 2 else x.add_(0.5)
        return x


class Repeated(nn.Module):
    """A block that is called many times, with a skip around each call."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count
        self.block = nn.Sequential(conv(3), norm(), nn.ReLU(), conv(3), norm())

    def forward(self, x: Any) -> Any:
        for _ in range(self.count):
            x = self.block(x) + x
        return x


def untraced(count: int) -> nn.Module:
    """As many classes whose code cannot be traced, each with a pair inside."""
    made = []
    for index in range(count):
        body = nn.Sequential(conv(3), norm())

        def forward(self: Any, x: Tensor) -> Tensor:
            if float(x.sum()) > 1e30:
                return x
            result: Tensor = self.body(x)
            return result

        kind = type(f"Untraced{index}", (nn.Module,), {"forward": forward})
        module = kind()
        module.body = body
        made.append(module)
    return nn.Sequential(*made)


class Tree(Layers):
    """A binary tree of sums, each scaled by a batch norm."""

    def __init__(self, count: int) -> None:
        super().__init__(
            convs=[conv() for _ in range(count)], norms=[norm() for _ in range(count - 1)]
        )

    def forward(self, x: Any) -> Any:
        values = [layer(x) for layer in self.convs]
        for scale in self.norms:
            first, second, *values = values
            values.append(scale(first + second))
        return values[0]


class TreeOfInputs(Tree):
    """The same over values that stay."""

    def forward(self, x: Any) -> Any:
        values = []
        for layer in self.convs:
            x = layer(x).relu()
            values.append(x)
        for scale in self.norms:
            first, second, *values = values
            values.append(scale(first + second))
        return values[0]


def nested(count: int) -> nn.Module:
    """Modules within modules, a pair at each level."""
    module: nn.Module = nn.Identity()
    for _ in range(count):
        module = nn.Sequential(conv(3), norm(), nn.ReLU(), module)
    return module


class Eager(nn.Module):
    """A module that cannot be traced, around another one."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.pair, self.inner = nn.Sequential(conv(3), norm()), inner

    def forward(self, x: Tensor) -> Tensor:
        if float(x.sum()) > 1e30:
            return x
        result: Tensor = self.inner(self.pair(x).relu())
        return result


def eager(count: int) -> nn.Module:
    """Modules that cannot be traced within each other."""
    module: nn.Module = nn.Identity()
    for _ in range(count):
        module = Eager(module)
    return module


class Concatenations(Layers):
    """A concatenation of a concatenation, and so on."""

    def __init__(self, count: int) -> None:
        super().__init__(convs=[conv() for _ in range(count)], last=[norm((count + 1) * CHANNELS)])

    def forward(self, x: Any) -> Any:
        joined = x
        for layer in self.convs:
            joined = torch.cat([joined, layer(x)], 1)
        return self.last[0](joined)


class SmallConcatenations(Layers):
    """Concatenations of concatenations, of which a convolution reads each."""

    def __init__(self, count: int) -> None:
        super().__init__(
            convs=[conv() for _ in range(count)],
            joins=[conv(1, 4 * CHANNELS) for _ in range(count)],
        )

    def forward(self, x: Any) -> Any:
        for layer, join in zip(self.convs, self.joins, strict=True):
            both = torch.cat([x, layer(x)], 1)
            x = join(torch.cat([both, both], 1)).relu()
        return x


FAMILIES: dict[str, Callable[[int], nn.Module]] = {
    "chain of conv, norm, ReLU": Chain,
    "sum of branches": Branches,
    "diamonds": Diamonds,
    "diamonds with a ReLU": ReluDiamonds,
    "dense sums": DenseSums,
    "a, b = b, a + b": Fibonacci,
    "DenseNet": DenseNet,
    "in-place chain": InPlace,
    "chain of scalar factors": Factors,
    "one block called many times": Repeated,
    "untraced classes": untraced,
    "tree of scaled sums": Tree,
    "tree of scaled sums of values": TreeOfInputs,
    "nested modules": nested,
    "deep eager nesting": eager,
    "concatenations of concatenations": Concatenations,
    "joined concatenations": SmallConcatenations,
}


def network(family: str, count: int) -> nn.Module:
    """A network of a family, in eval mode, with random statistics."""
    torch.manual_seed(0)
    return randomise_batch_norm(FAMILIES[family](count).eval(), 0)
