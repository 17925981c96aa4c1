"""Scales pass through what lets them pass, and the network stays the same."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from reparam.rules import registry
from tests.equalization.spreading import equalized, image, scaled, spread
from tests.support.errors import relative_error, run


class Written(nn.Module):
    """Three layers and what a function does between them."""

    def __init__(self, between: Callable[..., Tensor], first: nn.Module, *others: nn.Module):
        super().__init__()
        self.first = first
        self.others = nn.ModuleList(others)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.between(self, self.first(x), *self.others)


def conv(rows: int, columns: int, **options: Any) -> nn.Conv2d:
    return nn.Conv2d(rows, columns, options.pop("kernel", 3), **options)


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(conv(3, 6), *between, conv(6, 4))


CHAINS = {
    "relu": (nn.ReLU(),),
    "relu in place": (nn.ReLU(inplace=True),),
    "leaky": (nn.LeakyReLU(0.2),),
    "prelu": (nn.PReLU(6),),
    "one prelu": (nn.PReLU(),),
    "identity": (nn.Identity(),),
    "dropout": (nn.Dropout(0.3), nn.ReLU(), nn.Dropout2d()),
    "max pool": (nn.MaxPool2d(2),),
    "average pool": (nn.AvgPool2d(2, padding=1),),
    "average pool without its border": (nn.AvgPool2d(3, 1, 1, count_include_pad=False),),
    "adaptive pools": (nn.AdaptiveAvgPool2d(5), nn.AdaptiveMaxPool2d(4)),
    "zero pad": (nn.ZeroPad2d((1, 0, 2, 0)),),
    "reflection pad": (nn.ReflectionPad2d(1), nn.ReLU()),
    "nearest": (nn.Upsample(scale_factor=2),),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),),
    "shuffle": (nn.ChannelShuffle(3), nn.ReLU()),
    "depthwise": (nn.ReLU(), conv(6, 6, groups=6), nn.ReLU()),
    "depthwise with a multiplier": (nn.ReLU(), conv(6, 12, groups=6), nn.ReLU(), conv(12, 6)),
    "grouped": (nn.ReLU(), conv(6, 6, groups=3, padding=1, padding_mode="circular"), nn.ReLU()),
    "transposed": (nn.ReLU(), nn.ConvTranspose2d(6, 6, 3, 2, groups=2), nn.ReLU()),
    "without bias": (nn.ReLU(), conv(6, 6, bias=False), nn.ReLU()),
    "norms that do nothing": (nn.Sequential(nn.Identity(), nn.ReLU()),),
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("powers_of_two", [True, False])
def test_chain(name: str, powers_of_two: bool) -> None:
    model = spread(chain(*CHAINS[name]))
    equal = equalized(model, image(2, 3, 14, 14), powers_of_two=powers_of_two)
    layers = [
        at for at, part in model.named_children() if isinstance(part, nn.modules.conv._ConvNd)
    ]
    assert scaled(equal) == set(layers[:-1])


BETWEEN: dict[str, tuple[Callable[..., Tensor], int]] = {
    "functions": (lambda m, x: F.max_pool2d(F.relu(x), 2), 1),
    "methods": (lambda m, x: x.relu().clamp(min=0).abs(), 1),
    "methods in place": (lambda m, x: x.relu_(), 1),
    "torch's": (lambda m, x: torch.relu(torch.clamp_min(x, 0.0)).detach(), 1),
    "a factor": (lambda m, x: 0.5 * F.leaky_relu(-x, 0.1), 1),
    "interpolation": (lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest"), 1),
    "a pad": (lambda m, x: F.pad(x, (1, 1)), 1),
    "a crop": (lambda m, x: x[:, :, 1:], 1),
    "a permutation": (lambda m, x: x.transpose(2, 3).relu().permute(0, 1, 3, 2), 1),
    "a sum with itself": (lambda m, x: F.relu(x) + F.relu(-x), 1),
    "a larger of two": (lambda m, x: torch.maximum(F.relu(x), 0.1 * x), 1),
    "a part and its rest": (lambda m, x: torch.cat([x[:, 4:], x[:, :4].relu()], 1), 1),
    "chunks": (lambda m, x: torch.cat([x.chunk(2, 1)[1], x.split(3, 1)[0]], -3), 1),
    "halves that add up": (lambda m, x: torch.cat([x[:, :3] + x[:, 3:]] * 2, 1), 1),
    "channels in another order": (lambda m, x: x[:, [5, 1, 0, 2, 3, 4]], 1),
    "a gate": (lambda m, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)) * 0 + x, 0),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_spelling(name: str) -> None:
    between, layers = BETWEEN[name]
    model = Written(lambda m, x, last: last(between(m, x)), conv(3, 6), conv(6, 4))
    equal = equalized(spread(model), image(2, 3, 10, 10))
    assert len(scaled(equal)) == layers


def test_a_conversion_to_the_type_that_values_have() -> None:
    """Values are compared in float64, where it must not round them."""
    model = spread(Written(lambda m, x, last: last(x.float().relu()), conv(3, 6), conv(6, 4)))
    equal = reparam.equalize(model)
    assert scaled(equal) == {"first"}
    x = image(2, 3, 10, 10).float()
    assert relative_error(run(equal, (x,)), run(model, (x,))) < 1e-5


class Residual(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = conv(3, 6)
        self.blocks = nn.ModuleList(
            nn.Sequential(conv(6, 5, padding=1), nn.ReLU(), conv(5, 6, padding=1))
            for _ in range(blocks)
        )
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


def test_sums_share_their_scale() -> None:
    model = spread(Residual())
    equal = equalized(model, image(2, 3, 9, 9))
    assert scaled(equal) == {"stem", *(f"blocks.{at}.{n}" for at in range(2) for n in (0, 2))}
    factors = [
        (new.bias / old.bias).detach()
        for new, old in (
            (equal.stem, model.stem),
            (equal.blocks[0][2], model.blocks[0][2]),
            (equal.blocks[1][2], model.blocks[1][2]),
        )
    ]
    assert torch.allclose(factors[0], factors[1], rtol=1e-12)
    assert torch.allclose(factors[0], factors[2], rtol=1e-12)


class SideBySide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = conv(3, 4), conv(3, 2), conv(9, 4)

    def forward(self, x: Tensor) -> Tensor:
        branches = [F.relu(self.one(x)), x[:, :, 1:-1, 1:-1], self.two(x)]
        return self.last(torch.cat(branches, dim=1))


def test_side_by_side_with_the_input() -> None:
    model, x = spread(SideBySide()), image(2, 3, 9, 9)
    # Nobody knows how many channels the input has: an example tells of itself alone.
    assert not scaled(equalized(model, x))
    assert not scaled(equalized(model, x, example_inputs=x))


class Gated(nn.Module):
    """Squeeze and excitation: the gate keeps its scale, what it multiplies does not have to."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down, self.up, self.last = conv(3, 6), conv(6, 2), conv(2, 6), conv(6, 4)
        self.down, self.up = nn.Conv2d(6, 2, 1), nn.Conv2d(2, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return self.last(x * torch.sigmoid(gate))


def test_gate() -> None:
    equal = equalized(spread(Gated()), image(2, 3, 9, 9))
    assert scaled(equal) == {"first", "down"}


FLATTENED: dict[str, Callable[[Tensor], Tensor]] = {
    "flatten": lambda x: torch.flatten(x, 1),
    "method": lambda x: F.relu(x).flatten(1),
    "view": lambda x: x.view(x.size(0), -1).relu(),
    "reshape": lambda x: x.reshape(x.shape[0], -1),
    "pooled": lambda x: F.adaptive_avg_pool2d(x, 1).flatten(1),
}


@pytest.mark.parametrize("name", FLATTENED)
def test_linear_behind_positions(name: str) -> None:
    columns = 6 if name == "pooled" else 6 * 3 * 4
    flat = FLATTENED[name]
    model = Written(lambda m, x, fc: fc(flat(x)), conv(3, 6), nn.Linear(columns, 4))
    equal = equalized(spread(model), image(2, 3, 5, 6))
    assert scaled(equal) == {"first"}


def test_positions_known_from_inputs_only() -> None:
    model = spread(
        Written(lambda m, x, fc: fc(x.view(-1, 6 * 3 * 4)), conv(3, 6), nn.Linear(72, 4))
    )
    x = image(2, 3, 5, 6)
    assert not scaled(equalized(model, x))
    assert scaled(equalized(model, x, example_inputs=x)) == {"first"}


def test_channels_last() -> None:
    def between(m: nn.Module, x: Tensor, mlp: nn.Module, last: nn.Module) -> Tensor:
        return last(F.relu(mlp(F.relu(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2))

    model = Written(between, conv(3, 6), nn.Linear(6, 5), conv(5, 4))
    assert scaled(equalized(spread(model), image(2, 3, 9, 9))) == {"first", "others.0"}


def test_linear_layers_and_sequences() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 6), nn.PReLU(), nn.Linear(6, 2))
    assert scaled(equalized(spread(model), image(3, 4, 5))) == {"0", "2"}


class Twice(nn.Module):
    """One layer that runs twice: its rows and columns share their scales over both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.inner(F.relu(self.first(x))))
        return self.last(F.relu(self.inner(x)))


def test_a_layer_called_twice() -> None:
    assert scaled(equalized(spread(Twice()), image(3, 5))) == {"first", "inner"}


class Functional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = (nn.Parameter(torch.randn(6, n, 3, 3)) for n in (3, 2))
        self.bias, self.three = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.one, bias=self.bias))
        x = torch.conv2d(x, self.two, None, groups=3).relu()
        return F.linear(x.flatten(2).mean(2), weight=self.three)


def test_functional_layers() -> None:
    assert len(scaled_rows := equalized(spread(Functional()), image(2, 3, 9, 9)).reparam_report
               .equalized) == 3  # fmt: skip
    assert [row.channels[0] > 0 for row in scaled_rows] == [True, True, False]


class Scaled(nn.Module):
    """A layer that only its user's rule explains, with one factor per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,c->ncwh", x, self.gamma).transpose(2, 3)


def test_a_scale_crosses_a_layer_with_a_rule_of_the_users() -> None:
    model = spread(chain(nn.ReLU(), Scaled(), nn.ReLU()))
    assert not scaled(equalized(model, image(2, 3, 8, 8)))
    before = registry.registered_rules()
    reparam.register_rule(Scaled)(lambda module, x: x.scale(module.gamma))
    try:
        equal = equalized(model, image(2, 3, 8, 8))
    finally:
        registry.forget_rules_but(before)
    assert scaled(equal) == {"0"}


def test_a_constant_of_a_users_rule_stops_a_scale() -> None:
    before = registry.registered_rules()
    reparam.register_rule(Scaled)(lambda module, x: x.scale(module.gamma).shift(1.0))
    try:
        equal = reparam.equalize(spread(chain(nn.ReLU(), Scaled())), verify=False)
    finally:
        registry.forget_rules_but(before)
    assert not scaled(equal)
