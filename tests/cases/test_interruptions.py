"""Failing half-way leaves the user's model as it was, bit for bit, also in place."""

from __future__ import annotations

import builtins
import gc
import math
import random
import sys
import types
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.cases.checking import answers
from tests.refusals.checking import images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error
from tests.support.snapshot import Snapshot
from tests.support.thinning import thinned

C = 4


class Opaque(nn.Module):
    """A scale whose forward cannot be traced, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(C) + 0.5)
        self.register_buffer("steps", torch.zeros(()))
        self.seen: list[Any] = []

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.seen.append(x.shape)
        random.random()
        np.random.rand()
        if x.dim() != 4:
            raise ValueError("no images")
        return x * self.gamma[:, None, None]


class Block(nn.Module):
    """Branches whose forward gets new code."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.norm = nn.Conv2d(C, C, 1), nn.Conv2d(C, C, 1), nn.BatchNorm2d(C)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.a(x) + self.b(x)).relu()


class Counting(Block):
    """The same with a counter, so that its code stays, and with it its batch norm."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


def network() -> nn.Module:
    pair = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    return ready(nn.Sequential(Block(), Opaque(), pair, nn.ReLU(), Block(), Counting()))


def scale(module: Any, x: Any) -> Any:
    return x.scale(module.gamma)


RULES = {Opaque: scale}

POINTS = [
    "reparam.fusing.driver.find_parts",
    "reparam.verification.model_check._results",
    "reparam.analysis.parts.trace_forward",
    "reparam.analysis.parts.gather",
    "reparam.analysis.parts.lift",
    "reparam.planning.planned_parts.decide",
    "reparam.analysis.parts.record_shapes",
    "reparam.capture.tracer.bound",
    "reparam.capture.tracing_attempts._simplify_output",
    "reparam.fusing.applying.LateCopy",
    "reparam.fusing.new_operators.lower",
    "reparam.fusing.new_operators.take_after",
    "reparam.fusing.new_operators.compared",
    "reparam.fusing.applying.rewrite",
    "reparam.fusing.applying.graft",
    "reparam.fusing.applying.fused_row",
    "reparam.rewriting.grafting.FusedForward",
    "reparam.rewriting.grafting._Graft._attach",
    "reparam.rewriting.grafting.prune",
    "torch.fx.Tracer.trace",
    "torch.nn.Module.__setattr__",
]
PROBLEMS = [KeyboardInterrupt, MemoryError, torch.OutOfMemoryError, RecursionError]


def fail(monkeypatch: pytest.MonkeyPatch, point: str, call: int, problem: Any) -> list[int]:
    """Let a function raise when it is called for the n-th time, after it did its work."""
    first, *path, name = point.split(".")
    holder: Any = sys.modules[first]
    for part in path:
        holder = getattr(holder, part)
    original, calls = getattr(holder, name), [0]

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        result = original(*args, **kwargs)
        if calls[0] == call:
            raise problem("half-way")
        return result

    if isinstance(original, type):
        failing = type(name, (original,), {"__init__": None})  # replaced below

        def initialised(self: Any, *args: Any, **kwargs: Any) -> None:
            calls[0] += 1
            original.__init__(self, *args, **kwargs)
            if calls[0] == call:
                raise problem("half-way")

        failing.__init__ = initialised  # type: ignore[misc]
    monkeypatch.setattr(holder, name, failing)
    return calls


def assert_as_before(model: nn.Module, before: Snapshot, expected: Any, x: Tensor) -> None:
    before.assert_unchanged()
    fused = reparam.fuse(model, rules=RULES)
    assert relative_error(answers(fused, x), expected) <= 1e-9
    assert count_operators(fused, (x,)).batch_norms == 1
    assert relative_error(answers(model, x), expected) == 0


@pytest.mark.parametrize(
    ("point", "call", "inplace"), thinned(product(POINTS, (1, 2, 3), (False, True)), 5)
)
def test_an_interruption_leaves_the_model_alone(
    point: str, call: int, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C during deepcopy, lowering, grafting or verification."""
    model, x = network(), images()
    expected, before = answers(network_like(model), x), Snapshot(model)
    with monkeypatch.context() as patch:
        calls = fail(patch, point, call, KeyboardInterrupt)
        if point.endswith("__setattr__"):
            calls[0] = -(4 ** (call + 1))  # not the very first ones
        try:
            fused = reparam.fuse(model, x, inplace=inplace, rules=RULES)
        except KeyboardInterrupt:
            fused = None
    if fused is None:
        assert_as_before(model, before, expected, x)
    else:  # the point was not reached so often
        assert calls[0] < call
        assert relative_error(answers(fused, x), expected) <= 1e-9


