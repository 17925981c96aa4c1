"""Code that sizes decide: checks, padding, early scaling. What is around it joins all the same."""

from __future__ import annotations

import copy
import logging
import math
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4

LOG = logging.getLogger(__name__)


class ConvNorm(nn.Module):
    """Convolutions and their norm behind some code of their own."""

    limit = 5

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(C, C, 3, padding=1), nn.BatchNorm2d(C)
        self.other = nn.Conv2d(C, C, 1)
        self.__channels = C

    def forward(self, x: Any) -> Tensor:
        normalised: Tensor = self._joined(self.first(x))
        return normalised

    def first(self, x: Any) -> Any:
        return x

    def _joined(self, x: Any) -> Tensor:
        """Two branches, so that the code around them becomes new."""
        normalised: Tensor = self.norm(self.conv(x) + self.other(x))
        return normalised

    def check(self, x: Tensor) -> None:
        if x.shape[1] != self.__channels:
            raise ValueError(f"{x.shape[1]} channels, not {self.__channels}")


def _module(first: Callable[[Any, Any], Any]) -> nn.Module:
    return type("First", (ConvNorm,), {"first": first})()


# -- Checks ---------------------------------------------------------------------------------------


def asserts_axes(self: Any, x: Any) -> Any:
    assert x.dim() == 4
    return x


def asserts_length_of_shape(self: Any, x: Any) -> Any:
    assert len(x.shape) == 4, "four axes"
    return x


def asserts_two(self: Any, x: Any) -> Any:
    assert x.shape[1] == C and x.shape[2] >= self.limit, f"odd {tuple(x.shape)}"  # noqa: PT018
    return x


def asserts_unpacked(self: Any, x: Any) -> Any:
    _, c, h, w = x.size()
    assert c == self.conv.in_channels, f"{c} channels"
    assert h >= 5, f"{h:d} rows, {w} columns"
    return x


def asserts_values(self: Any, x: Any) -> Any:
    assert not torch.isnan(x).any(), "not a number"
    return x


def raises(self: Any, x: Any) -> Any:
    if x.shape[1] != C or x.shape[2] < self.limit:
        raise ValueError(f"bad {tuple(x.shape)}")
    return x


def raises_for_type(self: Any, x: Any) -> Any:
    if x.dtype == torch.float16:
        raise TypeError("half precision")
    return x


def checks_by_a_method(self: Any, x: Any) -> Any:
    self.check(x)
    return x


def _check(x: Any, rows: int) -> None:
    if x.shape[2] < rows:
        raise RuntimeError(f"{x.shape[2]} rows")


def checks_by_a_function(self: Any, x: Any) -> Any:
    _check(x, self.limit)
    return x


def asserts_each(self: Any, x: Any) -> Any:
    for rows in x.shape[2:]:
        assert rows > 4, f"{rows} rows"
    return x


CHECKS = [
    asserts_each,
    asserts_axes,
    asserts_length_of_shape,
    asserts_two,
    asserts_unpacked,
    asserts_values,
    raises,
    raises_for_type,
    checks_by_a_method,
    checks_by_a_function,
]

OTHERS = [
    torch.randn(2, C, 9, 8),
    torch.randn(1, C, 4, 4),
    torch.randn(2, C + 1, 9, 8),
    torch.full((1, C, 6, 6), float("nan")),
]


def _outcome(model: Any, x: Tensor) -> Any:
    try:
        return run(model, (x,))
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize("first", CHECKS)
@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_check_stays_with_its_own_message(
    first: Callable[[Any, Any], Any], with_inputs: bool
) -> None:
    model, x = ready(_module(first)), images(C)
    fused = reparam.fuse(model, x) if with_inputs else reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0
    for other in OTHERS:
        exact, result = _outcome(model, other.double()), _outcome(fused, other.double())
        if isinstance(exact, Tensor) and not exact.isnan().any():
            assert relative_error(result, exact) <= EXACT
        elif not isinstance(exact, Tensor):
            # The runner of the tests writes more into the message of an assertion in this file.
            assert result[0] is exact[0]
            assert exact[1].split("\n")[0] == result[1].split("\n")[0]


