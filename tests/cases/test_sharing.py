"""Modules and weights that several calls use.

The plain cases (a convolution called twice, a weight that forward reads, a shared batch norm, tied
weights, one module under two names) are in `tests/refusals/sharing.py`; here are their neighbours.
The source of all: pytorch/pytorch#104593 and #197539, measured there as differences of 3.2 to 6.9.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import answers, assert_exact
from tests.refusals.checking import Network, differs, fold_in_place, images, ready
from tests.support.counting import count_operators
from tests.support.errors import FLOAT64_BOUND, relative_error
from tests.support.randomise import randomise_batch_norm

C = 4


def same(kernel: int = 3, **options: Any) -> nn.Module:
    return nn.Conv2d(C, C, kernel, padding=kernel // 2, **options)


def network(forward: Callable[..., Any], **more: Any) -> nn.Module:
    return ready(Network(forward, conv=same(), norm=nn.BatchNorm2d(C), **more))


USES: dict[str, Callable[[Any, Tensor], Any]] = {
    "called twice in a row": lambda m, x: m.norm(m.conv(m.conv(x))),
    "pair called twice": lambda m, x: m.norm(m.conv(m.norm(m.conv(x)).relu())),
    "called twice on one value": lambda m, x: m.norm(m.conv(x)) * 2 + m.norm(m.conv(x)),
    "one call normalised": lambda m, x: m.conv(m.norm(m.conv(x)).relu()),
    "called in a loop": lambda m, x: [x := m.norm(m.conv(x)).relu() for _ in range(3)][-1],
    "norm without the convolution": lambda m, x: m.norm(m.conv(x)) + m.norm(x).relu(),
    "weight added": lambda m, x: m.norm(m.conv(x)) + m.conv.weight.mean(),
    "bias added": lambda m, x: m.norm(m.conv(x)) + m.conv.bias[:, None, None].exp(),
    "weight transposed": lambda m, x: F.conv_transpose2d(
        m.norm(m.conv(x)).relu(), m.conv.weight, padding=1
    ),
    "weight of the first tap": lambda m, x: m.norm(m.conv(x)).relu()
    + F.conv2d(x, m.conv.weight[:, :, 1:2, 1:2]),
    "statistics read": lambda m, x: m.norm(m.conv(x)) - m.norm.running_mean[:, None, None].sin(),
    "shape of the weight": lambda m, x: m.norm(m.conv(x)) / m.conv.weight.shape[0],
    "norm of the weights": lambda m, x: (
        m.norm(m.conv(x)),
        sum(parameter.square().sum() for parameter in m.parameters()),
    ),
    "state dictionary": lambda m, x: (m.norm(m.conv(x)), m.state_dict()["conv.weight"] * 2),
}  # fmt: skip


@pytest.mark.parametrize("use", USES)
def test_a_module_that_is_used_in_several_ways(use: str) -> None:
    """pytorch/pytorch#104593: a convolution called twice, or whose weight somebody reads."""
    assert_exact(network(USES[use]), images())


def test_a_block_called_twice_around_another() -> None:
    """The same block before and after another one, as in recurrent networks."""
    block = nn.Sequential(same(), nn.BatchNorm2d(C), nn.ReLU())
    other = nn.Sequential(same(1), nn.BatchNorm2d(C))
    assert_exact(ready(nn.Sequential(block, other, block)), images())


def test_one_block_under_two_names() -> None:
    """pytorch/pytorch#197539: both names go on naming what runs."""
    model = network(lambda self, x: self.stem(x) + self.alias(x.relu()))
    model.stem = nn.Sequential(model.conv, model.norm)
    model.alias = model.stem
    fused = assert_exact(model.eval(), images())
    assert fused.stem is fused.alias


def test_one_convolution_in_two_blocks() -> None:
    """pytorch/pytorch#104593: one convolution, a batch norm for each task."""
    conv = same()
    first = nn.Sequential(conv, nn.BatchNorm2d(C))
    second = nn.Sequential(conv, nn.BatchNorm2d(C))
    model = ready(
        Network(lambda self, x: (self.first(x), self.second(x.relu())), first=first, second=second)
    )
    assert_exact(model, images())


