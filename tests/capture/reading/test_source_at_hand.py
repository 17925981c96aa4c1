"""Code whose source is not at hand, or says something else than what runs, is not read."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from reparam.capture.reading import definition, syntax_tree
from tests.refusals.checking import EXACT, images, ready
from tests.support.errors import relative_error, run

SOURCE = '''
import torch
import torch.nn.functional as F
from torch import nn


class Pads(nn.Module):
    """Pads where a size needs it, which only a run decides."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        pad = x.size(-1) % 2
        if pad > 0:
            x = F.pad(x, [0, pad, 0, 0])
        return self.last(self.norm(self.conv(x)).relu())


class Catches(Pads):
    def forward(self, x):
        try:
            if x.size(-1) % 2:
                raise ValueError("odd")
        except ValueError:
            x = x[..., :-1]
        return super().forward(x)
'''

EDITS: dict[str, Callable[[str], str]] = {
    "another operator": lambda text: text.replace(".relu())", ".relu()) * 5"),
    "another number": lambda text: text.replace("[0, pad, 0, 0]", "[0, pad, 1, 0]"),
    "the other way round": lambda text: text.replace("self.norm(self.conv(x))", "self.norm(x)"),
    "other lines": lambda text: text.replace("        if pad > 0:\n", "        if pad < 0:\n"),
    "shorter": lambda text: text[: len(text) // 3],
    "no Python": lambda text: text + "\n)",
    "nothing": lambda text: "",
}


def assert_right(kind: Any, sizes: tuple[int, ...] = (8, 7)) -> Any:
    model = ready(kind())
    for example_inputs in (None, images(), torch.randn(2, 4, 6, 7, dtype=torch.float64)):
        fused = reparam.fuse(model, example_inputs)
        for size in sizes:
            x = torch.randn(2, 4, 6, size, dtype=torch.float64)
            assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    return fused


@pytest.mark.parametrize("name", ["Pads", "Catches"])
def test_code_without_source_is_left_alone(name: str) -> None:
    """As of ``python -``, ``python -c`` and a file of compiled code only."""
    variables: dict[str, Any] = {"__name__": "made_up"}
    exec(compile(SOURCE, "<nowhere>", "exec"), variables)
    assert definition(variables[name].forward) is None
    assert_right(variables[name])
    reparam.plan(ready(variables[name]()))
    reparam.equalize(ready(variables[name]()))


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    path = tmp_path / "edited_later.py"
    path.write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    yield importlib.import_module(path.stem)
    del sys.modules[path.stem]


@pytest.mark.parametrize("edit", EDITS)
def test_code_whose_file_was_edited_is_what_runs(edit: str, module: ModuleType) -> None:
    path = Path(str(module.__file__))
    path.write_text(EDITS[edit](SOURCE), encoding="utf-8")
    os.utime(path, (1, 1))  # another time than that at which it was imported
    assert_right(module.Pads)


def test_code_whose_file_is_as_it_was_is_read(module: ModuleType) -> None:
    fused = assert_right(module.Pads)
    assert isinstance(fused.norm, nn.Identity)
    for kind in (module.Pads, module.Catches):
        assert definition(kind.forward) is not None


def test_code_whose_file_is_gone_is_left_alone(module: ModuleType) -> None:
    Path(str(module.__file__)).unlink()
    assert_right(module.Pads)


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def around(__hidden: int) -> type:
    free = 3

    class Holder(nn.Module):
        """Names that are private, free and of a class around; decorators and defaults."""

        @decorated
        def forward(self, x: Any, *rest: Any, scale: float = 2.0) -> Any:
            """Documented."""
            self.__private = [value * free + __hidden for value in rest]

            def inner() -> Any:
                return super(__class__, self), scale, self.__private

            return inner()

        async def waits(self) -> Any:
            return free

    return Holder


def calls_itself(times: int) -> int:
    return calls_itself(times - 1) if times else 0


def test_source_is_that_of_a_function_that_calls_itself() -> None:
    assert definition(calls_itself) is not None
    assert definition(torch._assert) is not None


@pytest.mark.parametrize("name", ["forward", "waits"])
def test_source_is_that_of_the_code_in_whatever_place_it_stands(name: str) -> None:
    function = vars(around(1))[name]
    assert definition(function) is not None
    assert syntax_tree(function.__code__) is not None
