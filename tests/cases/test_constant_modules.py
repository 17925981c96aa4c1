"""Modules that are called with parameters or buffers alone: they are constants, or stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantize
from torch.nn import functional as F

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

C = 4


class Coded(nn.Module):
    """A convolution, its norm, and what somebody makes of them and of a code that is learned."""

    def __init__(self, part: nn.Module, shape: tuple[int, ...], use: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.code, self.part, self.use = nn.Parameter(torch.randn(*shape)), part, use
        self.register_buffer("ids", torch.tensor([1, 2, 0]))

    def forward(self, x: Tensor) -> Any:
        return self.use(self, self.norm(self.conv(x)))


def coded(part: nn.Module, shape: tuple[int, ...], use: Callable[..., Any]) -> nn.Module:
    torch.manual_seed(0)
    model = Coded(part, shape, use)
    randomise_batch_norm(model, seed=0)
    return model.eval()


def images() -> Tensor:
    return torch.randn(2, C, 6, 6, generator=torch.Generator().manual_seed(3))


def per_channel(value: Tensor) -> Tensor:
    return value.reshape(-1, C)[:1, :, None, None]


class WithOptions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C, C)

    def forward(self, x: Tensor, gain: Any = None, *, shift: Any = 0) -> Tensor:
        return self.linear(x) * gain + shift


class Gate(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C, C)

    def forward(self, x: Tensor, code: Tensor) -> Tensor:
        return x * self.linear(code).sigmoid()[..., None, None]


def scaled(m: Any, y: Tensor) -> Tensor:
    return y * per_channel(m.part(m.code))


def shifted(m: Any, y: Tensor) -> Tensor:
    return y + per_channel(m.part(m.code).flatten())


def first(m: Any, y: Tensor) -> Tensor:
    return y * per_channel(m.part(m.code)[0])


class Asking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(C, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) if float(x.sum()) > 1e9 else self.linear(x) * 2


FOLDED: dict[str, tuple[nn.Module, tuple[int, ...], Callable[..., Any]]] = {
    "linear": (nn.Linear(8, C), (1, 8), scaled),
    "keyword": (nn.Linear(8, C), (1, 8), lambda m, y: y * per_channel(m.part(input=m.code))),
    "norm": (nn.BatchNorm1d(C), (1, C), scaled),
    "identity": (nn.Identity(), (1, C), scaled),
    "dropout": (nn.Dropout(), (1, C), shifted),
    "flatten": (nn.Flatten(), (1, 2, 2), scaled),
    "slope of one": (nn.LeakyReLU(1.0), (1, C), scaled),
    "map": (nn.Conv2d(C, C, 2), (1, C, 2, 2), scaled),
    "transposed": (nn.ConvTranspose2d(C, C, 1), (1, C, 1, 1), shifted),
    "in place": (nn.ReLU(inplace=True), (1, C), lambda m, y: y * per_channel(m.part(m.code * 1))),
    "nested": (
        nn.Sequential(nn.Sequential(nn.Linear(8, 6), nn.GELU()), nn.Linear(6, C)),
        (1, 8),
        scaled,
    ),
    "own module": (
        WithOptions(),
        (1, C),
        lambda m, y: y + per_channel(m.part(m.code, gain=m.code, shift=1)),
    ),
    "mixed": (Gate(), (1, C), lambda m, y: m.part(y, m.code)),
    "mixed by name": (Gate(), (1, C), lambda m, y: m.part(code=m.code, x=y)),
    "several results": (nn.LSTM(C, C), (3, 1, C), first),
    "attention": (
        nn.MultiheadAttention(C, 2),
        (1, 1, C),
        lambda m, y: y * per_channel(m.part(m.code, m.code, m.code)[0]),
    ),
    "encoder": (nn.TransformerEncoderLayer(C, 2, 8), (1, 1, C), scaled),
    "embedding": (nn.Embedding(5, C), (1,), lambda m, y: y * per_channel(m.part(m.ids))),
    "made": (
        nn.Linear(1, C),
        (1,),
        lambda m, y: y * per_channel(m.part(torch.arange(3.0)[:, None].to(m.code))),
    ),
    "asking": (Asking(), (1, C), scaled),
    "list": (
        nn.ModuleList([nn.Linear(C, C), nn.Linear(C, C)]),
        (1, C),
        lambda m, y: y * per_channel(sum(part(m.code) for part in m.part)),
    ),
}


@pytest.mark.parametrize("with_inputs", [False, True])
@pytest.mark.parametrize("name", FOLDED)
def test_a_module_of_constants_is_a_constant(name: str, with_inputs: bool) -> None:
    model, x = coded(*FOLDED[name]).double(), images().double()
    fused = reparam.fuse(model, *([x] if with_inputs else []))
    counts = count_operators(fused, (x,))
    assert (counts.batch_norms, counts.convolutions, counts.total) == (0, 1, 1)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


def hooked() -> nn.Module:
    linear = nn.Linear(C, C)
    linear.register_forward_hook(lambda module, args, output: output * 2)
    return linear


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.calls = nn.Linear(C, C), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.linear(x) * self.calls


STAYING: dict[str, tuple[nn.Module, tuple[int, ...], Callable[..., Any]]] = {
    "hooked": (hooked(), (1, C), scaled),
    "counting": (Counting(), (1, C), scaled),
    "drawn": (nn.FractionalMaxPool2d(2, output_size=(1, 1)), (1, C, 5, 5), shifted),
    "embedding that writes": (
        nn.Embedding(5, C, max_norm=0.1),
        (1,),
        lambda m, y: y * per_channel(m.part(m.ids)),
    ),
    "observed": (FakeQuantize(), (1, C), scaled),
}


@pytest.mark.parametrize("name", STAYING)
def test_what_is_no_constant_stays_and_the_rest_is_fused(name: str) -> None:
    model, x = coded(*STAYING[name]), images()
    fused = reparam.fuse(model)
    counts = count_operators(fused, (x,))
    assert (counts.batch_norms, counts.convolutions) == (0, 1)
    assert counts.total > 1
    for seed in range(3):
        results = []
        for form in (model, fused):
            torch.manual_seed(seed)
            results.append(run(form, (x,)))
        assert relative_error(*results) <= 1e-5
    for name_of, tensor in model.part.state_dict().items():
        assert torch.equal(fused.part.state_dict()[name_of], tensor)


class Rescaled(nn.Module):
    """Has a rule: a scale by a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(C) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma.view(-1, *[1] * (x.dim() - 2))


