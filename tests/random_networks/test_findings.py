"""Networks on which random networks once found a mistake, shrunk and named after it."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.random_networks.vocabulary import ConvNorm, EachOf, LayerScale, Noise, SignDependent
from tests.support.counting import count_operators
from tests.support.errors import relative_error
from tests.support.errors import run as outputs
from tests.support.randomise import randomise_batch_norm

EXACT = 1e-12


class Written(nn.Module):
    """Parts, and a forward that is given as a function."""

    def __init__(self, forward: Callable[..., Any], **parts: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class WithOption(Written):
    """The same with an input that may be left out, so that its code may run as it was."""

    def forward(self, x: Tensor, option: Tensor | None = None) -> Any:
        return self.run(self, x if option is None else x + option)


class OfTwo(Written):
    """The same with two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.run(self, x, y)


def conv(taps: int = 1, **settings: Any) -> nn.Conv2d:
    return nn.Conv2d(4, 4, taps, padding=taps // 2, **settings)


def scaled_inside_and_composed_outside() -> nn.Module:
    inner = Written(lambda self, x: self.b(self.scale(self.a(x))), a=conv(3), b=conv(3))
    inner.scale = LayerScale(4, 1, 1)
    return WithOption(lambda self, x: self.last(self.inner(x)), inner=inner, last=conv())


def an_argument_that_the_caller_negated() -> nn.Module:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        z = self.norm(y)
        y.relu_()
        return self.conv(z)

    inner = OfTwo(forward, norm=nn.BatchNorm2d(4), conv=conv())

    def outer(self: Any, x: Tensor) -> Tensor:
        y = x.sigmoid()
        return self.inner(y, -y)

    return WithOption(outer, inner=inner)


def a_result_in_place_that_nobody_reads() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        z = self.b(y)
        scaled = y * self.factor
        z -= scaled
        return scaled

    model = Written(forward, a=conv(3), b=conv(3))
    model.factor = nn.Parameter(torch.randn(4, 1, 1))
    return model


def heads_of_which_one_is_not_read() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        _, second = self.heads([self.norm(x)] * 2)
        return second

    return Written(forward, norm=nn.BatchNorm2d(4), heads=EachOf(conv(), ConvNorm(4, 6)))


def heads_behind_a_padding() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = self.heads([self.pad(self.norm(x))] * 2)
        return second + first.mean()

    parts = {"norm": nn.BatchNorm2d(4), "pad": nn.ReflectionPad2d((1, 1, 1, 0))}
    return Written(forward, **parts, heads=EachOf(conv(), ConvNorm(4, 4)))


def a_dead_call_of_what_the_fused_code_replaces() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x) + x
        self.heads([y, x])
        return y

    return Written(forward, conv=conv(3), heads=EachOf(ConvNorm(4, 4, 3), ConvNorm(4, 4)))


def a_weight_read_from_outside() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.block(x) + self.block.m.norm.weight.flatten()[0]

    def normalised(self: Any, x: Tensor) -> Tensor:
        norm = self.norm
        return F.batch_norm(
            self.conv(x), norm.running_mean, norm.running_var, norm.weight, norm.bias
        )

    inner = Written(normalised, conv=conv(3, bias=False), norm=nn.BatchNorm2d(4))
    return Written(forward, block=SignDependent(inner))


def a_weight_read_in_dead_code() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        x * self.block.m.bn.weight.mean()
        return self.block(x)

    return Written(forward, block=SignDependent(ConvNorm(4, 4, 3)))


def one_tensor_for_two_arguments() -> nn.Module:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        y.sub_(x, alpha=0.5)
        return self.norm(self.conv(x))

    inner = OfTwo(forward, conv=conv(3), norm=nn.BatchNorm2d(4))
    return Written(
        lambda self, x: self.inner(x * 2, x.abs()) + self.twice(x.relu()),
        inner=inner,
        twice=Written(
            lambda self, x: self.inner(x, x),
            inner=OfTwo(forward, conv=conv(3), norm=nn.BatchNorm2d(4)),
        ),
    )


