"""New code runs only for constants that were traced: in containers, and where some are left out."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.errors import relative_error, run


@dataclass
class Sample:
    """An image, and what is wanted of it."""

    image: Tensor
    mask: Tensor | None = None
    power: int = 1


class Block(nn.Module):
    """What it computes after a convolution that is fused depends on what a container holds."""

    def __init__(
        self, ending: Callable[[Tensor, Any], Tensor], image: Callable[[Any], Any]
    ) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
        self.ending, self.image = ending, image

    def forward(self, given: Any) -> Tensor:
        return self.ending(self.norm(self.conv(self.image(given)) * 2), given)


class Caller(nn.Module):
    """Hands its option on in a container."""

    def __init__(self, block: nn.Module, packed: Callable[[Any, Any], Any], usual: Any) -> None:
        super().__init__()
        self.block, self.packed, self.usual = block, packed, usual

    def forward(self, x: Tensor, option: Any = None) -> Any:
        return self.block(self.packed(x, self.usual if option is None else option))


def masked(y: Tensor, mask: Tensor | None) -> Tensor:
    return y if mask is None else y * mask


MASK = torch.rand(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

CASES: dict[str, tuple[Any, Any, Any, Any, Any]] = {
    "a mask in a dictionary": (
        lambda y, given: masked(y, given["mask"]),
        lambda given: given["x"],
        lambda x, mask: {"x": x, "mask": mask},
        None,
        MASK,
    ),
    "a flag in a tuple": (
        lambda y, given: -y if given[1] else y,
        lambda given: given[0],
        lambda x, flag: (x, flag),
        False,
        True,
    ),
    "a number that equals a flag": (
        lambda y, given: -y if given[1] is True else y,
        lambda given: given[0],
        lambda x, flag: [x, flag],
        1,
        True,
    ),
    "a name deep inside": (
        lambda y, given: getattr(y, given["how"]["name"])(),
        lambda given: given["x"],
        lambda x, name: {"x": x, "how": {"name": name}},
        "relu",
        "tanh",
    ),
    "a field of a dataclass": (
        lambda y, given: y**given.power,
        lambda given: given.image,
        lambda x, power: Sample(x, power=power),
        2,
        3,
    ),
    "a tensor in a field": (
        lambda y, given: masked(y, given.mask),
        lambda given: given.image,
        Sample,
        None,
        MASK,
    ),
    "the step of a slice": (
        lambda y, given: y[..., given[1]],
        lambda given: given[0],
        lambda x, step: (x, slice(None, None, step)),
        1,
        2,
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_another_constant_runs_the_code_as_it_was(case: str) -> None:
    ending, image, packed, usual, other = CASES[case]
    model, x = ready(Caller(Block(ending, image), packed, usual)), images()
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    for copied in (fused, copy.deepcopy(fused)):
        for options in ((), (other,)):
            error = relative_error(run(copied, (x, *options)), run(model, (x, *options)))
            assert error <= EXACT, (case, options)


def test_the_usual_constants_run_new_code() -> None:
    ending, image, packed, usual, _ = CASES["a field of a dataclass"]
    fused = reparam.fuse(ready(Caller(Block(ending, image), packed, usual)))
    calls: list[Any] = []
    fused.block.conv.register_forward_hook(lambda *call: calls.append(call))
    fused.block.norm.register_forward_hook(lambda *call: calls.append(call))
    fused(images())
    assert not calls


def test_guards_are_pickled() -> None:
    ending, image, packed, usual, other = CASES["a flag in a tuple"]
    fused = reparam.fuse(ready(Caller(Block(ending, image), packed, usual)))
    guards = fused.block.forward.guards
    again = pickle.loads(pickle.dumps(guards))
    for value in (usual, other):
        arguments = {"given": (images(), value)}
        assert again.hold(fused.block, arguments) == guards.hold(fused.block, arguments)
        assert guards.hold(fused.block, arguments) == (value is usual)


class Halved(nn.Module):
    """A part with an option, which its only caller does not leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor, halved: bool = False) -> Tensor:
        y = self.norm(self.conv(x) * 2)
        return y / 2 if halved else y


class Halving(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Halved()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, True).relu()


def test_what_a_caller_gives_is_no_default() -> None:
    model, x = ready(Halving()), images()
    fused = reparam.fuse(model)
    assert fused.reparam_report.fused
    for options in ((), (False,), (True,)):
        given = (x, *options)
        assert relative_error(run(fused.part, given), run(model.part, given)) <= EXACT
