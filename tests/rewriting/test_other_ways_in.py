"""All ways into a fused model agree, also once trained; what must stay is frozen and named."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_map

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.errors import relative_error

MASK = torch.ones(1, 1, 1, 1, dtype=torch.float64)


def apart(result: Any, exact: Any) -> float:
    """The relative difference of what networks returned, whether they need gradients or not."""
    return relative_error(*tree_map(torch.Tensor.detach, (result, exact)))


class Branches(nn.Module):
    """Two branches of a convolution and a norm, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.pointwise, self.norm_of_it = nn.Conv2d(4, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        both: Tensor = self.norm(self.conv(x)) + self.norm_of_it(self.pointwise(x))
        return both.relu()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.forward_features(x))
        return result


class Layered(Branches):
    """Methods that call each other, one of which forward does not call."""

    def extract(self, x: Tensor) -> list[Tensor]:
        return [self.forward_features(x)]


class WithOption(nn.Module):
    """A chain in a forward with an option, in several statements."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = self.conv(x)
        x = self.norm(x)
        x = x.relu()
        result: Tensor = self.head(x if mask is None else x * mask)
        return result


class AsksWhatItGot(WithOption):
    """The chain is called in two branches, of which one was traced."""

    def forward(self, x: Any, mask: Any = None) -> Any:
        if isinstance(x, tuple):
            return tuple(self.head(self.norm(self.conv(one)).relu()) for one in x)
        return self.head(self.norm(self.conv(x)).relu())


class InALoop(WithOption):
    """The chain runs again with an option."""

    def forward(self, x: Tensor, times: int = 1, flag: bool = False) -> Tensor:
        values = [self.norm(self.conv(x)).relu() for _ in range(times)] if flag else []
        for _ in range(times):
            values.append(self.norm(self.conv(x)).relu())
        result: Tensor = self.head(sum(values))
        return result


AGREEING: list[tuple[type[nn.Module], Callable[[Any, Tensor], Any], Callable[[Any, Tensor], Any]]]
AGREEING = [
    (Branches, lambda m, x: m(x), lambda m, x: m.head(m.forward_features(x))),
    (Layered, lambda m, x: m(x), lambda m, x: m.head(m.extract(x)[0])),
    (WithOption, lambda m, x: m(x), lambda m, x: m(x, MASK)),
    (WithOption, lambda m, x: m(x), lambda m, x: m(x, mask=MASK)),
]


@pytest.mark.parametrize(("kind", "forward", "other"), AGREEING)
@pytest.mark.parametrize("inplace", [False, True])
def test_all_ways_in_agree_before_and_after_training(
    kind: type[nn.Module], forward: Any, other: Any, inplace: bool
) -> None:
    model = ready(kind())
    expected = [forward(model, images()), other(model, images())]
    fused = reparam.fuse(model, inplace=inplace)
    assert fused.reparam_report.fused
    assert not fused.reparam_report.frozen
    for result, exact in zip(
        [forward(fused, images()), other(fused, images())], expected, strict=True
    ):
        assert apart(result, exact) < EXACT
    fused.train()
    optimizer = torch.optim.SGD(fused.parameters(), 0.5)
    for _ in range(3):
        optimizer.zero_grad()
        forward(fused, images()).square().mean().backward()
        assert all(parameter.grad is not None for parameter in fused.parameters())
        optimizer.step()
    fused.eval()
    assert apart(other(fused, images()), forward(fused, images())) < EXACT


class WritesItsBias(nn.Module):
    """Of a convolution that only other methods run, forward reads the bias."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward_features(self, x: Tensor) -> Tensor:
        return F.pad(self.conv(x), (1, 2, 1, 0))

    def forward_head(self, x: Tensor) -> Tensor:
        x.mul_(2)
        x[:, :, :, -2:] = self.conv.bias.view(-1, 1, 1)  # type: ignore[union-attr]
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def test_of_a_part_that_stays_what_forward_does_not_read_is_frozen() -> None:
    model = ready(WritesItsBias())
    fused = reparam.fuse(model)
    assert apart(fused(images()), model(images())) < EXACT
    (row,) = fused.reparam_report.frozen
    assert row.parameters == ("conv.weight",)
    assert not fused.conv.weight.requires_grad
    assert fused.conv.bias.requires_grad