def two_arguments_that_become_one() -> nn.Module:
    def forward(self: Any, x: Tensor, y: Tensor) -> Tensor:
        return torch.cat([self.norm(self.conv(y)), y], 1)

    def outer(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.inner(y, self.norm(y))

    inner = OfTwo(forward, conv=conv(), norm=nn.BatchNorm2d(4))
    return Written(outer, inner=inner, conv=conv(), norm=nn.BatchNorm2d(4))


def a_copy_or_a_view_that_is_written_to() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.linear(self.conv(x).permute(0, 2, 3, 1)) * 2
        F.relu(y.flatten(1), inplace=True)
        return y

    return Written(forward, conv=conv(3), linear=nn.Linear(4, 4))


def a_view_of_an_index() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)[:, 0] - 2
        y.view(-1)[0] = 1.0
        return y

    return Written(forward, conv=conv(3))


def random_numbers_in_the_order_of_memory() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.noise(self.linear(self.conv(x).permute(0, 2, 3, 1)))

    return Written(forward, conv=conv(3), linear=nn.Linear(4, 4), noise=Noise())


def a_parallel_transposed_convolution() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.up(x)
        z = F.avg_pool2d(self.point(y), 3, 1, 1) + y
        return self.down(z)

    parts = {"up": nn.ConvTranspose2d(4, 4, 2, stride=2), "point": conv(bias=False)}
    return Written(forward, **parts, down=nn.Conv2d(4, 4, 2, stride=3, dilation=2))


def a_sum_that_starts_at_zero() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(sum([self.a(x), self.b(x)]))  # type: ignore[call-overload]

    return Written(forward, a=conv(3), b=conv(), norm=nn.SyncBatchNorm(4))


def a_result_that_only_the_module_returns() -> nn.Module:
    def both(self: Any, x: Tensor) -> dict[str, Tensor]:
        y = self.conv(x)
        return {"last": self.norm(self.head(y.relu())), "hidden": y}

    inner = Written(both, conv=conv(3), head=conv(3), norm=nn.BatchNorm2d(4))
    return Written(lambda self, x: self.inner(x)["hidden"].sigmoid(), inner=inner)


def a_value_written_to_before_anybody_reads_it() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.first(x)
        self.act(y)
        return self.norm(self.last(y))

    parts = {"first": conv(3), "act": nn.ReLU(inplace=True), "last": conv(3)}
    return Written(forward, **parts, norm=nn.BatchNorm2d(4))


def readers_that_leave_a_value_in_turn() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Any:
        y = x.sin()
        b = self.b(y)
        both = torch.cat([self.a(y), b], 1)
        u = self.p(both)
        return self.q(both), (b + u).tanh(), self.r(u)

    parts = {"a": nn.Conv2d(4, 8, 1), "b": conv(), "p": nn.Conv2d(12, 4, 1)}
    parts |= {"q": nn.Conv2d(12, 8, 1, groups=4), "r": nn.Conv2d(4, 2, 1, groups=2)}
    return Written(forward, **parts)


def parts_of_a_value_that_leave_it_in_turn() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        first, second = torch.split(self.a(x[:, 1:]), [1, 7], dim=1)
        return torch.cat([self.b(second), first], 1)

    last = nn.Conv2d(7, 6, 3, padding=1, bias=False, padding_mode="reflect")
    return Written(forward, a=nn.Conv2d(3, 8, 1), b=last)


def terms_scaled_before_and_after_another_joins() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm((self.a(x) + self.b(x)) / 2 + x)

    far = nn.Conv2d(4, 4, 3, padding=2, dilation=2)
    return Written(forward, a=conv(3), b=far, norm=nn.BatchNorm2d(4))


def a_block_of_which_one_call_is_not_read() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.block(x)
        return self.block(x)

    block = nn.Sequential(ConvNorm(4, 4, 3), nn.ReLU(inplace=True), ConvNorm(4, 4))
    return Written(lambda self, x: self.inner(x), inner=Written(forward, block=block))


def a_term_that_is_one_operator_already() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = x.sin()
        z = x.cos() + self.a(y)
        return self.b(z) + z + self.norm(y)

    return Written(forward, a=conv(), b=conv(), norm=nn.BatchNorm2d(4))


