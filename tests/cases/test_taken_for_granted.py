"""What no weight says of a value, its number of axes above all, is checked where a fusion needs it.

The inputs that almost everybody means are fused; others either give what they gave, or an error
that says what was taken for granted, and where.
"""

import copy
import pickle
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

import reparam
from reparam import ReparamError
from reparam.capture import CheckedIdentity
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.errors import relative_error, run


def values(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def perceptron() -> nn.Module:
    first = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU()
    return nn.Sequential(*first, nn.Linear(8, 8), nn.Dropout(), nn.BatchNorm1d(8))


def statistics() -> Tensor:
    return torch.rand(8).double() + 0.5


def functional_norm(m: Any, y: Tensor) -> Tensor:
    return F.batch_norm(y, m.mean.detach(), m.variance.detach(), m.scale)


GUARDED: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor, str]] = {
    "layers": (
        perceptron,
        values(5, 6),
        values(3, 8, 6),
        "1 (BatchNorm1d) was fused for values of 2",
    ),
    "norm first": (
        lambda: nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 8)),
        values(5, 6),
        values(3, 6, 6),
        "0 (BatchNorm1d) was fused for values of 2 axes",
    ),
    "inside a block": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8)), nn.Tanh()),
        values(5, 6),
        values(3, 8, 6),
        "0.1 (BatchNorm1d)",
    ),
    "code": (
        lambda: Network(
            lambda m, x: m.norm(m.layer(x)), layer=nn.Linear(6, 8), norm=nn.BatchNorm1d(8)
        ),
        values(5, 6),
        values(3, 8, 6),
        "norm (BatchNorm1d)",
    ),
    "sum of two layers": (
        lambda: Network(
            lambda m, x: m.norm(m.one(x) + m.two(x)).tanh(),
            one=nn.Linear(6, 8),
            two=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8),
        ),
        values(5, 6),
        values(3, 8, 6),
        "norm (BatchNorm1d)",
    ),
    "one spatial axis, unbatched": (
        lambda: nn.Sequential(nn.Conv1d(3, 8, 3, padding=1), nn.BatchNorm1d(8)),
        values(5, 3, 10),
        values(3, 8),
        "1 (BatchNorm1d) was fused for values of 3 axes",
    ),
    "branches, unbatched": (
        lambda: Network(
            lambda m, x: m.norm(m.one(x) + m.two(x)),
            one=nn.Conv1d(3, 8, 3, padding=1),
            two=nn.Conv1d(3, 8, 1),
            norm=nn.BatchNorm1d(8),
        ),
        values(5, 3, 10),
        values(3, 8),
        "norm (BatchNorm1d) was fused for values of 3 axes",
    ),
    "a constant that adds an axis": (
        lambda: Network(
            lambda m, x: m.conv(x) * m.scale, conv=nn.Conv2d(4, 8, 3), scale=values(1, 8, 1, 1)
        ),
        images(),
        images()[0],
        "was fused for values of 4 axes",
    ),
    "functional norm, unbatched": (
        lambda: Network(
            lambda m, x: functional_norm(m, F.conv2d(x, m.kernel)),
            kernel=values(8, 4, 1, 1),
            mean=statistics(),
            variance=statistics(),
            scale=statistics(),
        ),
        values(2, 4, 8, 8),
        values(4, 8, 8),
        "was fused for values of 4 axes",
    ),
    "a grey image": (
        lambda: Network(
            lambda m, x: m.conv((x - m.mean) / m.deviation),
            mean=values(3, 1, 1),
            deviation=values(3, 1, 1).abs() + 0.5,
            conv=nn.Conv2d(3, 8, 3),
        ),
        images(3),
        images(1),
        "was fused for values of 3 channels along axis -3",
    ),
}


def fused_both_ways(model: nn.Module, x: Tensor) -> list[Any]:
    return [reparam.fuse(copy.deepcopy(model)), reparam.fuse(copy.deepcopy(model), x)]


@pytest.mark.parametrize("name", GUARDED)
def test_another_input_raises_an_error_that_says_why(name: str) -> None:
    make, x, other, message = GUARDED[name]
    model = ready(make())
    run(model, (other,))  # an ordinary input of the model as it was
    for fused in fused_both_ways(model, x):
        assert fused.reparam_report.fused
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
        with pytest.raises(ReparamError) as raised:
            fused(other)
        assert message in str(raised.value)
        again = reparam.fuse(fused)
        assert not again.reparam_report.fused
        with pytest.raises(ReparamError):
            again(other)


def test_the_message_says_what_to_do() -> None:
    fused = reparam.fuse(ready(perceptron()))
    with pytest.raises(
        ReparamError, match=r"example_inputs .* \(it got one of shape \(3, 8, 8\)\)"
    ):
        fused(values(3, 8, 6))


