"""Methods other than `forward` find the parts that they run as they were."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import checkpoint

import reparam
from tests.refusals.checking import EXACT, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error


class Network(nn.Module):
    """A network with the methods that model libraries offer besides `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.norm, self.head = nn.BatchNorm1d(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.layers(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.norm(x.mean((2, 3)))
        result: Tensor = x if pre_logits else self.head(x)
        return result

    def without_branches(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        result: Tensor = self.head(x)
        return result

    def intermediate(self, x: Tensor, number: int) -> Tensor:
        for index, layer in enumerate(self.layers):
            x = layer(x)
            if index == number:
                break
        return x

    def stem(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers[0](x)
        return result

    def start(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers[:1](x)
        return result


class Block(nn.Module):
    """A block whose method has an option that forward never takes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x)

    def run(self, x: Tensor, normed: bool = True) -> Tensor:
        result: Tensor = self.norm(self.conv(x)) if normed else self.conv(x)
        return result


class Plain(Block):
    """The same without an option."""

    def run(self, x: Tensor, normed: bool = True) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result


class Owner(nn.Module):
    """A method that reaches into a part, perhaps through an alias or `getattr`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x).relu()
        return result

    def raw(self, x: Tensor) -> Tensor:
        block = self.block
        result: Tensor = getattr(block, "conv")(x)  # noqa: B009
        return result


class Chain(nn.Module):
    """Two layers, and other methods that run them; what these return is a value between, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x))
        return result

    def both(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        z = self.norm(y)
        return torch.cat([y, z], 1)

    def walrus(self, x: Tensor) -> Tensor:
        return torch.cat([(y := self.conv(x)), self.norm(y)], 1)

    def difference(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x)) - self.conv(x)
        return result

    def by_name(self, x: Tensor) -> Tensor:
        result: Tensor = self.get_submodule("conv")(x)
        return result

    def first_child(self, x: Tensor) -> Tensor:
        result: Tensor = next(self.children())(x)
        return result


CALLS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "an option not taken": (Network, lambda m: m.forward_head(features(), pre_logits=True)),
    "an option taken": (Network, lambda m: m.forward_head(features())),
    "a loop over a container": (Network, lambda m: m.intermediate(images(), 0)),
    "an index": (Network, lambda m: m.stem(images())),
    "a slice": (Network, lambda m: m.start(images())),
    "a branch of a helper": (Block, lambda m: m.run(images(), normed=False)),
    "a value between": (Chain, lambda m: m.both(images())),
    "a value between, named in an expression": (Chain, lambda m: m.walrus(images())),
    "a part run twice": (Chain, lambda m: m.difference(images())),
    "a part by its name": (Chain, lambda m: m.by_name(images())),
    "a part among the children": (Chain, lambda m: m.first_child(images())),
    "a method above": (lambda: Owner(Plain()), lambda m: m.raw(images())),
}


class Eager(nn.Module):
    """A forward that cannot be traced, and a method that reaches two levels down."""

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self.owner = owner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.owner(x) if x.sum() > 0 else self.owner(-x)
        return result

    def raw(self, x: Tensor) -> Tensor:
        result: Tensor = self.owner.block.conv(x)
        return result


def features() -> Tensor:
    return images(channels=8)


@pytest.mark.parametrize("case", CALLS)
def test_methods_return_what_they_did(case: str) -> None:
    make, call = CALLS[case]
    model = ready(make())
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    for run in (call, lambda m: m(images())):
        with torch.no_grad():
            assert relative_error(run(fused), run(model)) <= EXACT


def test_code_that_is_not_traced_keeps_what_its_methods_run() -> None:
    model = ready(Eager(Owner(Plain())))
    fused = reparam.fuse(model)
    with torch.no_grad():
        assert relative_error(fused.raw(images()), model.raw(images())) <= EXACT
    assert_reported(fused.reparam_report, "owner.block.norm", "used by two parts of the model")


def test_forward_is_fused_all_the_same() -> None:
    counts = count_operators(reparam.fuse(ready(Network())), (images(),))
    assert (counts.convolutions, counts.linears, counts.batch_norms) == (1, 1, 0)


def test_parts_that_a_method_runs_one_after_the_other_go() -> None:
    class Whole(Network):
        def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
            return self.without_branches(x.mean((2, 3)))

    class Kept(Whole):
        def without_branches(self, x: Tensor) -> Tensor:
            first: Tensor = self.norm(x)
            print(first.shape)
            result: Tensor = self.head(first)
            return result

    whole, kept = (reparam.fuse(ready(kind())) for kind in (Whole, Kept))
    assert isinstance(whole.norm, nn.Identity)
    assert isinstance(kept.norm, nn.BatchNorm1d)


class Converting(nn.Module):
    """A block with a conversion of its own, which reads its branches but does not run them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(4, 8, 1)
        self.norm = nn.BatchNorm2d(8)
        self.merged: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged is not None:
            return torch.relu(self.merged(x))
        return torch.relu(self.norm(self.wide(x) + self.narrow(x)))

    def convert(self) -> None:
        self.merged = nn.Conv2d(4, 8, 3, padding=1)
        self.merged.weight.data = self.wide.weight + nn.functional.pad(self.narrow.weight, [1] * 4)
        for parameter in self.wide.parameters():
            parameter.detach_()


class ConvertingAndRunning(Converting):
    """The same with a method that runs a branch alone."""

    def run_wide(self, x: Tensor) -> Tensor:
        result: Tensor = self.wide(x)
        return result


def test_branches_that_methods_only_read_are_gone() -> None:
    model = ready(Converting())
    fused = reparam.fuse(model)
    assert [name for name, _ in fused.named_parameters()] == [
        "fused_conv.weight",
        "fused_conv.bias",
    ]
    with torch.no_grad():
        assert relative_error(fused(images()), model(images())) <= EXACT
    with pytest.raises(AttributeError):
        fused.convert()


def test_branches_that_methods_run_are_there() -> None:
    model = ready(ConvertingAndRunning())
    fused = reparam.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(images()), model(images())) <= EXACT
    assert torch.equal(fused.run_wide(images()), model.run_wide(images()))


def _run_in_turn(layers: list[nn.Module], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x


class HiddenCalls(nn.Module):
    """A network whose methods run a part by no call of its name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    @property
    def stem(self) -> nn.Module:
        return self.conv

    def __getitem__(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(x)
        return result

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.norm(self.conv(x)).relu())
        return result


class Checkpointed(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        result: Tensor = checkpoint.checkpoint(self.conv, x, use_reentrant=False)
        return result


class Imported(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        from torch.utils.checkpoint import checkpoint as rerun

        result: Tensor = rerun(self.conv, x, use_reentrant=False)
        return result


class Mapped(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        return next(map(self.conv, [x]))


class Functional(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(self.conv, {}, (x,))
        return result


class Helped(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        return _run_in_turn([self.conv], x)


class ByProperty(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        result: Tensor = self.stem(x)
        return result


class ByOperator(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        return self[x]


class Matched(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        match self.conv:
            case layer:
                result: Tensor = layer(x)
        return result


class Held(HiddenCalls):
    def start(self, x: Tensor) -> Tensor:
        holder = SimpleNamespace()
        holder.first = self.conv
        result: Tensor = holder.first(x)
        return result


@pytest.mark.parametrize(
    "kind",
    [Checkpointed, Imported, Mapped, Functional, Helped, ByProperty, ByOperator, Matched, Held],
)
def test_a_part_that_a_method_runs_by_no_call_of_its_name_stays(kind: type[HiddenCalls]) -> None:
    _assert_start_is_as_it_was(kind())


def _assert_start_is_as_it_was(network: Any) -> None:
    model = ready(network)
    x = images(4)
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < EXACT
        assert relative_error(fused.start(x), model.start(x)) < EXACT


class Initialised(nn.Module):
    """A block with a method that initialises a norm, as residual networks have."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()

    def zero_init_last(self) -> None:
        nn.init.zeros_(self.norm.weight)


class ReadsKernel(Initialised):
    """The same with a method that returns a weight of the convolution."""

    def kernel(self) -> Tensor:
        return self.conv.weight


def test_a_method_that_reads_what_goes_does_not_matter() -> None:
    fused = reparam.fuse(ready(nn.Sequential(Initialised())))
    assert [name for name, _ in fused.named_parameters()] == ["0.conv.weight", "0.conv.bias"]
    assert "forward" not in vars(fused[0])
    with pytest.raises(AttributeError):
        fused[0].zero_init_last()


def test_a_method_never_reads_another_weight() -> None:
    fused = reparam.fuse(ready(nn.Sequential(ReadsKernel())))
    assert [name for name, _ in fused.named_parameters()] == [
        "0.fused_conv.weight",
        "0.fused_conv.bias",
    ]
    with pytest.raises(AttributeError):
        fused[0].kernel()


class NormsForNobody(nn.Module):
    """A method runs a norm of values of unknown rank twice, and one of the results is read."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm1d(4), nn.Conv1d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x).relu()

    def features(self, x: Tensor) -> Tensor:
        self.norm(x)
        convolved: Tensor = self.conv(self.norm(x))
        return convolved


def test_a_method_whose_norm_runs_once_more_computes_the_same() -> None:
    model, x = ready(NormsForNobody()), torch.randn(2, 4, 5).double()
    fused: Any = reparam.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) <= EXACT
        assert relative_error(fused.features(x), model.features(x)) <= EXACT


class TwoParts(nn.Module):
    """Normalises by a function, and ends with a norm that goes into what its caller does next."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 2, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.inner, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(6)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.inner
        b = F.batch_norm(
            self.b(x), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps
        )
        return self.last(torch.cat([self.a(x), b], 1))


class Scaled(nn.Module):
    """A convolution, and a factor that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 1)

    def forward(self, x: Tensor, factor: float = 1.0) -> Tensor:
        y: Tensor = self.conv(x)
        return y if factor == 1.0 else y * factor


class Featured(nn.Module):
    """Has a second way in, which runs the parts in code of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.parts, self.conv = TwoParts(), Scaled()

    def forward_features(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.parts(x), factor=2.0)
        return result

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.parts(x), factor=2.0).relu()
        return result


def test_code_that_moved_runs_as_it_was_for_other_methods() -> None:
    model = ready(Featured())
    x = torch.randn(2, 6, 8, 5, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < EXACT
        assert relative_error(fused.forward_features(x), model.forward_features(x)) < EXACT


class Dropping(nn.Module):
    """A dropout that a second way in runs, too, in a part of its own."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop, self.scale = nn.Conv2d(6, 6, 1), inner, nn.Parameter(torch.rand(1))

    def forward_features(self, x: Tensor) -> Tensor:
        result: Tensor = self.drop(self.conv(x))
        return result

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.drop(self.conv(x))
        return y * self.scale


class Dropped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.dropout(x)
        return result


@pytest.mark.parametrize("inner", [Dropped, nn.Dropout, nn.Identity])
def test_what_does_nothing_stays_for_other_methods(inner: Callable[[], nn.Module]) -> None:
    model, x = ready(Dropping(inner())), torch.randn(2, 6, 8, 5, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).multiplications == 0
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) < EXACT
        assert relative_error(fused.forward_features(x), model.forward_features(x)) < EXACT


class NormTwice(nn.Module):
    """One norm under two names, twice in a row, which a method runs that forward does not call."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)
        self.same = self.norm

    def forward_features(self, x: Tensor) -> Tensor:
        result: Tensor = self.same(self.norm(x))
        return result

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.same(self.norm(x))
        return result


def test_a_norm_that_another_method_runs_twice_stays() -> None:
    """Random network 750088: the method found nothing where the norm was."""
    model, x = ready(NormTwice()), images()
    fused = reparam.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(x), model(x)) <= EXACT
        assert relative_error(fused.forward_features(x), model.forward_features(x)) <= EXACT
