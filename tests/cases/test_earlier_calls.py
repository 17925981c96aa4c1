"""Models that ran before they are fused: what a call left behind changes neither plan nor copy."""

import copy
from collections.abc import Callable
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

import reparam
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run
from tests.support.randomise import randomise_batch_norm

C = 4


def images() -> Tensor:
    return torch.randn(2, C, 6, 6, generator=torch.Generator().manual_seed(1))


def tokens() -> Tensor:
    return torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))


def convolution() -> nn.Module:
    return nn.Conv2d(C, C, 3, padding=1)


class Attention(nn.Module):
    """Keeps its biases in a dictionary, by device."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.norm = nn.Linear(8, 24, bias=False), nn.BatchNorm1d(24)
        self.proj, self.last = nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8)
        self.biases, self.cache = nn.Parameter(torch.randn(2, 16)), {}

    def bias(self, device: Any) -> Tensor:
        key = str(device)
        if key not in self.cache:
            index = torch.arange(16)[:, None].sub(torch.arange(16)).abs()
            self.cache[key] = self.biases[:, index]
        return self.cache[key]

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self.norm(self.qkv(x).flatten(0, 1)).view(b, n, 2, 12).split([4, 4, 4], 3)
        a = (q.transpose(1, 2) @ k.permute(0, 2, 3, 1) + self.bias(x.device)).softmax(-1)
        y = (a @ v.transpose(1, 2)).transpose(1, 2).reshape(b, n, 8)
        return self.last(self.proj(y).flatten(0, 1)).view(b, n, 8)


class Keeping(nn.Module):
    """A convolution and its norm, and a value that a subclass keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = convolution(), nn.BatchNorm2d(C)
        self.gain = nn.Parameter(torch.rand(C, 1, 1) + 0.5)
        self.kept: Any = None
        self.entries: dict[Any, Any] = {}
        self.list: list[Any] = []
        self.set_up()

    def set_up(self) -> None:
        pass

    def scale(self) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.scale()


class InAttribute(Keeping):
    def scale(self) -> Tensor:
        if self.kept is None:
            self.kept = self.gain.exp()
        return self.kept


class InDictionary(Keeping):
    def scale(self) -> Tensor:
        if "scale" not in self.entries:
            self.entries["scale"] = self.gain.exp()
        return self.entries["scale"]


class InDictionaryThenPart(InDictionary):
    def scale(self) -> Tensor:
        return super().scale()[:C] * 2


class InList(Keeping):
    def scale(self) -> Tensor:
        if not self.list:
            self.list.append(self.gain.exp())
        return self.list[0]


class InProperty(Keeping):
    @property
    def scaling(self) -> Tensor:
        if self.kept is None:
            self.kept = self.gain.exp()
        return self.kept

    def scale(self) -> Tensor:
        return self.scaling


class InCachedProperty(Keeping):
    @cached_property
    def scaling(self) -> Tensor:
        return self.gain.exp()

    def scale(self) -> Tensor:
        return self.scaling


class Cache:
    value: Any = None


class InObject(Keeping):
    def set_up(self) -> None:
        self.kept = Cache()

    def scale(self) -> Tensor:
        if self.kept.value is None:
            self.kept.value = self.gain.exp()
        return self.kept.value


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.entries = nn.Parameter(torch.rand(C, 1, 1)), {}

    def forward(self) -> Tensor:
        if 0 not in self.entries:
            self.entries[0] = self.gain.exp()
        return self.entries[0]


class InPart(Keeping):
    def set_up(self) -> None:
        self.part = Scale()

    def scale(self) -> Tensor:
        return self.part()


class HandedOn(nn.Module):
    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        return x * scale


class ToPart(InDictionary):
    def set_up(self) -> None:
        self.part = HandedOn()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(self.norm(self.conv(x)), self.scale())


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "attention": (lambda: nn.Sequential(Attention(), Attention()), tokens),
    **{
        kind.__name__: (kind, images)
        for kind in (
            InAttribute,
            InDictionary,
            InDictionaryThenPart,
            InList,
            InObject,
            InPart,
            InProperty,
            InCachedProperty,
            ToPart,
        )
    },
    "old weight norm": (
        lambda: nn.Sequential(
            weight_norm(convolution()), nn.ReLU(), convolution(), nn.BatchNorm2d(C)
        ),
        images,
    ),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(convolution()), nn.BatchNorm2d(C)),
        images,
    ),
    "old spectral norm": (
        lambda: nn.Sequential(
            spectral_norm(convolution()), nn.ReLU(), convolution(), nn.BatchNorm2d(C)
        ),
        images,
    ),
}


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = randomise_batch_norm(NETWORKS[name][0](), 0)
    assert isinstance(model, nn.Module)
    return model.eval()


def planned(model: nn.Module) -> list[Any]:
    return [(row.place, row.operators, row.result) for row in reparam.plan(model).fused]


def in_eval_mode(model: nn.Module, x: Tensor) -> None:
    with torch.no_grad():
        model(x)


def with_gradients(model: nn.Module, x: Tensor) -> None:
    model(x)


