"""What reads a value, or shares a weight, keeps scales from it; the report says why."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import reparam
from tests.equalization.spreading import equalized, image, reasons, scaled, spread
from tests.support.errors import relative_error, run


class Chain(nn.Module):
    """Two convolutions and a ReLU; subclasses spoil it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(F.relu(self.first(x))))

    def between(self, x: Tensor) -> Tensor:
        return x


def chain(*between: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 4, 3))


READERS: dict[str, tuple[nn.Module, str]] = {
    "sigmoid": (nn.Sigmoid(), "Sigmoid"),
    "silu": (nn.SiLU(), "SiLU"),
    "hard swish": (nn.Hardswish(), "Hardswish"),
    "relu6": (nn.ReLU6(), "ReLU6"),
    "softmax": (nn.Softmax(1), "Softmax"),
    "group norm": (nn.GroupNorm(2, 6), "GroupNorm"),
    "batch norm": (nn.BatchNorm2d(6), "fuse the model first"),
    "padding with ones": (nn.ConstantPad2d(1, 1.0), "ConstantPad2d"),
}


@pytest.mark.parametrize("name", READERS)
def test_reader(name: str) -> None:
    between, reason = READERS[name]
    equal = equalized(spread(chain(between)), image(2, 3, 8, 8))
    assert not scaled(equal)
    assert reason in reasons(equal)["0"]


BETWEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a constant": lambda m, x: x + 1,
    "a parameter": lambda m, x: x + m.first.bias[:, None, None],
    "a square": lambda m, x: x * x,
    "its reciprocal": lambda m, x: 1 / (1 + x),
    "a clamp": lambda m, x: x.clamp(0, 1),
    "a quotient that is rounded": lambda m, x: torch.div(x, 0.5, rounding_mode="floor"),
    "a quotient of two values, rounded": lambda m, x: x.div(x.sigmoid(), rounding_mode="trunc"),
    "a quotient": lambda m, x: torch.ones_like(x) / (x + 1),
    "a view of channels and positions": lambda m, x: x.reshape(x.shape[0], 6, -1).flip(1)
    .reshape(x.shape),
    "a write into another value": lambda m, x: torch.zeros_like(x).copy_(x),
    "a gate that is written to": lambda m, x: torch.sigmoid(x).mul_(x),
    "indices": lambda m, x: F.max_pool2d(x, 2, return_indices=True)[0],
    "indices that nobody reads": lambda m, x: torch._C._nn.adaptive_max_pool2d(x, (4, 4))[0],
    "a softmax over positions": lambda m, x: x.flatten(2).softmax(-1).reshape(x.shape),
    "a pool over channels": lambda m, x: F.avg_pool2d(x.transpose(1, 2), 3, 1, 1).transpose(1, 2),
    "a sum over channels": lambda m, x: x - x.mean(1, keepdim=True),
    "a comparison": lambda m, x: torch.where(x > 0.5, x, 0 * x),
    "a list": lambda m, x: torch.stack([x, x.sigmoid()]).sum(0),
}  # fmt: skip


@pytest.mark.parametrize("name", BETWEEN)
def test_reading_operator(name: str) -> None:
    model = spread(Chain())
    model.__class__ = type("Between", (Chain,), {"between": BETWEEN[name]})
    equal = reparam.equalize(model.double())
    x = image(2, 3, 14, 14)
    assert relative_error(run(equal, (x,)), run(model, (x,))) <= 1e-12
    assert not scaled(equal)
    assert reasons(equal).keys() == {"first", "last"}


class Returned(Chain):
    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.first(x))
        return {"features": x, "result": self.last(x)}


class Optional(Chain):
    """With another argument the value in the middle is returned."""

    def forward(self, x: Tensor, features: bool = False) -> Any:
        x = F.relu(self.first(x))
        return x if features else self.last(x)


class Features(Chain):
    """A public method returns the value in the middle."""

    def features(self, x: Tensor) -> Tensor:
        return F.relu(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.features(x))


class Remembering(Chain):
    def forward(self, x: Tensor) -> Tensor:
        self.seen = F.relu(self.first(x))
        return self.last(self.seen)


class Counting(Chain):
    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class ReadsWeights(Chain):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.relu(self.first(x))) * self.first.weight.abs().mean()