FINDINGS = {
    a_term_that_is_one_operator_already: 1,
    readers_that_leave_a_value_in_turn: 2,
    parts_of_a_value_that_leave_it_in_turn: 0,
    terms_scaled_before_and_after_another_joins: 2,
    a_block_of_which_one_call_is_not_read: 2,
    a_value_written_to_before_anybody_reads_it: 1,
    scaled_inside_and_composed_outside: 2,
    an_argument_that_the_caller_negated: 1,
    a_result_in_place_that_nobody_reads: 0,
    heads_of_which_one_is_not_read: 1,
    heads_behind_a_padding: 2,
    a_dead_call_of_what_the_fused_code_replaces: 1,
    a_weight_read_from_outside: 1,
    a_weight_read_in_dead_code: 0,
    one_tensor_for_two_arguments: 1,
    two_arguments_that_become_one: 2,
    a_copy_or_a_view_that_is_written_to: 1,
    a_view_of_an_index: 0,
    random_numbers_in_the_order_of_memory: 0,
    a_parallel_transposed_convolution: 0,
    a_sum_that_starts_at_zero: 1,
    a_result_that_only_the_module_returns: 1,
}
"""The networks, and how many operators fusing saves of each at least."""


@pytest.mark.parametrize("build", FINDINGS)
def test_it_computes_the_same(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model = randomise_batch_norm(build(), 0).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    calls = [(x,), (x, x.sin())] if isinstance(model, WithOption) else [(x,)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused = reparam.fuse(model)
    for inputs in calls:
        results = []
        for network in (model, fused):
            torch.manual_seed(1)
            with torch.no_grad():
                results.append(network(*(value.clone() for value in inputs)))
        assert relative_error(results[1], results[0]) <= EXACT
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert before.total - after.total >= FINDINGS[build], fused.reparam_report
    assert after.macs <= before.macs
    assert not reparam.fuse(fused).reparam_report.fused


def test_torch_compile_is_left_alone() -> None:
    """In a process of its own: what torch.compile takes down, it takes down at its first import."""
    program = """
import torch, reparam
from torch import nn

class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        return self.conv(x) + torch.arange(2).sum()

class Other(nn.Module):
    def forward(self, x):
        x = x["x"] if isinstance(x, dict) else x
        return sum(a * b for a, b in zip([x, x], [1, 2]))

reparam.fuse(Positions().eval())
torch.compile(Other(), backend="eager", fullgraph=True)({"x": torch.ones(2)})
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


class InPlaceHead(nn.Module):
    """Writes to the list that it is given, and asks for sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 2, 1) for _ in range(2))

    def forward(self, x: list[Tensor]) -> Any:
        for index in range(len(x)):
            x[index] = self.convs[index](x[index])
        return x if x[0].shape[0] < 100 else x[0]


def test_a_head_that_writes_to_its_list_with_example_inputs() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.norm(self.conv(x))
        return self.head([y.relu(), y.sigmoid()])

    parts = {"conv": conv(3), "norm": nn.BatchNorm2d(4), "head": InPlaceHead()}
    model = randomise_batch_norm(Written(forward, **parts), 0).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused = reparam.fuse(model, x)
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


def test_a_fused_layer_whose_weight_was_computed_is_an_ordinary_one() -> None:
    layer = nn.utils.parametrizations.weight_norm(conv(3))
    model = randomise_batch_norm(nn.Sequential(layer, nn.BatchNorm2d(4)), 0).double().eval()
    fused: Any = reparam.fuse(model)
    assert not nn.utils.parametrize.is_parametrized(fused[0])
    assert [hasattr(module, "weight") for module in fused.modules()]
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    traced = torch.jit.trace(fused, (x,))
    assert relative_error(outputs(traced, (x,)), outputs(model, (x,))) <= EXACT


