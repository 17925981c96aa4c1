"""Forwards that ask for truths, numbers and sizes that parameters alone determine."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import EXACT, Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4

Forward = Callable[[Any, Tensor], Tensor]


def network(forward: Forward, **parts: Any) -> nn.Module:
    """A network of two branches, and of parameters and buffers that its code asks for."""
    model = Network(
        forward,
        conv=nn.Conv2d(C, C, 3, padding=1),
        other=nn.Conv2d(C, C, 1),
        norm=nn.BatchNorm2d(C),
        gain=torch.tensor([0.7]),
        kernel=torch.randn(C, C, 3, 3),
        **parts,
    )
    model.register_buffer("mask", torch.arange(C) % 2 == 0)
    model.register_buffer("sizes", torch.tensor([1, 3]))
    return ready(model)


def branches(m: Any, x: Tensor) -> Tensor:
    total: Tensor = m.conv(x) + m.gain * m.other(x)
    return total


def number(m: Any, x: Tensor) -> Tensor:
    scaled = m.kernel * float(m.gain) if m.gain.item() > 0 else m.kernel
    return F.conv2d(x, scaled, padding=1)


def own_norm(m: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, m.kernel / float(m.kernel.norm()), padding=1)


def taken_apart(m: Any, x: Tensor) -> Tensor:
    rows, columns = m.kernel.flatten(2).sum(2).size()
    return F.conv2d(x, m.kernel.view(2, int(rows / 2), columns, 3, 3).flatten(0, 1), padding=1)


def on_its_device(m: Any, x: Tensor) -> Tensor:
    place: Any = m.kernel.get_device()
    if place < 0:
        place = None
    eye = torch.zeros(C, C, 3, 3, device=place, dtype=m.kernel.dtype)
    eye[0, 0, 1, 1] = 1.0
    return F.conv2d(x, m.kernel + eye, padding=1)


def of_computed_size(m: Any, x: Tensor) -> Tensor:
    doubled = m.kernel.flatten(1) * 2
    rest = doubled.new_zeros((C, *doubled.shape[1:]))
    rest[:2] = doubled[:2]
    return F.conv2d(x, rest.view(C, C, 3, 3), padding=1)


def by_rows(m: Any, x: Tensor) -> Tensor:
    return F.conv2d(x, torch.stack([row * 2 for row in m.kernel.abs()]), padding=1)


def by_numbers_in_a_list(m: Any, x: Tensor) -> Tensor:
    layers = (m.other, m.conv)
    total: Tensor = sum(layers[size // 2](x) for size in m.sizes.tolist())
    return total


def masked(m: Any, x: Tensor) -> Tensor:
    rows = m.kernel[m.mask]
    wide = torch.cat([rows] * (C // len(rows)))
    return F.conv2d(x, wide, padding=1)


ASKING: dict[str, Forward] = {
    "a truth": lambda m, x: branches(m, x) if m.gain else m.conv(x),
    "a truth of a comparison": lambda m, x: branches(m, x) if (m.gain > 0).all() else m.conv(x),
    "a truth of a buffer": lambda m, x: branches(m, x) if m.mask.any() else m.conv(x),
    "a number": number,
    "a number that is computed": own_norm,
    "a size": taken_apart,
    "a device": on_its_device,
    "a computed size": of_computed_size,
    "rows": by_rows,
    "a list": by_numbers_in_a_list,
    "a size that a mask decides": masked,
}


@pytest.mark.parametrize("name", ASKING)
def test_what_parameters_tell_is_told(name: str) -> None:
    model = network(lambda m, x: torch.relu(m.norm(ASKING[name](m, x))))
    fused = assert_exact(model, images(), total=2)
    assert count_operators(fused, (images(),)).convolutions == 1


class Part(nn.Module):
    """A part that returns its argument or something else, as a parameter says."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(C, C, 1), nn.Parameter(torch.tensor(gate))

    def forward(self, x: Tensor) -> Any:
        return self.conv(x) if self.gate > 0 else x


class Telling(Part):
    """A part that returns a number besides a value."""

    def forward(self, x: Tensor) -> Any:
        return x.relu(), float(self.gate)


def through_a_part(m: Any, x: Tensor) -> Tensor:
    value: Tensor = m.norm(m.part(m.conv(x)))
    return value


def by_a_part(m: Any, x: Tensor) -> Tensor:
    value, factor = m.part(x)
    scaled: Tensor = m.norm(m.conv(value) * factor)
    return scaled