def test_a_replica_and_a_copy_run_the_new_code_of_methods_on_their_own_parts() -> None:
    fused = reparam.fuse(ready(Branches()))
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        with torch.no_grad():
            other.fused_conv.weight.zero_()
            other.fused_conv.bias.zero_()
        assert not other.forward_features(images()).any()
    assert fused.forward_features(images()).any()
    assert fused._replicate_for_data_parallel().forward_features.name == "forward_features"


class RunsOneBranch(Branches):
    """A method runs a part of what is fused."""

    def one_branch(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result


class ReadsBetween(WithOption):
    """The option changes what lies between the two."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.conv(x)
        if mask is not None:
            y = y * mask
        result: Tensor = self.head(self.norm(y).relu())
        return result


class ReturnsBoth(WithOption):
    """The option returns what lies between the two."""

    def forward(self, x: Tensor, both: bool = False) -> Any:
        y = self.conv(x)
        z = self.head(self.norm(y).relu())
        return (y, z) if both else z


class LeavesTheLoop(WithOption):
    """A loop that may end between the two."""

    def forward(self, x: Tensor, early: bool = False) -> Tensor:
        y = x
        for _ in range(1):
            y = self.conv(x)
            if early:
                break
            y = self.norm(y)
        result: Tensor = self.head(y.relu())
        return result


class HandsItselfOn(WithOption):
    """A function of nobody knows what gets the module."""

    def forward(self, x: Tensor, hook: Any = None) -> Tensor:
        if hook is not None:
            return hook(self, x)  # type: ignore[no-any-return]
        result: Tensor = self.head(self.norm(self.conv(x)).relu())
        return result


class RunsOneAlone(WithOption):
    """The option runs the norm on something else."""

    def forward(self, x: Tensor, features: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x) if features is None else features)
        result: Tensor = self.head(y.relu())
        return result


class NormsBehindAConcatenation(nn.Module):
    """The scale of the norm moves into what the method returns."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(8)

    def forward_features(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x), self.other(x.cos())], 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.forward_features(x))
        return result