class Sealed(nn.Module):
    """A class that lets nobody set attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.sealed = conv(3), conv(), True

    def __setattr__(self, name: str, value: Any) -> None:
        if getattr(self, "sealed", False) and name != "training":
            raise AttributeError(f"{name} is sealed")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) + self.b(x)


def test_a_class_that_lets_nobody_set_attributes() -> None:
    model = Sealed().double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused = reparam.fuse(model, inplace=False)
    assert count_operators(fused, (x,)).convolutions == 1
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT


def test_the_layout_of_a_sum_that_somebody_reads() -> None:
    def transposed() -> nn.Module:
        return nn.ConvTranspose2d(4, 4, 3, stride=2, padding=1, dilation=2, groups=4, bias=False)

    model = Written(
        lambda self, x: self.noise(self.norm(sum([self.a(x), self.b(x)]))),
        a=transposed(),
        b=transposed(),
        norm=nn.BatchNorm2d(4),
        noise=Noise(),
    )
    fused = reparam.fuse(model.eval())
    assert not reparam.plan(fused).fused


class WithFeatures(nn.Module):
    """A padding whose border is a bias, between kernels of which the first is read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.kernel, self.last = conv(), nn.Conv2d(4, 4, 3), conv(3)

    def forward_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.point(x)
        z = F.pad(y, (1, 1, 1, 1))
        z[:, :, :1] = self.point.bias[:, None, None]
        z[:, :, -1:] = self.point.bias[:, None, None]
        z[:, :, :, :1] = self.point.bias[:, None, None]
        z[:, :, :, -1:] = self.point.bias[:, None, None]
        return y, self.kernel(z)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.point(x)
        z = F.pad(y, (1, 1, 1, 1))
        z[:, :, :1] = self.point.bias[:, None, None]
        z[:, :, -1:] = self.point.bias[:, None, None]
        z[:, :, :, :1] = self.point.bias[:, None, None]
        z[:, :, :, -1:] = self.point.bias[:, None, None]
        z = self.kernel(z)
        return z, self.last(y.relu())


@pytest.mark.parametrize("around", [lambda m: m, nn.Sequential], ids=["alone", "inside"])
def test_a_method_that_runs_what_is_replaced_without_a_collapse(
    around: Callable[[nn.Module], nn.Module],
) -> None:
    model = around(WithFeatures()).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).total < count_operators(model, (x,)).total
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    methods = [m if isinstance(m, WithFeatures) else m[0] for m in (fused, model)]
    with torch.no_grad():
        results, exact = (method.forward_features(x) for method in methods)
    assert relative_error(results, exact) <= EXACT


class Scaled(nn.Module):
    """A norm whose formula stands in its own code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        return F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias)


class RunsAlone(nn.Module):
    """Parts that a method runs, and that forward runs by itself."""

    def __init__(self, features: Callable[..., Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.features = features
        for name, part in parts.items():
            self.add_module(name, part)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.features(self, self.second(self.first(x)))


class ReadsTensors(RunsAlone):
    """The same with a method that computes with the tensors of a part."""

    def forward_features(self, x: Tensor) -> Tensor:
        n = self.second
        return F.batch_norm(self.first(x), n.running_mean, n.running_var, n.weight, n.bias)

    def forward(self, x: Tensor) -> Tensor:
        n = self.second
        y = F.batch_norm(self.first(x), n.running_mean, n.running_var, n.weight, n.bias)
        return self.features(self, y)


def a_reader_of_what_becomes_one() -> nn.Module:
    return RunsForNothing(
        lambda self, y: self.second(y.relu() * 2),
        first=ConvNorm(4, 4, 3),
        second=conv(),
        third=nn.BatchNorm2d(4, track_running_stats=False),
    )


def a_part_with_a_formula() -> nn.Module:
    return RunsAlone(lambda self, y: y.relu(), first=conv(3), second=Scaled())


def a_scale_of_a_class_of_its_own() -> nn.Module:
    return RunsAlone(lambda self, y: y.relu(), first=conv(3), second=LayerScale(4, 1, 1))


def a_container_whose_weight_is_read() -> nn.Module:
    return RunsAlone(
        lambda self, y: y.relu() + self.second.c.weight.flatten()[0],
        first=conv(),
        second=ConvNorm(4, 4, 3),
    )


def tensors_with_which_a_method_computes() -> nn.Module:
    return ReadsTensors(
        lambda self, y: self.third(self.head(y)),
        first=conv(3),
        second=nn.BatchNorm2d(4),
        head=conv(bias=False),
        third=nn.BatchNorm2d(4),
    )


class RunsForNothing(RunsAlone):
    """The same with a call that nobody reads, neither in forward nor in a method."""

    def forward_features(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.third(y)
        return y

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        self.third(y)
        return self.features(self, y)


def a_call_that_nobody_reads() -> nn.Module:
    return RunsForNothing(
        lambda self, y: self.second(y.relu() * 2),
        first=conv(3),
        second=conv(),
        third=nn.BatchNorm2d(4, track_running_stats=False),
    )


@pytest.mark.parametrize(
    "build",
    [
        a_call_that_nobody_reads,
        a_reader_of_what_becomes_one,
        a_part_with_a_formula,
        a_scale_of_a_class_of_its_own,
        a_container_whose_weight_is_read,
        tensors_with_which_a_method_computes,
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_a_method_finds_what_it_runs(build: Callable[[], nn.Module], inside: bool) -> None:
    built = nn.Sequential(build(), nn.Sigmoid()) if inside else build()
    model: Any = randomise_batch_norm(built, 0).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused: Any = reparam.fuse(model)
    assert count_operators(fused, (x,)).affine < count_operators(model, (x,)).affine
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    with torch.no_grad():
        methods = [m[0] if inside else m for m in (fused, model)]
        results, exact = (method.forward_features(x) for method in methods)
    assert relative_error(results, exact) <= EXACT


class Leaves(nn.Module):
    """Takes a second tensor, and does not read it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        return self.norm(self.conv(x.relu()))