def test_a_check_of_what_a_fused_operator_computes_stays() -> None:
    class Between(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if y.shape[2] < 6:
                raise ValueError(f"{y.shape[2]} rows")
            normalised: Tensor = self.norm(y)
            return normalised

    model, x = ready(Between()), images(C)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    with pytest.raises(ValueError, match="5 rows"):
        fused(images(C)[..., :5, :])


# -- Warnings -------------------------------------------------------------------------------------


def warns(self: Any, x: Any) -> Any:
    if x.shape[2] < self.limit:
        warnings.warn(f"small: {x.shape[2]}", stacklevel=1)
    return x


def prints(self: Any, x: Any) -> Any:
    if x.shape[2] < self.limit:
        print("small:", x.shape[2])
    return x


def logs(self: Any, x: Any) -> Any:
    if x.shape[2] < self.limit:
        LOG.warning("small: %s", x.shape[2])
    return x


@pytest.mark.parametrize("first", [warns, prints, logs])
def test_a_warning_stays(
    first: Callable[[Any, Any], Any],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, x = ready(_module(first)), images(C)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused(images(C)[..., :4, :])
    said = [*(str(w.message) for w in caught), capsys.readouterr().out, caplog.text]
    assert sum("small: 4" in text for text in said) == 1


# -- Values that sizes decide ---------------------------------------------------------------------


def adds_an_axis(self: Any, x: Any) -> Any:
    if x.ndim == 3:
        x = x[None]
    return x


def pads_to_a_multiple(self: Any, x: Any) -> Any:
    h, w = x.shape[-2:]
    ph, pw = (4 - h % 4) % 4, (4 - w % 4) % 4
    if ph or pw:
        x = F.pad(x, (0, pw, 0, ph))
    return x


def pads_by_a_variable_of_its_own(self: Any, x: Any) -> Any:
    if x.shape[-1] % 4:
        missing = 4 - x.shape[-1] % 4
        x = F.pad(x, (0, missing))
    return x


def one_of_three(self: Any, x: Any) -> Any:
    if x.shape[-1] > 8:
        y, factor = F.avg_pool2d(x, 2), 2
    elif x.shape[-1] > 6:
        y, factor = x * 2, 3
    else:
        y, factor = x, 1
    return y * factor


def by_an_expression(self: Any, x: Any) -> Any:
    return x if x.shape[0] == 1 or x.shape[-1] < 8 else x * 2


def resized(self: Any, x: Any) -> Any:
    return F.interpolate(x, size=[int(s * 1.5) for s in x.shape[2:]])


def pooled(self: Any, x: Any) -> Any:
    return F.adaptive_avg_pool2d(x, math.ceil(min(x.shape[-2:]) / 2))


def unpacked(self: Any, x: Any) -> Any:
    n, *others = x.shape
    return x.flatten(1).reshape(n, *others)


def reshaped(self: Any, x: Any) -> Any:
    return x.flatten(2).reshape(*x.size())


def converted(self: Any, x: Any) -> Any:
    if x.dtype != torch.float64:
        x = x.double()
    return x


def in_a_loop(self: Any, x: Any) -> Any:
    for rows in range(4, 7):
        if x.shape[-2] > rows:
            x = x + rows
    return x


def counted(self: Any, x: Any) -> Any:
    elements, largest = 1, 0
    for number in x.shape:
        elements = elements * number
        if number > largest:
            largest = number
    return x * elements / largest


def in_place(self: Any, x: Any) -> Any:
    y = x * 1
    z = y
    if y.shape[0] > 1:
        y += 1
    return z * y


VALUES = [
    adds_an_axis,
    pads_to_a_multiple,
    pads_by_a_variable_of_its_own,
    one_of_three,
    by_an_expression,
    resized,
    pooled,
    unpacked,
    reshaped,
    converted,
    in_a_loop,
    counted,
    in_place,
]


@pytest.mark.parametrize("first", VALUES)
@pytest.mark.parametrize("with_inputs", [False, True])
def test_what_a_size_decides_is_decided_in_each_run(
    first: Callable[[Any, Any], Any], with_inputs: bool
) -> None:
    model = ready(_module(first))
    fused = reparam.fuse(model, images(C)) if with_inputs else reparam.fuse(model)
    for network in (fused, copy.deepcopy(fused), reparam.fuse(fused)):
        for shape in ((1, C, 6, 6), (2, C, 9, 8), (3, C, 5, 7)):
            x = torch.randn(shape).double()
            assert relative_error(run(network, (x,)), run(model, (x,))) <= EXACT
            assert count_operators(network, (x,)).batch_norms == 0


# -- What is not taken out ------------------------------------------------------------------------


def fills_a_list(self: Any, x: Any) -> Any:
    kept = [x]
    if x.shape[0] > 1:
        kept.append(x * 2)
    return kept[-1]


def adds_to_a_list(self: Any, x: Any) -> Any:
    kept = [x]
    same = kept
    if x.shape[0] > 1:
        kept += [x * 2]
    return same[-1]


def fills_a_list_in_a_loop(self: Any, x: Any) -> Any:
    kept = [x]
    for number in x.shape:
        kept.append(x * number)
    return kept[-1]


def runs_a_part(self: Any, x: Any) -> Any:
    part = self.conv
    if x.shape[0] > 1:
        x = part(x)
    return x


def sets_an_attribute(self: Any, x: Any) -> Any:
    if x.shape[0] > 1:
        self.limit = x.shape[0]
    return x * self.limit


def catches(self: Any, x: Any) -> Any:
    try:
        if x.shape[0] > 1:
            raise ValueError
        x = x * 2
    except ValueError:
        x = x * 3
    return x


def without_a_value(self: Any, x: Any) -> Any:
    if x.shape[0] > 100:
        y = x
    if x.shape[0] > 100:
        x = y
    return x


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    "first",
    [
        fills_a_list,
        fills_a_list_in_a_loop,
        adds_to_a_list,
        runs_a_part,
        sets_an_attribute,
        catches,
        without_a_value,
    ],
)
def test_code_that_does_more_than_compute_stays(
    first: Callable[[Any, Any], Any], verify: bool
) -> None:
    model = ready(_module(first))
    fused = reparam.fuse(model, verify=verify)
    for shape in ((1, C, 6, 6), (3, C, 9, 8)):
        x = torch.randn(shape).double()
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


# -- The rest of what a model is used for ---------------------------------------------------------


class Several(ConvNorm):
    """Several statements, one within the other and of all kinds, in a method."""

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] != C:
            raise ValueError(f"{x.shape[1]} channels")
        h, w = x.shape[2:]
        assert min(h, w) > 2, "small"
        for rows in (4, 6):
            if h % rows:
                x = F.pad(x, (0, 0, 0, rows - h % rows))
            h = int(x.shape[2])
        y = self._joined(x if w % 2 == 0 or h > 6 else x * 2)
        if self.limit > 3:
            if y.shape[-1] > 4 and y.shape[0] > 1:  # noqa: SIM108
                y = F.max_pool2d(y, 2)
            else:
                y = y.relu()
        return y if y.ndim == 4 else y[None]