def network_like(model: nn.Module) -> nn.Module:
    twin = network()
    twin.load_state_dict(model.state_dict())
    return twin


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.__name__)
@pytest.mark.parametrize(
    "point",
    [
        "new_operators.lower",
        "new_operators.take_after",
        "new_operators.compared",
        "applying.graft",
        "applying.rewrite",
    ],
)
def test_running_out_of_memory_leaves_the_model_alone(
    point: str, problem: Any, inplace: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory while the new weights are made."""
    model, x = network(), images()
    expected, before = answers(network_like(model), x), Snapshot(model)
    with monkeypatch.context() as patch:
        fail(patch, f"reparam.fusing.{point}", 2, problem)
        try:
            fused = reparam.fuse(model, inplace=inplace, rules=RULES)
        except problem:
            fused = None
    if fused is None:
        assert_as_before(model, before, expected, x)
    else:  # a region that could not be verified is left alone
        assert relative_error(answers(fused, x), expected) <= 1e-9


@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
@pytest.mark.parametrize(
    "problem", [KeyboardInterrupt, MemoryError, ZeroDivisionError, reparam.ReparamError]
)
@pytest.mark.parametrize("call", [1, 2])
def test_an_exception_in_a_users_rule_leaves_the_model_alone(
    problem: Any, call: int, inplace: bool
) -> None:
    """A user's rule may raise anything, when it is asked or when its weights are computed."""
    model, x, calls = network(), images(), [0]
    expected, before = answers(network_like(model), x), Snapshot(model)

    def rule(module: Any, x: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise problem("in a rule")
        return x.scale(module.gamma)

    try:
        fused = reparam.fuse(model, x, inplace=inplace, rules={Opaque: rule})
    except KeyboardInterrupt:
        assert_as_before(model, before, expected, x)
        return
    assert problem is not KeyboardInterrupt or calls[0] < call
    assert relative_error(answers(fused, x), expected) <= 1e-9
    raised = [row for row in fused.reparam_report.refused if "raised" in row.reason]
    assert len(raised) == (calls[0] >= call)


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line of the library's own code."""

    def __init__(self, stop: int) -> None:
        self.stop, self.lines, self.raised = stop, 0, False

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if "/reparam/" not in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines += 1
            if self.lines >= self.stop > 0 and not self.raised and not self._cleans_up(frame):
                self.raised = True
                raise KeyboardInterrupt
        return self

    @staticmethod
    def _cleans_up(frame: types.FrameType) -> bool:
        """Whether the library is putting something back: that runs to its end."""
        above: types.FrameType | None = frame
        while above is not None:
            code = above.f_code
            if code.co_name in ("__exit__", "restore", "_refill", "all_or_nothing"):
                return True
            above = above.f_back
        return False


def lines_of(function: Callable[[], Any], stop: int) -> Interrupter:
    interrupter = Interrupter(stop)
    before = sys.gettrace()
    sys.settrace(interrupter)
    try:
        function()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(before)
    return interrupter


@pytest.mark.parametrize("stops", [10, pytest.param(40, marks=pytest.mark.corpus)])
@pytest.mark.parametrize("inplace", [False, True], ids=["copy", "in place"])
def test_an_interruption_anywhere_leaves_the_model_alone(inplace: bool, stops: int) -> None:
    """Ctrl-C at some lines of the library, from the first to the last."""
    x = images()
    for _ in range(2):  # the first time it also fills caches
        whole = lines_of(lambda: reparam.fuse(network(), x, rules=RULES, inplace=inplace), -1)
    total = whole.lines
    for stop in range(1, total, total // stops):
        model = network()
        expected, before = answers(network_like(model), x), Snapshot(model)
        done = lines_of(lambda m=model: reparam.fuse(m, x, rules=RULES, inplace=inplace), stop)
        assert done.raised or stop > 0.9 * total
        if inplace and (not done.raised or hasattr(model, "reparam_report")):  # all was done
            assert relative_error(answers(model, x), expected) <= 1e-9
            assert count_operators(model, (x,)).batch_norms == 1
        else:
            assert_as_before(model, before, expected, x)


def test_an_interruption_while_a_module_copies_itself() -> None:
    """A `__deepcopy__` of a user's module that raises."""

    class Uncopyable(Block):
        def __deepcopy__(self, memo: Any) -> Any:
            raise KeyboardInterrupt

    model = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Uncopyable()))
    before = Snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        reparam.fuse(model)
    before.assert_unchanged()


def is_real(x: Any) -> bool:
    return x.__class__ in (Tensor,)


@pytest.mark.parametrize("problem", [KeyboardInterrupt, SystemExit, GeneratorExit])
@pytest.mark.parametrize("example_inputs", [False, True])
def test_an_interruption_inside_of_a_forward(problem: Any, example_inputs: bool) -> None:
    """Ctrl-C while the user's own code is traced, or runs on the example inputs."""

    class Interrupted(Opaque):
        def forward(self, x: Tensor) -> Tensor:
            self.seen.append(len(self.seen))
            torch.rand(())
            self.steps.add_(1)
            if not example_inputs or is_real(x):
                raise problem
            return super().forward(x)

    model = ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Interrupted()))
    before = Snapshot(model)
    with pytest.raises(problem):
        reparam.fuse(model, images() if example_inputs else None)
    before.assert_unchanged()