@pytest.mark.parametrize(
    "run",
    [
        lambda self, x: self.last(self.part(self.first(x), other=torch.tensor(0.3))),
        lambda self, x: self.last(self.part(self.first(x), torch.ones(2)).sin()),
    ],
    ids=["keyword", "position"],
)
def test_a_tensor_of_numbers_that_a_part_leaves_unread(run: Callable[..., Tensor]) -> None:
    parts = {"first": ConvNorm(4, 4), "part": Leaves(), "last": ConvNorm(4, 4, 3)}
    model = randomise_batch_norm(Written(run, **parts), 0).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


class OwnNoise(nn.Module):
    """Hands its generator to an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), nn.BatchNorm2d(4)
        self.generator = torch.Generator().manual_seed(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        return y + torch.rand(y.shape[1:], generator=self.generator, dtype=y.dtype)


@pytest.mark.parametrize("inside", [False, True])
def test_a_generator_that_an_operator_gets(inside: bool) -> None:
    built = nn.Sequential(ConvNorm(4, 4), OwnNoise()) if inside else OwnNoise()
    model = randomise_batch_norm(built, 0).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 1


class Asking(nn.Module):
    """Asks what it got, which its new code has to ask again."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3), nn.BatchNorm2d(4)

    def forward(self, x: Any) -> Tensor:
        return self.norm(self.conv(x["image"] if hasattr(x, "keys") else x))


@pytest.mark.parametrize("around", [lambda m: m, lambda m: nn.Sequential(m, ConvNorm(4, 4))])
def test_code_that_asks_is_not_fused_again(around: Callable[[nn.Module], nn.Module]) -> None:
    model = randomise_batch_norm(around(Asking()), 0).double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    twice: Any = reparam.fuse(fused)
    assert not twice.reparam_report.fused
    assert twice.state_dict().keys() == fused.state_dict().keys()
    for value in (x, {"image": x}) if isinstance(fused, Asking) else (x,):
        assert relative_error(outputs(twice, (value,)), outputs(model, (value,))) <= EXACT