def test_a_taught_module_of_constants_is_a_constant() -> None:
    model, x = coded(Rescaled(), (1, C, 1, 1), shifted).double(), images().double()
    rule = {Rescaled: lambda module, x: x.scale(module.gamma)}
    fused = reparam.fuse(model, rules=rule)
    assert count_operators(fused, (x,)).total == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-12


def test_a_module_of_constants_trains_on_where_it_stays() -> None:
    """What nobody folds is called in the fused model as it was."""
    model, x = coded(nn.Linear(C, C), (1, C), lambda m, y: (m.part(m.code), y)), images()
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    constant, _ = fused(x)
    constant.sum().backward()
    assert fused.part.weight.grad is not None


class ByHand(nn.Module):
    """A kernel that is quantised by an operator for float32 alone."""

    def __init__(self, quantise: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight, self.gain = (
            nn.Parameter(torch.randn(C, C, 3, 3)),
            nn.Parameter(torch.rand(C, 1, 1, 1)),
        )
        self.register_buffer("scale", torch.rand(C) * 0.01 + 0.01)
        self.register_buffer("zero", torch.zeros(C, dtype=torch.int32))
        self.quantise = quantise

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.quantise(self, self.weight * self.gain))


def per_row(weight: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return torch.fake_quantize_per_channel_affine(weight, scale, zero, 0, -128, 127)


QUANTISERS: dict[str, Callable[..., Tensor]] = {
    "per channel": lambda m, w: per_row(w, m.scale, m.zero),
    "halved": lambda m, w: per_row(w, m.scale * 0.5, m.zero) * 2,
    "rounded": lambda m, w: torch.round(w / m.scale[:, None, None, None]) * m.scale[0],
}


@pytest.mark.parametrize("name", QUANTISERS)
def test_a_constant_for_one_type_is_computed_as_the_model_does(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(ByHand(QUANTISERS[name]), nn.BatchNorm2d(C)).eval()
    randomise_batch_norm(model, seed=0)
    x = images()
    for inputs in ((), (x,)):
        fused = reparam.fuse(model, *inputs)
        assert count_operators(fused, (x,)).total == 1
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-6


def test_what_jumps_is_rounded_as_the_model_rounds_it() -> None:
    """A product that float32 rounds onto a half, and float64 does not."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.rand(C, C, 1, 1))
            self.gain = nn.Parameter(torch.rand(()))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, torch.round(self.weight * self.gain))

    model = nn.Sequential(Halves(), nn.BatchNorm2d(C)).eval()
    randomise_batch_norm(model, seed=0)
    with torch.no_grad():
        model[0].weight.fill_(1.5)
        model[0].gain.fill_(1 / 3)
    exact = model[0].weight.double() * model[0].gain.double()
    rounded = torch.round(model[0].weight * model[0].gain)
    assert not torch.equal(torch.round(exact).float(), rounded)
    fused, x = reparam.fuse(model), images()
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-6


def only_when_it_runs(value: Tensor) -> Tensor:
    if value.dtype == torch.float64 or PLANNING:
        raise OSError("not now")
    return per_channel(value)


PLANNING: list[int] = []


@pytest.mark.parametrize("never", [False, True], ids=["not in float64", "not at all"])
def test_a_constant_that_raises(never: bool) -> None:
    """A function of somebody's with a rule is a node of its own, and computes what it likes."""
    model, x = coded(nn.Identity(), (1, C), lambda m, y: y + only_when_it_runs(m.code)), images()
    expected = run(model, (x,))
    PLANNING.extend([1] * never)
    try:
        fused = reparam.fuse(model, rules={only_when_it_runs: lambda value: value})
    finally:
        PLANNING.clear()
    counts = count_operators(fused, (x,))
    assert (counts.batch_norms, counts.additions) == (0, int(never))
    assert relative_error(run(fused, (x,)), expected) <= 1e-6