class Untraceable(Chain):
    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        while x.sum() > 1e9:
            x = x / 2
        return self.last(F.relu(x))


class Tied(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(6, 6, 3)
        self.last.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(torch.cat([x, -x], 1))


class BufferOnly(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kernel", torch.randn(6, 6, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.relu(self.first(x)), self.kernel)


class SharesMemory(Chain):
    def __init__(self) -> None:
        super().__init__()
        self.double()  # before, since a conversion makes new memory
        self.views = [self.first.weight.data[0]]


CLASSES: dict[type[Chain], str] = {
    Returned: "returned",
    Optional: "takes options",
    Features: "features",
    Remembering: "kept in an attribute",
    Counting: "changes its own attributes",
    ReadsWeights: "also read by other code",
    Untraceable: "called by code that cannot be traced",
    Tied: "share memory",
    BufferOnly: "no parameter",
    SharesMemory: "share memory",
}


@pytest.mark.parametrize("kind", CLASSES)
def test_class(kind: type[Chain]) -> None:
    model = spread(kind()).double()
    equal = reparam.equalize(model)
    x = image(2, 3, 8, 8)
    for one, other in ((equal, model), (model, equal)):
        assert relative_error(run(one, (x,)), run(other, (x,))) <= 1e-12
    assert not scaled(equal)
    assert any(CLASSES[kind] in reason for reason in reasons(equal).values())
    if isinstance(model, Optional):
        assert torch.equal(equal(x, features=True), model(x, features=True))
    if isinstance(model, Features):
        assert torch.equal(equal.features(x), model.features(x))
    if isinstance(model, Remembering):
        assert torch.equal(equal.seen, model.seen)


def test_hooks() -> None:
    seen: list[Tensor] = []
    for hooked in ("0", "1"):
        model = spread(chain(nn.ReLU()))
        model.get_submodule(hooked).register_forward_hook(lambda m, a, y: seen.append(y))
        model.double()
        equal = reparam.equalize(model)
        assert not scaled(equal)
        x = image(2, 3, 8, 8)
        model(x), equal(x)
        assert torch.equal(seen[-1], seen[-2])
    assert len(seen) == 4


def test_a_pruned_layer() -> None:
    model = chain(nn.ReLU())
    prune.l1_unstructured(model[0], "weight", 0.4)  # a hook computes the weight
    model[0].weight = model[0].weight.detach()  # so that it can be copied
    assert not scaled(equalized(spread(model), image(2, 3, 8, 8)))


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.orthogonal])
def test_a_parametrized_layer(wrap: Any) -> None:
    model = spread(chain(nn.ReLU()))
    wrap(model[0])
    model.eval()
    assert not scaled(equalized(model, image(2, 3, 8, 8)))


class TwoTraces(nn.Module):
    """Two parts that are traced apart call one layer."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(6, 6)
        self.one = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), shared)
        self.two = nn.Sequential(shared, nn.ReLU(), nn.Linear(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.two(x) if x.sum() > 0 else x + self.two(x)


def test_a_layer_in_two_parts() -> None:
    equal = equalized(spread(TwoTraces()), image(4, 6))
    assert not scaled(equal)
    assert any("two parts" in reason for reason in reasons(equal).values())


class Eager(nn.Module):
    """Whatever its code does, what its parts hold inside may be scaled."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(
            nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts:
            if x.sum() > 0:
                x = part(x)
        return x


def test_inside_of_untraceable_code() -> None:
    equal = equalized(spread(Eager()), image(4, 6))
    assert scaled(equal) == {"parts.0.0", "parts.1.0", "parts.2.0"}


class Affine(nn.Module):
    """A layer that only its user's rule explains."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(6, 6))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ij,nj->ni", self.inner, x)


def test_a_layer_with_a_rule_of_the_users() -> None:
    from reparam.rules import registry

    before = registry.registered_rules()
    reparam.register_rule(Affine)(lambda module, x: x.convolve(module.inner))
    try:
        model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), Affine(), nn.ReLU(), nn.Linear(6, 2))
        equal = equalized(spread(model), image(4, 6))
    finally:
        registry.forget_rules_but(before)
    assert not scaled(equal)