UNGUARDED: dict[str, tuple[Callable[[], nn.Module], Tensor, Tensor]] = {
    "norms over two axes say how many there are": (
        lambda: nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8)),
        images(),
        images(),
    ),
    "constants from the last axis on": (
        lambda: Network(
            lambda m, x: m.conv(x) * m.scale, conv=nn.Conv2d(4, 8, 3), scale=values(8, 1, 1)
        ),
        images(),
        images()[0],
    ),
    "linear layers": (
        lambda: nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 4)),
        values(5, 6),
        values(2, 3, 6),
    ),
    "flattened rows": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8)),
        values(3, 3, 4),
        values(3, 2, 3, 2),
    ),
}


@pytest.mark.parametrize("name", UNGUARDED)
def test_what_is_certain_is_not_checked(name: str) -> None:
    make, x, other = UNGUARDED[name]
    model = ready(make())
    for fused in fused_both_ways(model, x):
        assert fused.reparam_report.fused
        assert not any(isinstance(module, CheckedIdentity) for module in fused.modules())
        assert relative_error(run(fused, (other,)), run(model, (other,))) <= EXACT


BETWEEN: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "a norm": lambda m, y: m.norm(y),
    "a norm of other axes": lambda m, y: m.norm(y.mT).mT,
    "a constant of two axes": lambda m, y: y * m.scale,
    "flattened": lambda m, y: y.flatten(1),
    "as rows": lambda m, y: y.view(y.size(0), -1),
    "axes in another order": lambda m, y: y.transpose(0, 1).transpose(0, 1),
    "an axis more and less": lambda m, y: y[:, None].squeeze(1),
    "parts side by side": lambda m, y: torch.cat(y.split(4, 1)[::-1], 1),
    "twice, added": lambda m, y: torch.stack([y, y], 1).sum(1),
}

LAYERS: dict[str, tuple[Callable[[], nn.Module], list[tuple[int, ...]]]] = {
    "linear": (lambda: nn.Linear(8, 8), [(8,), (5, 8), (8, 8), (3, 1, 8), (8, 8, 8), (2, 3, 8, 8)]),
    "convolution": (lambda: nn.Conv1d(8, 8, 1), [(8, 8), (8, 5), (2, 8, 5), (8, 8, 8)]),
}


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("layer", LAYERS)
def test_any_input_gives_what_it_gave_or_an_error(layer: str, between: str) -> None:
    """Whatever was traced, on example inputs of any number of axes or on none."""
    make, shapes = LAYERS[layer]
    parts = {"one": make(), "two": make(), "norm": nn.BatchNorm1d(8), "scale": values(1, 8).exp()}
    model = ready(Network(lambda m, x: m.two(BETWEEN[between](m, m.one(x))), **parts))
    taken: dict[Tensor, Tensor] = {}
    for x in (values(*shape) for shape in shapes):
        with suppress(RuntimeError, IndexError, ValueError):
            taken[x] = run(model, (x,))
    assert taken
    for example_inputs in (None, *taken):
        fused = reparam.fuse(copy.deepcopy(model), example_inputs)
        for x, expected in taken.items():
            try:
                actual = run(fused, (x,))
            except ReparamError:
                assert example_inputs is None or example_inputs.dim() != x.dim()
                continue
            assert actual.shape == expected.shape
            assert relative_error(actual, expected) <= EXACT


LEFT = {
    "tokens": (
        nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(7), nn.Linear(12, 4)),
        values(5, 7, 6),
    ),
    "channels in the middle": (
        Network(
            lambda m, x: m.norm(m.layer(x).transpose(1, 2)),
            layer=nn.Linear(6, 8),
            norm=nn.BatchNorm1d(8),
        ),
        values(5, 8, 6),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_rows_are_not_taken_for_granted_where_they_are_not_likely(name: str) -> None:
    model, x = LEFT[name]
    model = ready(model)
    fused = reparam.fuse(copy.deepcopy(model))
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_the_checks_go_wherever_a_model_goes() -> None:
    model, x, other = ready(perceptron()).float(), values(5, 6).float(), values(3, 8, 6).float()
    fused = reparam.fuse(model)
    assert fused.state_dict().keys() == {f"{at}.{n}" for at in (0, 3) for n in ("weight", "bias")}
    expected = run(fused, (x,))
    scripted, traced = torch.jit.script(fused), torch.jit.trace(fused, x)
    compiled = torch.compile(fused, fullgraph=True, backend="eager")
    symbolic, pickled = fx.symbolic_trace(fused), pickle.loads(pickle.dumps(fused))
    exported = torch.export.export(fused, (x,)).module()
    for form in (scripted, traced, compiled, symbolic, pickled, exported):
        assert torch.equal(run(form, (x,)), expected)
    for form in (scripted, symbolic, pickled, exported):
        with pytest.raises((ReparamError, torch.jit.Error, AssertionError)):
            form(other)


def test_a_graph_module_checks_too() -> None:
    model, x = ready(perceptron()), values(5, 6)
    fused = reparam.fuse(fx.symbolic_trace(model))
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    with pytest.raises(ReparamError, match="BatchNorm1d"):
        fused(values(3, 8, 6))
