"""Values with several readers die if all of them are rewritten, and only then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


def conv(taps: int = 1, **settings: Any) -> nn.Module:
    return nn.Conv2d(4, 4, taps, **settings)


def ends(*values: Tensor) -> Tensor:
    """A sum that no algebra enters, whatever the sizes of its terms."""
    return torch.stack([value.relu().flatten(1).sum(1).tanh() for value in values]).prod(0)


def assert_saves(model: nn.Module, x: Tensor, operators: int) -> nn.Module:
    """Fused exactly, with that many operators less and no more multiply-adds."""
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert before.total - after.total == operators, fused.reparam_report
    assert after.macs <= before.macs
    return fused


def two_branches(self: Any, x: Tensor) -> Tensor:
    y = self.shared(x.relu())
    return ends(self.a(y), self.b(y))


def queries_and_pooled_keys(self: Any, x: Tensor) -> Tensor:
    y = self.shared(x.relu())
    z = F.avg_pool2d(y, 2)
    return ends(self.a(y), self.b(z), self.c(z))


def keys_behind_a_global_pool(self: Any, x: Tensor) -> Tensor:
    y = self.shared(x.relu())
    z = y.mean((2, 3), keepdim=True)
    return ends(self.a(y), self.b(z), self.c(z))


def three_with_one_in_place(self: Any, x: Tensor) -> Tensor:
    y = self.shared(x.relu())
    return ends(self.a(y), self.b(y).mul_(2.0), self.c(y))


def inside_of_a_sequence(self: Any, x: Tensor) -> Tensor:
    y = self.before(x)
    return ends(self.a(y), self.b(y))


@pytest.mark.parametrize(
    ("forward", "saved"),
    [
        (two_branches, 1),
        (queries_and_pooled_keys, 1),
        (keys_behind_a_global_pool, 1),
        (three_with_one_in_place, 2),
    ],
)
def test_a_batch_norm_before_several_convolutions(forward: Callable[..., Any], saved: int) -> None:
    model = Network(forward, shared=nn.BatchNorm2d(4), a=conv(), b=conv(), c=conv())
    fused = assert_saves(ready(model), images(), saved)
    assert count_operators(fused, (images(),)).batch_norms == 0


def test_a_batch_norm_at_the_end_of_a_sequence() -> None:
    before = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4))
    model = ready(Network(inside_of_a_sequence, before=before, a=conv(), b=conv(3)))
    assert_saves(model, images(), 1)


def test_tokens_and_their_pool() -> None:
    """Attention with fewer keys than queries: the norm is read directly and through a pool."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.shared(x.relu())
        tokens = y.flatten(2).transpose(1, 2)
        fewer = self.pool(y).flatten(2).transpose(1, 2)
        return ends(self.a(tokens), self.b(fewer), self.c(fewer))

    lines = {name: nn.Linear(4, 6) for name in "abc"}
    model = ready(Network(forward, shared=nn.BatchNorm2d(4), pool=nn.AvgPool2d(2), **lines))
    fused = assert_saves(model, images(), 1)
    assert count_operators(fused, (images(),)).batch_norms == 0


def test_a_padding_before_two_convolutions() -> None:
    model = Network(
        lambda self, x: ends(self.a(y := F.pad(x.relu(), (1, 1, 1, 1))), self.b(y)),
        a=conv(3),
        b=conv(3, bias=False),
    )
    assert_saves(ready(model), images(), 1)


def test_a_norm_before_a_block_and_its_shortcut() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.shared(x.relu())
        return self.a(y) + y + ends(self.b(y))[:, None, None, None]

    model = ready(Network(forward, shared=nn.BatchNorm2d(4), a=conv(), b=conv()))
    assert_saves(model, images(), 2)


@pytest.mark.parametrize("last", [lambda y: y.relu(), lambda y: y, lambda y: y * y])
def test_one_reader_that_is_not_affine_keeps_it(last: Callable[[Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.shared(x.relu())
        return ends(self.a(y), self.b(y), last(y))

    model = ready(Network(forward, shared=nn.BatchNorm2d(4), a=conv(), b=conv()))
    fused = assert_saves(model, images(), 0)
    assert_reported(fused.reparam_report, "a", "shared is also read by")


def test_a_value_that_was_fused_itself() -> None:
    """What was fused for all readers at once is no place for the operator of one of them."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x.sigmoid())
        z = y + self.a(self.shared(y)) - 0.5
        return ends(self.norm(z).relu(), self.b(z.permute(0, 2, 3, 1)), y)

    parts = {"norm": nn.BatchNorm2d(4), "shared": nn.BatchNorm2d(4), "a": conv()}
    model = ready(Network(forward, conv=conv(), b=nn.Linear(4, 4), **parts))
    assert_saves(model, images(), 4)


def test_one_reader_that_pads_keeps_it() -> None:
    model = ready(Network(two_branches, shared=nn.BatchNorm2d(4), a=conv(), b=conv(3, padding=1)))
    fused = assert_saves(model, images(), 0)
    assert_reported(fused.reparam_report, "b", "zero padding after a bias")


def test_a_convolution_before_two_batch_norms_is_not_doubled() -> None:
    model = ready(Network(two_branches, shared=conv(), a=nn.BatchNorm2d(4), b=nn.BatchNorm2d(4)))
    assert_saves(model, images(), 0)


def test_a_wide_value_between_two_narrow_ones_is_not_bypassed() -> None:
    shared = nn.Conv2d(4, 16, 1)
    parts = {name: nn.Conv2d(16, 64, 1) for name in "ab"}
    assert_saves(ready(Network(two_branches, shared=shared, **parts)), images(), 1)
    shared = nn.Conv2d(64, 4, 1)
    parts = {name: nn.Conv2d(4, 64, 1) for name in "ab"}
    assert_saves(ready(Network(two_branches, shared=shared, **parts)), images(64), 0)


def test_what_another_method_runs_stays_for_it() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shared, self.a, self.b = nn.BatchNorm2d(4), conv(), conv()

        def features(self, x: Tensor) -> Tensor:
            result: Tensor = self.shared(x.relu())
            return result

        def forward(self, x: Tensor) -> Tensor:
            y = self.features(x)
            return ends(self.a(y), self.b(y))

    model, x = ready(Split()), images()
    fused = assert_saves(model, x, 1)
    with torch.no_grad():
        assert relative_error(fused.features(x), model.features(x)) <= EXACT


def test_a_write_between_the_readers() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.shared(z := x.relu())
        first = self.a(y)
        z.mul_(3.0)
        return ends(first, self.b(y), z)

    model = ready(Network(forward, shared=nn.BatchNorm2d(4), a=conv(), b=conv()))
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (images(),)), run(model, (images(),))) <= EXACT