def after_a_step(model: nn.Module, x: Tensor) -> None:
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), 1e-3)
    model(x).sum().backward()
    optimiser.step()
    model.eval()


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("ran", [in_eval_mode, with_gradients, after_a_step])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_that_ran_is_fused_as_one_that_did_not(name: str, ran: Any) -> None:
    fresh, x = built(name), NETWORKS[name][1]()
    used = built(name)
    ran(used, x)
    assert planned(used) == planned(fresh)
    for model in (fresh, used):
        for inputs in ((), (x,)):
            fused = reparam.fuse(model, *inputs)
            assert count_operators(fused, (x,)).batch_norms == 0
            for _ in range(2):
                assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-5


def test_a_kept_scale_is_no_constant() -> None:
    """The code that fills a cache goes on filling it, in the fused model as in the model."""
    for name in ("InDictionary", "InAttribute", "InPart", "InList"):
        model, x = built(name), images()
        fused = reparam.fuse(model)
        assert count_operators(fused, (x,)).multiplications == 1
        run(fused, (x,))
        run(model, (x,))
        for kept in ("kept", "entries", "list"):
            assert bool(getattr(model, kept) is None) == bool(getattr(fused, kept) is None)
        assert len(fused.entries) == len(model.entries)
        assert len(fused.list) == len(model.list)


class BesideBranches(InDictionary):
    """Its own code has a sum that one operator could replace, and reads what it keeps."""

    def set_up(self) -> None:
        self.other = convolution()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) + self.other(x)).relu() * self.scale()


@pytest.mark.parametrize("verify", [True, False])
def test_what_is_kept_may_be_another_one_day(verify: bool) -> None:
    torch.manual_seed(0)
    model, x = randomise_batch_norm(BesideBranches(), 0).eval(), images()
    run(model, (x,))
    fused = reparam.fuse(model, verify=verify)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-5
    for network in (model, fused):
        network.entries.clear()
        nn.init.constant_(network.gain, 2.0)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-5


class Doubling(nn.Module):
    """Returns another tensor at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.state = torch.ones(C, 1, 1)

    def forward(self) -> Tensor:
        state = self.state
        self.state = state * 2
        return state


class Counting(nn.Module):
    """Computes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> None:
        self.calls += 1


class Wandering(nn.Module):
    """Changes what an operator holds."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = convolution(), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        self.norm.eps = self.norm.eps * 2 + 0.5
        return self.norm(self.conv(x))


class Once(nn.Module):
    """Changes what an operator holds, in the first call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.done = convolution(), nn.BatchNorm2d(C), False

    def forward(self, x: Tensor) -> Tensor:
        if not self.done:
            self.norm.eps, self.done = 3.0, True
        return self.norm(self.conv(x))


class Skipping(nn.Module):
    """Leaves its norm out from the second call on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.ran = convolution(), nn.BatchNorm2d(C), False

    def forward(self, x: Tensor) -> Tensor:
        ran, self.ran = self.ran, True
        y = self.conv(x)
        return y if ran else self.norm(y)


class Uses(nn.Module):
    """Its own code has a sum of branches, which is fused by new code, and calls a part."""

    def __init__(self, part: nn.Module, use: Callable[..., Tensor]) -> None:
        super().__init__()
        self.left, self.right, self.norm = convolution(), convolution(), nn.BatchNorm2d(C)
        self.part, self.use = part, use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self, self.norm(self.left(x) + self.right(x)))


def in_part(m: Any, y: Tensor) -> Tensor:
    return y * m.part()


def beside(m: Any, y: Tensor) -> Tensor:
    m.part(y)
    return y.relu()


STATEFUL: dict[str, Callable[[], nn.Module]] = {
    "scale": lambda: Uses(Doubling(), in_part),
    "scale behind": lambda: Uses(Doubling(), lambda m, y: y.relu() * m.part()),
    "counter": lambda: Uses(Counting(), beside),
    "wandering": Wandering,
    "once": Once,
    "skipping": Skipping,
}


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("name", STATEFUL)
def test_state_goes_on_as_it_did(name: str, before: int, verify: bool) -> None:
    """A tensor that forward replaces is no constant, and whoever changes itself goes on running."""
    torch.manual_seed(0)
    model, x = randomise_batch_norm(STATEFUL[name](), 0).eval(), images()
    for _ in range(before):
        run(model, (x,))
    model, fused = copy.deepcopy(model), reparam.fuse(model, verify=verify)
    for _ in range(3):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= 1e-5
    if name == "counter":
        assert fused.part.calls == model.part.calls


class Remembering(nn.Module):
    """Keeps what it computed with gradients wherever a module can."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = convolution(), nn.BatchNorm2d(C)
        self.last: Any = None
        self.cache, self.entries = Cache(), []

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        self.last, self.cache.value = y, (y, {"y": y.relu()})
        self.entries.append([y[0]])
        return y


def test_what_was_computed_with_gradients_is_copied() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(Remembering(), convolution(), nn.BatchNorm2d(C)).eval(), images()
    randomise_batch_norm(model, 0)
    expected = model(x)
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), expected.detach()) <= 1e-5
    mine, theirs = reparam.fuse(model)[0], model[0]
    assert torch.equal(mine.last, theirs.last.detach())
    assert mine.last is mine.cache.value[0]
    assert mine.last.data_ptr() != theirs.last.data_ptr()
    assert mine.last.data_ptr() == mine.entries[0][0].data_ptr()
    assert theirs.last.grad_fn is not None