class Keeps(nn.Module):
    """Keeps what it got and what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = conv(3)
        self.got: Tensor | None = None
        self.made: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.got = x
        self.made = self.conv(x)
        return self.made


def its_result_is_scaled(self: Any, x: Tensor) -> Tensor:
    y = self.keeps(self.first(x))
    y.mul_(2)
    return self.last(y)


def its_input_is_shifted(self: Any, x: Tensor) -> Tensor:
    y = self.first(x)
    z = self.keeps(y)
    y += 1
    return self.last(y) + z


def a_view_of_its_result_is_scaled(self: Any, x: Tensor) -> Tensor:
    y = self.keeps(self.first(x)).view(x.shape)
    y *= 2
    return self.last(y)


@pytest.mark.parametrize(
    "run", [its_result_is_scaled, its_input_is_shifted, a_view_of_its_result_is_scaled]
)
@pytest.mark.parametrize("hooked", [False, True])
def test_what_a_module_keeps_is_written_to_later(run: Callable[..., Tensor], hooked: bool) -> None:
    kept: dict[int, list[Tensor]] = {}

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        kept[id(module)] = [args[0], output]

    model: Any = Written(run, first=conv(), keeps=conv(3) if hooked else Keeps(), last=conv(3))
    if hooked:
        model.keeps.register_forward_hook(keep)
    model = model.double().eval()
    x = torch.randn(2, 4, 9, 7, dtype=torch.float64)
    fused: Any = reparam.fuse(model)
    with torch.no_grad():
        assert relative_error(fused(x.clone()), model(x.clone())) <= EXACT
    seen = [kept[id(m.keeps)] if hooked else [m.keeps.got, m.keeps.made] for m in (fused, model)]
    assert relative_error(*seen) <= EXACT


class Rows(nn.Module):
    """A norm of features before a product with a matrix, in some spelling."""

    def __init__(self, product: Callable[..., Tensor]) -> None:
        super().__init__()
        self.norm, self.product = nn.BatchNorm1d(4), product
        self.weight, self.other = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(6, 4))
        self.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        return self.product(self, self.norm(x))


@pytest.mark.parametrize(
    "product",
    [
        lambda self, y: F.linear(y, self.weight + self.other, self.bias),
        lambda self, y: y @ self.weight.t() + self.bias,
        lambda self, y: torch.matmul(y, self.weight.T),
        lambda self, y: torch.addmm(self.bias, y, self.weight.T),
    ],
    ids=["computed", "operator", "matmul", "addmm"],
)
def test_rows_of_features_before_any_product(product: Callable[..., Tensor]) -> None:
    model = randomise_batch_norm(Rows(product), 0).double().eval()
    x = torch.randn(3, 4, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0
    assert not reparam.plan(fused).fused


class ReadsOneOfTwo(nn.Module):
    """What one head makes of what is fused already, nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Conv2d(9, 9, 3, padding=1), nn.BatchNorm2d(9))
        self.heads = EachOf(ConvNorm(9, 9, 3), ConvNorm(9, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        _, result = self.heads([self.block(y), y])
        return result  # type: ignore[no-any-return]


def test_an_operator_whose_value_nobody_reads_is_made_in_its_place() -> None:
    model = randomise_batch_norm(ReadsOneOfTwo(), 0).double().eval()
    x = torch.randn(1, 5, 9, 11, dtype=torch.float64)
    fused = reparam.fuse(model)  # the laws of graphs are checked
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0


class WritesForNobody(nn.Module):
    """What it writes in place nobody reads; an option runs all of it as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

    def forward(self, x: Tensor, mask: Any = None) -> Tensor:
        y = self.norm(x)
        unread = y + self.other(x)
        unread -= x
        unread.mul_(2)
        return x.add(y * self.other.weight.mean(), alpha=0.5)


def test_what_only_a_write_for_nobody_uses_is_frozen() -> None:
    model = randomise_batch_norm(WritesForNobody(), 0).double().eval()
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).total == 1
    assert {row.place for row in fused.reparam_report.frozen} >= {"norm", "other"}


class WritesForSomebody(nn.Module):
    """What it writes in place is read, in some way."""

    def __init__(self, read: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.norm, self.read = nn.BatchNorm2d(6), read

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        view = y[:, 1:]
        view.mul_(2)
        return self.read(x, y)


@pytest.mark.parametrize(
    "read",
    [
        lambda x, y: y,
        lambda x, y: x + y[:, :1],
        lambda x, y: x.copy_(y),
        lambda x, y: [x, (y.flatten(1), 0)],
    ],
    ids=["returned", "by a view", "written elsewhere", "in a container"],
)
def test_what_is_written_for_somebody_is_written(read: Callable[[Tensor, Tensor], Any]) -> None:
    model = randomise_batch_norm(WritesForSomebody(read), 0).double().eval()
    x = torch.randn(3, 6, 5, 7, dtype=torch.float64)
    fused = reparam.fuse(model)
    assert relative_error(outputs(fused, (x,)), outputs(model, (x,))) <= EXACT


class WritesToItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        y = F.linear(x, self.weight) * 3
        x.mul_(2)
        return y


def test_an_input_that_is_written_to_is_written_to() -> None:
    model = WritesToItsInput().double().eval()
    first, second = (torch.ones(2, 4, dtype=torch.float64) for _ in range(2))
    fused = reparam.fuse(model)
    assert len(fused.reparam_report.fused) == 1
    with torch.no_grad():
        assert relative_error(fused(first), model(second)) <= EXACT
    assert torch.equal(first, second)
    assert first[0, 0] == 2
