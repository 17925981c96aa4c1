"""Borders that are assigned to: a padding with what its input is outside, or left alone."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
EXACT = 1e-12
Write = Callable[[Any, Tensor], Any]


def bordered(write: Write, *sides: int, **parts: Any) -> nn.Module:
    """1×1 with a bias, a padding to which something is written, and 3×3."""

    def forward(self: Any, x: Tensor) -> Any:
        y = F.pad(self.point(x), sides or (1, 1, 1, 1))
        written = write(self, y)
        return self.kernel(y) if written is None else self.kernel(y) + written

    parts = {"point": nn.Conv2d(C, C, 1), "kernel": nn.Conv2d(C, C, 3), **parts}
    return ready(Network(forward, **parts))


# -- What fits ------------------------------------------------------------------------------------


def slices(self: Any, y: Tensor) -> None:
    value = self.point.bias.view(1, -1, 1, 1)
    y[:, :, 0:1, :] = value
    y[:, :, -1:, :] = value
    y[:, :, :, 0:1] = value
    y[:, :, :, -1:] = value


def ellipses(self: Any, y: Tensor) -> None:
    y[..., :1, :] = y[..., -1:, :] = self.point.bias[:, None, None]
    y[..., :1] = y[..., -1:] = self.point.bias.reshape(1, C, 1, 1)


def positions(self: Any, y: Tensor) -> None:
    value = self.point.bias[:, None]
    y[:, :, 0] = value
    y[:, :, -1] = value
    y[..., 0] = value
    y[:, :, :, -1] = value


def corners_apart(self: Any, y: Tensor) -> None:
    value = self.point.bias[:, None, None]
    for row in (0, -1):
        for column in (0, -1):
            y[:, :, row, column] = self.point.bias
    y[:, :, 1:-1, 0:1] = y[:, :, 1:-1, -1:] = value
    y[:, :, :1, 1:-1] = y[:, :, -1:, 1:-1] = value


def line_by_line(self: Any, y: Tensor) -> None:
    value = self.point.bias[:, None, None]
    for line in (slice(0, 1), slice(1, 2), slice(-1, None), slice(-2, -1)):
        y[:, :, line] = value
        y[..., line] = value


def all_around(self: Any, y: Tensor) -> None:
    y[:, :, :2] = y[:, :, -2:] = self.point.bias[:, None, None]
    y[:, :, 2:-2, :2] = y[:, :, 2:-2, -2:] = self.point.bias[:, None, None]


def overwritten(self: Any, y: Tensor) -> None:
    """What is written first is gone."""
    y[:, :, 0] = y[:, :, :, -1] = 3.0
    y[:, :, -1:] = self.other[:, None, None]
    slices(self, y)


def buffers(self: Any, y: Tensor) -> None:
    y[:, :, :1] = y[:, :, -1:] = self.constant
    y[:, :, :, :1] = y[:, :, :, -1:] = self.constant


def number(self: Any, y: Tensor) -> None:
    y[:, :, :1] = y[:, :, -1:] = 0.5
    y[:, :, :, :1] = y[:, :, :, -1:] = 0.5


class HeldBorder(nn.Module):
    """A part that holds the constant of its border and pads by itself."""

    def __init__(self, constant: Tensor) -> None:
        super().__init__()
        self.register_buffer("constant", constant)
        self.pad = nn.ZeroPad2d(1)

    def forward(self, y: Tensor) -> Tensor:
        y = self.pad(y)
        y[:, :, :1] = y[:, :, -1:] = self.constant
        y[:, :, :, :1] = y[:, :, :, -1:] = self.constant
        return y


def held() -> nn.Module:
    point, kernel = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3)
    border = HeldBorder(point.bias.detach().double().view(C, 1, 1))
    return ready(nn.Sequential(point, border, kernel))


def of_buffers() -> nn.Module:
    model = bordered(buffers)
    model.register_buffer("constant", model.point.bias.detach().view(1, C, 1, 1).clone())
    return model


def of_one_number() -> nn.Module:
    model = bordered(number)
    nn.init.constant_(model.point.bias, 0.5)
    return model


FITTING: dict[str, Callable[[], nn.Module]] = {
    "slices": lambda: bordered(slices),
    "ellipses": lambda: bordered(ellipses),
    "positions": lambda: bordered(positions),
    "corners apart": lambda: bordered(corners_apart),
    "line by line": lambda: bordered(line_by_line, 2, 2, 2, 2),
    "all around": lambda: bordered(all_around, 2, 2, 2, 2),
    "overwritten": lambda: bordered(overwritten, other=torch.randn(C)),
    "a buffer": of_buffers,
    "one number": of_one_number,
    "in a part of its own": held,
}


@pytest.mark.parametrize("spelling", FITTING)
def test_what_fits_is_one_convolution(spelling: str) -> None:
    assert_exact(FITTING[spelling](), images(), total=1)


@pytest.mark.parametrize("axes", [1, 3])
def test_any_number_of_axes(axes: int) -> None:
    kinds = {1: nn.Conv1d, 3: nn.Conv3d}

    def forward(self: Any, x: Tensor) -> Any:
        y = F.pad(self.point(x), (1, 1) * axes)
        for axis in range(axes):
            for position in (0, -1):
                value = self.point.bias.view(-1, *(1,) * (axes - 1))
                y[(slice(None),) * (axis + 2) + (position,)] = value
        return self.kernel(y)

    kind = kinds[axes]
    model = ready(Network(forward, point=kind(C, C, 1), kernel=kind(C, C, 3)))
    assert_exact(model, torch.randn(2, C, *(5,) * axes).double(), total=1)


def test_a_shortcut_around_it() -> None:
    """The sum is one over what the padded value is made of, not over the value."""

    def forward(self: Any, x: Tensor) -> Tensor:
        wide = self.point(x)
        y = F.pad(wide, (1, 1, 1, 1))
        slices(self, y)
        return self.kernel(y) + wide

    model = ready(Network(forward, point=nn.Conv2d(C, C, 1), kernel=nn.Conv2d(C, C, 3)))
    assert_exact(model, images(), total=1)


# -- What does not --------------------------------------------------------------------------------


def a_part_of_it(self: Any, y: Tensor) -> None:
    value = self.point.bias[:, None, None]
    y[:, :, :1] = y[:, :, -1:] = y[:, :, :, :1] = value


def more_than_it(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, :2] = self.point.bias[:, None, None]


def all_of_it(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[...] = self.point.bias[:, None, None]


def rows_inside(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, 1:-1] = self.point.bias[:, None, None]


def another_constant(self: Any, y: Tensor) -> None:
    y[:, :, :1] = y[:, :, -1:] = y[:, :, :, :1] = y[:, :, :, -1:] = self.other[:, None, None]


def one_side_otherwise(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, 0] = self.other[:, None]


def along_the_border(self: Any, y: Tensor) -> None:
    """As many numbers as channels, but along the columns."""
    slices(self, y)
    y[:, :, 0] = self.columns


def of_the_input(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, :1] = y[:, :, 1:2]


def doubled_between(self: Any, y: Tensor) -> None:
    y[:, :, :1] = y[:, :, -1:] = self.point.bias[:, None, None]
    y.mul_(2.0)
    y[:, :, :, :1] = y[:, :, :, -1:] = self.point.bias[:, None, None]


def doubled_through_a_view(self: Any, y: Tensor) -> None:
    y[:, :, :1] = y[:, :, -1:] = self.point.bias[:, None, None]
    y[:, :2].mul_(2.0)
    y[:, :, :, :1] = y[:, :, :, -1:] = self.point.bias[:, None, None]


def doubled_through_an_older_view(self: Any, y: Tensor) -> None:
    view = y.flatten(2)
    slices(self, y)
    view.mul_(2.0)


def doubled_afterwards(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, 0].mul_(2.0)


def some_channels(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :2, :1] = 1.0


def some_images(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:1, :, :1] = 1.0


def every_other(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, :1, ::2] = 1.0


def by_a_mask(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[y > 1] = 1.0


def by_numbers(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, [0]] = 1.0


def by_size(self: Any, y: Tensor) -> None:
    slices(self, y)
    y[:, :, y.shape[2] - 2 :] = 1.0


def crossing(self: Any, y: Tensor) -> None:
    """At the size of the example this part is empty, at another one it is not."""
    slices(self, y)
    y[:, :, 5:-5] = 1.0


LEFT: dict[str, tuple[Write, str]] = {
    "a part of it": (a_part_of_it, "not all of its border"),
    "more than it": (more_than_it, "more than its border"),
    "all of it": (all_of_it, "more than that"),
    "rows inside": (rows_inside, "more than that"),
    "another constant": (another_constant, "padding with a value"),
    "one side otherwise": (one_side_otherwise, "one constant per channel"),
    "along the border": (along_the_border, "one constant per channel"),
    "of the input": (of_the_input, "one constant per channel"),
    "doubled between": (doubled_between, ""),
    "doubled through a view": (doubled_through_a_view, "not all that is written to"),
    "doubled through an older view": (doubled_through_an_older_view, "is read later"),
    "doubled afterwards": (doubled_afterwards, ""),
    "some channels": (some_channels, "more than its border"),
    "some images": (some_images, "more than its border"),
    "every other": (every_other, "more than its border"),
    "by a mask": (by_a_mask, "more than its border"),
    "by numbers": (by_numbers, "more than its border"),
    "by size": (by_size, "more than its border"),
    "of no size here": (crossing, "more than its border"),
}


def unfit(name: str) -> nn.Module:
    write, _ = LEFT[name]
    return bordered(write, other=torch.randn(C), columns=torch.randn(C, 10))


@pytest.mark.parametrize("name", LEFT)
def test_what_does_not_fit_is_left(name: str) -> None:
    model, x = unfit(name), images()
    fused = assert_exact(model, x)
    assert count_operators(fused, (x,)).convolutions == 2
    assert relative_error(run(fused, (x[..., :3, :],)), run(model, (x[..., :3, :],))) <= EXACT
    reasons = [row.reason for row in fused.reparam_report.refused if "assign" in row.place]
    assert not LEFT[name][1] or any(LEFT[name][1] in reason for reason in reasons), reasons


def test_as_many_numbers_as_channels_along_another_axis() -> None:
    """At one size the numbers of each channel fit the columns, too."""

    def along_the_columns(self: Any, y: Tensor) -> None:
        slices(self, y)
        y[:, :, 0] = self.point.bias

    x = images()[..., : C - 2]
    fused = assert_exact(bordered(along_the_columns), x)
    assert count_operators(fused, (x,)).convolutions == 2


def read_before(self: Any, y: Tensor) -> Tensor:
    before = y.mean()
    slices(self, y)
    return before


def view_read_afterwards(self: Any, y: Tensor) -> Tensor:
    view = y[:, :, 0]
    slices(self, y)
    return view.mean()


def read_between(self: Any, y: Tensor) -> Tensor:
    value = self.point.bias[:, None, None]
    y[:, :, :1] = y[:, :, -1:] = value
    between = y.amax()
    y[:, :, :, :1] = y[:, :, :, -1:] = value
    return between


def copied_before(self: Any, y: Tensor) -> Tensor:
    copy = y.clone()
    slices(self, y)
    return copy[:, :, 0].mean()


@pytest.mark.parametrize("write", [read_before, view_read_afterwards, read_between, copied_before])
def test_somebody_else_reads_it(write: Write) -> None:
    """Whoever reads the padded value sees what had been written to it by then, and no more."""
    assert_exact(bordered(write), images())


def test_a_part_that_writes_to_what_it_is_given() -> None:
    """The caller reads the value under its own name, and the part returns it."""
    border = Network(slices)

    def forward(self: Any, x: Tensor) -> Tensor:
        y = F.pad(self.point(x), (1, 1, 1, 1))
        self.border(y)
        return self.kernel(y)

    point, kernel = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3)
    border.function = lambda self, y: slices(holder, y)
    holder = ready(Network(forward, point=point, kernel=kernel, border=border))
    assert_exact(holder, images())


def test_the_input_itself_is_written_to() -> None:
    """Its caller sees that."""

    def forward(self: Any, x: Tensor) -> Tensor:
        slices(self, x)
        return self.kernel(self.point(x))

    model = ready(Network(forward, point=nn.Conv2d(C, C, 1), kernel=nn.Conv2d(C, C, 3)))
    fused, one, two = assert_exact(model, images()), images(), images()
    with torch.no_grad():
        model(one)
        fused(two)
    assert torch.equal(one, two)
    assert not torch.equal(one, images())


def test_a_constant_of_another_number_of_channels() -> None:
    """The network fails when it runs; fusing it does not."""
    model = bordered(another_constant, other=torch.randn(C + 1))
    assert not reparam.plan(model).fused


def test_the_constant_is_written_to_by_forward() -> None:
    def drifting(self: Any, y: Tensor) -> None:
        self.constant.mul_(0.5)
        buffers(self, y)

    model = bordered(drifting)
    model.register_buffer("constant", model.point.bias.detach().view(1, C, 1, 1).clone())
    fused = assert_exact(model, images(), calls=3)
    assert count_operators(fused, (images(),)).convolutions == 2


# -- New code with an assignment in it ------------------------------------------------------------


class Unfused(nn.Module):
    """Its norms are fused, which gives it new code, and its border is not."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.kernel = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 3)
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        y = F.pad(self.point(x) + x, (1, 1, 1, 1))
        slices(self, y)
        y[:, :, 0] = 0.5
        return self.norm(self.kernel(y)) * 2.0