def test_several_statements_of_a_method() -> None:
    model = ready(Several())
    fused = reparam.fuse(model)
    for shape in ((1, C, 6, 6), (2, C, 9, 8), (3, C, 5, 7)):
        x = torch.randn(shape).double()
        assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
        assert count_operators(fused, (x,)).batch_norms == 0
    with pytest.raises(ValueError, match="5 channels"):
        fused(images(C + 1))


class Checked(nn.Module):
    """A block with a check and a choice, used twice, and once more by another one."""

    def __init__(self) -> None:
        super().__init__()
        self.block = PadsItself()
        self.other = nn.Sequential(PadsItself(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        summed: Tensor = self.block(self.block(x).relu()) + self.other(x)
        return summed


class PadsItself(ConvNorm):
    """With a check of a private attribute."""

    def forward(self, x: Tensor) -> Tensor:
        self.check(x)
        if x.shape[-1] % 2:
            x = F.pad(x, (0, 1))
        normalised: Tensor = self._joined(x)
        return normalised


def test_blocks_with_choices_are_copied_pickled_exported_and_trained() -> None:
    model, x = ready(Checked()), images(C)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).batch_norms == 0
    exact = run(model, (x,))
    program = torch.export.export(fused, (x,)).module()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # it decides for this size
        traced = torch.jit.trace(fused, (x,), check_trace=False)
    for network in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), program, traced):
        assert relative_error(run(network, (x,)), exact) <= EXACT
    with pytest.raises(ValueError, match="5 channels, not 4"):
        pickle.loads(pickle.dumps(fused))(images(5))
    fused(x).square().mean().backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())


def test_the_code_of_classes_is_as_before() -> None:
    code, checking = PadsItself.forward.__code__, ConvNorm.check.__code__
    reparam.fuse(ready(Checked()))
    assert PadsItself.forward.__code__ is code
    assert ConvNorm.check.__code__ is checking