class NormsBehindAMove(NormsBehindAConcatenation):
    """The same behind a move of axes."""

    def forward_features(self, x: Tensor) -> Tensor:
        return torch.cat([self.conv(x.cos()).flip(2), self.other(x.cos())], 1)

    def forward_head(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(x.flip(2))
        return result

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


@pytest.mark.parametrize("kind", [NormsBehindAConcatenation, NormsBehindAMove])
@pytest.mark.parametrize("verify", [True, False])
def test_a_method_returns_what_it_did_where_a_scale_moved_above(
    kind: type[nn.Module], verify: bool
) -> None:
    model = ready(kind())
    fused = reparam.fuse(model, verify=verify)
    assert apart(fused(images()), model(images())) < EXACT
    expected = model.forward_features(images())
    assert apart(fused.forward_features(images()), expected) < EXACT


STAYING: list[tuple[type[nn.Module], Callable[[Any, Tensor], Any], set[str]]] = [
    (RunsOneBranch, lambda m, x: m.one_branch(x), {"conv", "norm"}),
    (ReadsBetween, lambda m, x: m(x, 2 * MASK), {"conv", "norm"}),
    (ReturnsBoth, lambda m, x: m(x, both=True)[0], {"conv", "norm"}),
    (LeavesTheLoop, lambda m, x: m(x, early=True), {"conv", "norm"}),
    (HandsItselfOn, lambda m, x: m(x, lambda net, y: net.conv(y)), {"conv", "norm"}),
    (RunsOneAlone, lambda m, x: m(x, x.repeat(1, 2, 1, 1)), {"conv", "norm"}),
]


@pytest.mark.parametrize(("kind", "other", "staying"), STAYING)
def test_what_must_stay_is_right_frozen_reported_and_named_in_a_warning(
    kind: type[nn.Module], other: Any, staying: set[str]
) -> None:
    model = ready(kind())
    fused = reparam.fuse(model)
    report = fused.reparam_report
    assert report.fused
    assert apart(fused(images()), model(images())) < EXACT
    assert apart(other(fused, images()), other(model, images())) < EXACT
    assert {row.place for row in report.frozen} == staying
    frozen = {name for row in report.frozen for name in row.parameters}
    assert frozen == {n for n, p in fused.named_parameters() if not p.requires_grad}
    assert all(name in str(report) for name in frozen)
    assert all(parameter.requires_grad for parameter in model.parameters())
    for copied in (fused, copy.deepcopy(fused)):
        with pytest.warns(UserWarning, match="still runs parts as they were") as noticed:
            assert copied.train() is copied
        assert all(name in str(noticed[0].message) for name in staying)
        assert copied.training
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not copied.train().eval().training


class PadsItsChain(nn.Module):
    """A pad in the parent, and a chain in the child."""

    def __init__(self) -> None:
        super().__init__()
        wide = nn.Conv2d(4, 32, 1, bias=False), nn.Conv2d(32, 32, 3, bias=False)
        self.chain = nn.Sequential(*wide, nn.Conv2d(32, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.chain(F.pad(x, (1, 1, 1, 1)))
        return result


class Plus(nn.Module):
    """Computes a weight."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.more = nn.Parameter(torch.randn_like(weight) * 0.1)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.more


class ReadsItsNorm(nn.Module):
    """A parametrised convolution, and a method that reads the weight of its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        parametrize.register_parametrization(self.conv, "weight", Plus(self.conv.weight))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)) + x)

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.norm.weight)


@pytest.mark.parametrize(
    ("model", "left"), [(PadsItsChain(), 4 * 4 * 9 + 4), (nn.Sequential(ReadsItsNorm()), 148)]
)
def test_nothing_stays_that_no_code_runs(model: nn.Module, left: int) -> None:
    model = ready(model)
    fused = reparam.fuse(model)
    assert apart(fused(images()), model(images())) < EXACT
    assert sum(parameter.numel() for parameter in fused.parameters()) == left


class ReadsABias(nn.Module):
    """One tensor of a layer is read besides, the others are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.second(self.first(x))
        y[:, :, :, :1] = self.second.bias[:, None, None]
        return y


def test_of_a_layer_that_is_gone_what_is_read_stays_alone() -> None:
    model = ready(ReadsABias())
    fused = reparam.fuse(model)
    assert apart(fused(images()), model(images())) < EXACT
    fused(images()).square().mean().backward()
    assert [name for name, p in fused.named_parameters() if p.grad is None] == []
    assert {name for name, _ in fused.named_parameters()} > {"second.bias"}


class SharedByCopies(nn.Sequential):
    """Parts that every copy shares."""

    def __deepcopy__(self, memo: dict[int, object]) -> SharedByCopies:
        return self


def test_what_copies_share_with_the_model_is_frozen_in_the_fused_one_alone() -> None:
    model = ready(RunsOneBranch())
    model.conv = SharedByCopies(model.conv).eval()
    fused = reparam.fuse(model)
    names = [row.parameters for row in fused.reparam_report.frozen]
    assert names[0] == ("conv.0.weight", "conv.0.bias")
    assert not fused.conv[0].weight.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())


class FlattensByOption(nn.Module):
    """The rank that makes two layers one is that of the traced way alone."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm = nn.Linear(6, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor, tokens: bool = False) -> Tensor:
        if not tokens:
            x = x.flatten(1)
        result: Tensor = self.norm(self.linear(x))
        return result