def roundtrip(model: nn.Module) -> nn.Module:
    copy: nn.Module = pickle.loads(pickle.dumps(model))
    return copy


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    loaded: nn.Module = torch.load(buffer, weights_only=False)
    return loaded


USES: dict[str, Callable[[nn.Module, Tensor], Any]] = {
    "deepcopy": lambda model, x: deepcopy(model),
    "pickle": lambda model, x: roundtrip(model),
    "save": lambda model, x: saved(model),
    "fuse again": lambda model, x: reparam.fuse(model),
    "jit.trace": torch.jit.trace,
    "export": lambda model, x: torch.export.export(model, (x,)).module(),
    "strict export": lambda model, x: torch.export.export(model, (x,), strict=True).module(),
    "compile": lambda model, x: torch.compile(model, fullgraph=True, backend="eager"),
    "aot": lambda model, x: torch.compile(model, fullgraph=True, backend="aot_eager"),
}


@pytest.mark.parametrize("use", USES)
def test_new_code_with_an_assignment(use: str) -> None:
    model, x = ready(Unfused()), images()
    fused = reparam.fuse(model)
    assert "assign" in vars(fused)["forward"].code
    assert_reported(fused.reparam_report, "assign_4", "one constant per channel")
    used = USES[use](fused, x)
    with torch.no_grad():
        assert relative_error(used(x), model(x)) <= EXACT