class Plain(Block):
    """A block whose forward calls what torch.fx wraps, and moves what it holds."""

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x) * math.sqrt(4)


UNDOING = (
    "reparam/", "torch/fx/_symbolic_trace.py", "contextlib.py", "torch/utils/_python_dispatch.py",
    "torch/autograd/grad_mode.py",
)  # fmt: skip
UNDOES = {
    "__exit__", "put_back", "revert", "revert_all_patches", "_new_patcher", "fulfil", "fulfil_all",
    "forget", "_leave_modes", "_refill", "answering_for_proxies", "_answering_builtins",
    "as_leaves", "_noticing", "undisturbed", "all_or_nothing", "close", "_unwrap",
}  # fmt: skip


class InterrupterOfUndoing:
    """Raises KeyboardInterrupt when a line runs while something is put back; lists these lines."""

    def __init__(self, stop: tuple[str, int] | None = None) -> None:
        self.stop, self.raised = stop, False
        self.lines: dict[tuple[str, int], None] = {}

    def __call__(self, frame: types.FrameType, event: str, argument: Any) -> Any:
        if event == "call":
            return self if self._undoes(frame) else None
        if event == "line":
            line = frame.f_code.co_filename, frame.f_lineno
            self.lines[line] = None
            if line == self.stop and not self.raised:
                self.raised = True
                raise KeyboardInterrupt
        return self

    @staticmethod
    def _undoes(frame: types.FrameType) -> bool:
        """Whether a frame puts something back, or is called by one that does."""
        if not any(place in frame.f_code.co_filename for place in UNDOING):
            return False
        above: types.FrameType | None = frame
        while above is not None and above.f_code.co_name not in UNDOES:
            above = above.f_back
        return above is not None

    def run(self, function: Callable[[], Any]) -> InterrupterOfUndoing:
        before = sys.gettrace()
        sys.settrace(self)
        try:
            function()
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(before)
        return self


def process() -> dict[str, Any]:
    """What everything in this process relies on."""
    dispatch = torch.utils._python_dispatch
    places: list[tuple[Any, str]] = [
        *((nn.Module, name) for name in ("__call__", "__getattr__", "register_forward_hook")),
        *((builtins, name) for name in ("isinstance", "zip")),
        *((torch, name) for name in ("zeros", "arange", "tensor")),
        *((kind, "__enter__") for kind in (torch.autocast, torch.no_grad, torch.inference_mode)),
        (torch.set_grad_enabled, "__init__"),
        (math, "sqrt"),
        (torch.fx._symbolic_trace, "_is_fx_tracing_flag"),
    ]
    seen: dict[str, Any] = {f"{owner}.{name}": getattr(owner, name) for owner, name in places}
    seen["gradients"] = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    seen["modes"] = len(dispatch._get_current_dispatch_mode_stack())
    seen["flags"] = {n: v for n, v in vars(dispatch).items() if n.startswith("_is_in_")}
    seen["garbage"] = gc.isenabled()
    return seen


# What was suspended in torch.fx ends when it is collected, after all was put back.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.corpus)])
def test_an_interruption_while_things_are_put_back_leaves_torch_whole(every: int) -> None:
    """Ctrl-C at each line of what puts torch and Python back, or at some."""

    def network() -> nn.Module:
        return ready(nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), Plain()))

    x, model = images(), network()
    InterrupterOfUndoing().run(lambda: reparam.plan(model, x))  # it also fills caches
    lines = InterrupterOfUndoing().run(lambda: reparam.plan(model, x)).lines
    assert len(lines) > 100
    whole = process()
    for line in list(lines)[::every]:
        done = InterrupterOfUndoing(line).run(lambda: reparam.plan(model, x))
        assert done.raised, line
        assert process() == whole, line
    assert len(reparam.plan(model, x).fused) == 1