class PoolsByOption(nn.Module):
    """The size that makes a kernel small is that of the traced way alone."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 3, padding=1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor, dense: bool = False) -> Tensor:
        if not dense:
            x = F.adaptive_avg_pool2d(x, 1)
        result: Tensor = self.norm(self.conv(x))
        return result


@pytest.mark.parametrize(
    ("model", "x", "y"),
    [
        (FlattensByOption(), torch.randn(5, 6), torch.randn(2, 6, 6)),
        (PoolsByOption(), torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)),
    ],
)
def test_what_is_known_of_the_traced_way_alone_does_not_change_the_others(
    model: nn.Module, x: Tensor, y: Tensor
) -> None:
    model, x, y = ready(model), x.double(), y.double()
    fused = reparam.fuse(model, (x,))
    assert fused.reparam_report.fused
    assert apart(fused(x), model(x)) < EXACT
    assert apart(fused(y, True), model(y, True)) < EXACT


class HeadOfAnyRank(FlattensByOption):
    """A method to which forward gives a value of one rank, and users of another."""

    def forward_head(self, x: Tensor) -> Tensor:
        result: Tensor = (self.norm(self.linear(x)) + x).relu()
        return result

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.forward_head(x.flatten(1))


class OfAnySize(PoolsByOption):
    """The same with a size."""

    def forward_head(self, x: Tensor) -> Tensor:
        result: Tensor = (self.norm(self.conv(x)) + self.conv(x)).relu()
        return result

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.forward_head(F.adaptive_avg_pool2d(x, 1))


@pytest.mark.parametrize(
    ("model", "x", "y"),
    [
        (HeadOfAnyRank(), torch.randn(5, 6), torch.randn(2, 6, 6)),
        (OfAnySize(), torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)),
    ],
)
def test_a_method_gets_no_code_that_is_right_for_what_forward_gives_it_alone(
    model: nn.Module, x: Tensor, y: Tensor
) -> None:
    model, x, y = ready(model), x.double(), y.double()
    fused = reparam.fuse(model, (x,))
    assert fused.reparam_report.fused
    assert apart(fused(x), model(x)) < EXACT
    assert apart(fused.forward_head(y), model.forward_head(y)) < EXACT


class OnTokens(FlattensByOption):
    """Another method runs the same layers, one on the other, on values of another rank."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        result: Tensor = self.norm(self.linear(x.flatten(1)))
        return result

    def tokens(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.linear(x))
        return result


def test_a_method_that_runs_them_in_turn_gets_the_rank_that_was_traced() -> None:
    model, x = ready(OnTokens()), torch.randn(5, 6).double()
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    assert apart(fused(x), model(x)) < EXACT
    assert apart(fused.tokens(x), model.tokens(x)) < EXACT
    with pytest.raises(reparam.ReparamError, match="norm"):
        fused.tokens(torch.randn(2, 6, 6).double())


class Masked(nn.Module):
    """A product with parameters of its own, of which an option is a part."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.kernel = nn.Parameter(torch.rand(6)), nn.Parameter(torch.randn(4, 6))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x if mask is None else x * mask
        return x.mul(self.scale) @ self.kernel.t()


class AlsoMasked(nn.Module):
    """A tensor of a number is made in both methods, and goes with the operators that it is in."""

    def __init__(self) -> None:
        super().__init__()
        self.masked = Masked()

    def features(self, x: Tensor) -> Tensor:
        result: Tensor = self.masked(x, mask=torch.tensor(0.5))
        return result

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.masked(x, mask=torch.tensor(0.5))
        return result


@pytest.mark.parametrize("given", [False, True])
def test_a_module_whose_code_moved_to_its_caller_runs_for_other_methods(given: bool) -> None:
    model, x = ready(AlsoMasked()), torch.randn(3, 6, dtype=torch.float64)
    fused = reparam.fuse(model, x if given else None)
    assert fused.reparam_report.fused
    assert apart(fused(x), model(x)) <= EXACT
    assert apart(fused.features(x), model.features(x)) <= EXACT
    assert {row.place for row in fused.reparam_report.frozen} >= {"masked.scale", "masked.kernel"}