def read_later(m: Any, x: Tensor) -> Tensor:
    total: Tensor = branches(m, x) if m.gain > 0 else m.conv(x)
    return torch.relu(total) * m.gain


def only_one_way(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.norm(m.conv(x)) if m.gain > 0 else m.conv(x)
    return torch.relu(y) * m.gain


def in_both_ways(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.norm(m.conv(x))
    return torch.relu(y) * m.gain if m.gain > 0 else torch.tanh(y)


def weight_another_way(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.norm(m.conv(x))
    return torch.relu(y) * m.gain if m.gain > 0 else y + F.conv2d(x, m.conv.weight, padding=1)


CHANGING: dict[str, tuple[Forward, dict[str, Any]]] = {
    "a parameter that is read later": (read_later, {}),
    "an operator that runs one way only": (only_one_way, {}),
    "operators that run both ways": (in_both_ways, {}),
    "a weight that the other way reads": (weight_another_way, {}),
    "a part that hands its input on": (through_a_part, {"part": Part(-0.5)}),
    "a part that does not": (through_a_part, {"part": Part(0.5)}),
    "a number of a part": (by_a_part, {"part": Telling(0.5)}),
}


@pytest.mark.parametrize("name", CHANGING)
def test_other_numbers_are_followed_or_noticed(name: str) -> None:
    """The weight that decided is gone, or the new code looks at it, or the old code still does."""
    forward, parts = CHANGING[name]
    model, x = network(forward, **copy.deepcopy(parts)), images()
    fused = assert_exact(model, x)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    deciding = "part.gate" if "part" in parts else "gain"
    for each in (model, fused):
        for path, weight in each.named_parameters():
            if path == deciding:
                weight.data.neg_()
    if deciding not in dict(fused.named_parameters()):
        assert fused.reparam_report.fused
        return
    if deciding in str(fused.reparam_report):  # it is frozen, and looked at
        with pytest.raises(reparam.ReparamError, match="fuse the model"):
            run(fused, (x,))
    else:
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_what_decides_and_stays_is_frozen_and_said() -> None:
    fused = reparam.fuse(network(read_later))
    assert not fused.gain.requires_grad
    assert "gain" in str(fused.reparam_report)
    with pytest.warns(UserWarning, match="gain"):
        fused.train()


def test_what_was_fused_so_can_be_copied_saved_and_converted() -> None:
    model = network(ASKING["a truth"])
    fused, x = reparam.fuse(network(read_later)), images()
    expected = run(fused, (x,))
    file = io.BytesIO()
    torch.save(copy.deepcopy(fused), file)
    file.seek(0)
    again = torch.load(file, weights_only=False)
    assert relative_error(run(again, (x,)), expected) <= EXACT
    again.gain.data.neg_()
    with pytest.raises(reparam.ReparamError, match="gain"):
        run(again, (x,))
    run(fused.float(), (x.float(),))
    assert relative_error(run(reparam.fuse(reparam.fuse(model)), (x,)), run(model, (x,))) <= EXACT


class Counter(nn.Module):
    """Code that cannot be traced, and counts its calls in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.add_(1)
        return x if x.sum() > 0 else x * 2


def counted_elsewhere(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.part(x)
    return branches(m, y) if m.part.calls > 2 else m.norm(m.conv(y))


def counted_through_a_view(m: Any, x: Tensor) -> Tensor:
    view = m.sizes.view(2)
    late = m.sizes.sum() > 8
    view.add_(x.shape[0])
    return branches(m, x) if late else m.norm(m.conv(x))


@pytest.mark.parametrize("forward", [counted_elsewhere, counted_through_a_view])
def test_what_a_call_changes_is_asked_again(forward: Forward) -> None:
    model, x = network(forward, part=Counter()), images()
    fused = reparam.fuse(model)
    for _ in range(6):
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_a_weight_that_decides_is_not_scaled() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y: Tensor = m.other(torch.relu(m.conv(x)))
        return y if m.conv.bias.abs().max() < 1 else -y

    model, x = network(forward), images()
    model.conv.bias.data.fill_(0.9)
    model.conv.weight.data[0] *= 1e-3
    equal = reparam.equalize(model)
    assert relative_error(run(equal, (x,)), run(model, (x,))) <= EXACT
    assert torch.equal(equal.conv.bias, model.conv.bias)