class OwnNorm(nn.BatchNorm2d):
    """A norm that calls torch's own forward, which checks the number of axes."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x), 0.1)


def test_a_norm_that_calls_its_class_is_that_norm() -> None:
    model, x = ready(nn.Sequential(nn.Conv2d(C, C, 3), OwnNorm(C))), images(C)
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(fused, (x,)).batch_norms == 0
    with pytest.raises(ValueError, match="expected 4D input"):
        fused(x[0])


# -- Forwards that return early -------------------------------------------------------------------


class Early(ConvNorm):
    """Returns what it got if there is nothing in it, or little."""

    def forward(self, x: Tensor) -> Any:
        if x.numel() == 0:
            return x
        if x.shape[-1] < 5:
            y = x * 2
            return y.relu()
        normalised: Tensor = self._joined(x)
        return normalised


class EarlyPair(ConvNorm):
    """Returns a tuple either way."""

    def forward(self, x: Tensor) -> Any:
        if x.shape[-1] < 5:
            return x.new_ones(()), x
        return self._joined(x), x


class EarlyConv(nn.Module):
    """A convolution that is left out of small images."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(C, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 5:
            return x.new_zeros(x.shape)
        convolved: Tensor = self.conv(x)
        return convolved


class EarlyTwice(nn.Module):
    """A block that returns early, called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Early()

    def forward(self, x: Tensor) -> Tensor:
        twice: Tensor = self.block(self.block(x).relu())
        return twice


class EarlyInside(nn.Module):
    """Returns early around a part that does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.norm = EarlyConv(), nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 2:
            return x
        normalised: Tensor = self.norm(self.inner(x))
        return normalised


class EarlyInHelper(ConvNorm):
    """Its helper returns early, which is no end of its forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.helped(x) + 1

    def helped(self, x: Tensor) -> Tensor:
        if x.shape[-1] < 5:
            return x
        normalised: Tensor = self._joined(x)
        return normalised


class EarlyInBase(Early):
    """The forward of its base returns early, which is no end of its own."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = super().forward(x).relu() + 1
        return result


EARLY: dict[str, Callable[[], nn.Module]] = {
    "alone": Early,
    "a pair": EarlyPair,
    "between": lambda: nn.Sequential(nn.Conv2d(C, C, 1), Early(), nn.Conv2d(C, C, 1)),
    "a norm behind it": lambda: nn.Sequential(nn.Conv2d(C, C, 1), EarlyConv(), nn.BatchNorm2d(C)),
    "twice": EarlyTwice,
    "one in another": EarlyInside,
    "in a helper": EarlyInHelper,
    "in a base": EarlyInBase,
}


@pytest.mark.parametrize("name", EARLY)
@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_a_forward_that_returns_early_does_so(name: str, verify: bool, with_inputs: bool) -> None:
    model = ready(EARLY[name]())
    fused = reparam.fuse(model, images(C) if with_inputs else None, verify=verify)
    again = pickle.loads(pickle.dumps(fused))
    for network in (fused, copy.deepcopy(fused), reparam.fuse(fused), again):
        for shape in ((1, C, 6, 6), (3, C, 9, 8), (2, C, 4, 4), (0, C, 6, 6)):
            x = torch.randn(shape).double()
            assert relative_error(run(network, (x,)), run(model, (x,))) <= EXACT


@pytest.mark.parametrize("name", ["alone", "a pair", "between", "twice"])
def test_what_follows_an_early_return_joins(name: str) -> None:
    fused = reparam.fuse(ready(EARLY[name]()))
    assert count_operators(fused, (images(C),)).batch_norms == 0


def test_values_of_alike_names_are_told_apart() -> None:
    class Alike(ConvNorm):
        x_a = 3.0

        def forward(self, x: Tensor) -> Tensor:
            self_x, self_x_a = self, 2
            y: Tensor = x * (self.x_a if x.shape[0] > 0 and self_x.x_a > self_x_a else 5.0)
            x_size, x_size_0, size = x.shape, 7, x
            return self._joined(y if x.size(0) == x_size[0] and size.ndim < x_size_0 else x)

    model, x = ready(Alike()), images(C)
    fused = reparam.fuse(model, verify=False)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_a_variable_of_an_earlier_turn_is_not_lost() -> None:
    class Turns(ConvNorm):
        def forward(self, x: Tensor) -> Tensor:
            for turn in range(3):
                if x.shape[-1] > turn:
                    kept = x if turn == 0 else kept * 2  # noqa: F821
                    x = x + kept
            normalised: Tensor = self._joined(x)
            return normalised

    model, x = ready(Turns()), images(C)
    fused = reparam.fuse(model, verify=False)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