def test_a_convolution_that_another_method_uses_alone() -> None:
    """The convolution stays for whoever calls the other method."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = same(), nn.BatchNorm2d(C)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x))

        def raw(self, x: Tensor) -> Tensor:
            return self.conv(x)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = Encoder()

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.encoder(x), self.encoder.raw(x.relu())

    model, x = ready(Both()), images()
    fused = assert_exact(model, x)
    with torch.no_grad():
        assert relative_error(fused.encoder.raw(x), model.encoder.raw(x)) <= 1e-9
    alone, x = ready(Encoder()), images()
    fused = assert_exact(alone, x)
    with torch.no_grad():
        assert relative_error(fused.raw(x), alone.raw(x)) <= 1e-9


def test_modules_in_a_plain_list_are_the_same_modules() -> None:
    """A list that is no ModuleList holds the modules a second time, unregistered."""
    model = network(lambda self, x: self.layers[1](self.layers[0](x)).relu() + self.conv(x))
    model.layers = [model.conv, model.norm]
    assert_exact(model, images())


def test_a_module_that_is_not_registered() -> None:
    """Behind a list nobody finds it, but forward calls it."""
    hidden = [same().double().eval()]
    model = network(lambda self, x: self.norm(self.hidden[0](x)))
    model.hidden = hidden
    assert_exact(model, images())


def test_a_child_that_knows_its_parent() -> None:
    """A reference upwards makes a cycle, which is neither followed nor lost."""

    class Child(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = same()

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(x) + self.parent[0].conv(x)

    model = network(lambda self, x: self.norm(self.child(x)))
    model.child = Child().double().eval()
    model.child.parent = [model]
    fused = assert_exact(model, images())
    assert fused.child.parent[0] is fused


def test_tied_weights_stay_tied() -> None:
    """pytorch/pytorch#197539: where nothing is fused, tied parameters are one parameter."""
    model = network(lambda self, x: self.other(self.conv(x).relu()).relu(), other=same())
    model.other.weight = model.conv.weight
    fused = assert_exact(model, images())
    assert fused.other.weight is fused.conv.weight


@pytest.mark.parametrize("tied", ["linear", "transposed", "embedding"])
def test_tied_weights_of_different_layers(tied: str) -> None:
    """One parameter, read by two kinds of layer."""

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.down, self.norm, self.up = nn.Linear(6, C), nn.BatchNorm1d(C), nn.Linear(6, C)
            self.table = nn.Embedding(C, 6)
            self.up.weight = self.down.weight
            self.table.weight = self.down.weight

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.down(x))
            if tied == "linear":
                return y + self.up(x.relu())
            if tied == "transposed":
                return F.linear(y.relu(), self.down.weight.t())
            return y + self.table(torch.zeros(1, dtype=torch.int64)).sum()

    model, x = ready(Tied()), torch.randn(3, 6, dtype=torch.float64)
    naive = ready(Tied())
    naive.load_state_dict(model.state_dict())
    fold_in_place(naive.norm, naive.down)
    assert differs(naive, model, x)
    assert_exact(model, x)


def test_a_tied_weight_that_is_changed_later_is_seen() -> None:
    """What was not fused goes on sharing: training one changes both."""
    model = network(lambda self, x: self.other(self.conv(x).relu()).relu(), other=same())
    model.other.weight = model.conv.weight
    fused = reparam.fuse(model)
    for network_ in (model, fused):
        with torch.no_grad():
            network_.other.weight.mul_(2)
    assert relative_error(answers(fused, images()), answers(model, images())) <= 1e-9


def test_weights_that_are_views_of_one_tensor() -> None:
    """Two convolutions whose weights are halves of one buffer."""
    model = network(lambda self, x: self.norm(self.conv(x)).relu() + self.other(x), other=same())
    flat = torch.randn(2, *model.conv.weight.shape, dtype=torch.float64)
    model.conv.weight, model.other.weight = nn.Parameter(flat[0]), nn.Parameter(flat[1])
    assert_exact(model, images())


def test_a_weight_from_an_expanded_tensor() -> None:
    """A weight whose rows are the same memory."""
    model = network(lambda self, x: self.norm(self.conv(x)))
    row = torch.randn(1, C, 3, 3, dtype=torch.float64)
    model.conv.weight = nn.Parameter(row.expand(C, C, 3, 3), requires_grad=False)
    fused = assert_exact(model, images())
    assert count_operators(fused, (images(),)).total == 1


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class UsedOtherwise(nn.Module):
    """With a second argument it runs one layer of a block by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Pair()
        self.other = Pair()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        z = self.other(self.block(x))
        return z if y is None else z + self.block.conv(y)


def test_another_argument_that_runs_a_layer_of_a_block() -> None:
    model = randomise_batch_norm(UsedOtherwise().eval(), seed=0).double()
    fused = reparam.fuse(model)
    x, y = torch.randn(2, 1, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) <= FLOAT64_BOUND
        assert relative_error(fused(x, y), model(x, y)) <= FLOAT64_BOUND
    assert len(fused.reparam_report.fused) == 1
