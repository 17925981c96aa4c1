"""What one module returns goes to the next one alone, in whichever words code says so."""

from __future__ import annotations

import linecache
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from reparam.capture.reading import runs_as_one

JOINED = {
    "one expression": "return self.b(self.a(x))",
    "inside another": "return helper(self.b(self.a(x)).relu() + 1)",
    "statements": "y = self.a(x)\nz = self.b(y)\nreturn z",
    "statements apart": "y = self.a(x)\nother = x + 1\nreturn self.b(y) * other",
    "a typed name": "y: object = self.a(x)\nreturn self.b(y)",
    "two names at once": "y, z = self.a(x), x\nreturn self.b(y) + z",
    "a name in an expression": "return self.b(y := self.a(x))",
    "one of two": "return self.b(self.a(x) if flag else self.a(-x))",
    "both branches": "if flag:\n    y = self.a(x)\nelse:\n    y = self.a(-x)\nreturn self.b(y)",
    "one branch": "if flag:\n    return self.b(self.a(x))\nreturn x",
    "a loop": "for _ in range(3):\n    x = self.b(self.a(x))\nreturn x",
    "a loop in statements": "for _ in range(3):\n    y = self.a(x)\n    x = self.b(y)\nreturn x",
    "no gradients": "with torch.no_grad():\n    y = self.a(x)\n    y = self.b(y)\nreturn y",
    "twice": "return self.b(self.a(x)) + self.b(self.a(-x))",
    "taken twice": "y = self.a(x)\nreturn self.b(y) + self.b(y)",
    "caught": "try:\n    return self.b(self.a(x))\nexcept RuntimeError:\n    return x",
    "deleted": "y = self.a(x)\nz = self.b(y)\ndel y\nreturn z",
    "matched": "match flag:\n    case True:\n        return self.b(self.a(x))\nreturn x",
}

JOINED_BESIDE_NAMES = {
    "other names": "for n in ('c', 'd'):\n    x = getattr(self, n)(x)\nreturn self.b(self.a(x))",
    "some of other names": (
        "names = ('c', 'd')\nif flag:\n    names = names[:1]\n"
        "for i, n in enumerate(names):\n    x = getattr(self, n)(x)\nreturn self.b(self.a(x))"
    ),
    "names that begin otherwise": (
        "for i in range(3):\n    x = getattr(self, f'layer{i}')(x)\nreturn self.b(self.a(x))"
    ),
    "a test for another": "if hasattr(self, 'c'):\n    x = -x\nreturn self.b(self.a(x))",
}

APART_BY_NAMES = {
    "its name": "y = self.b(self.a(x))\nreturn getattr(self, 'a')(x)",
    "a beginning of its name": "y = self.b(self.a(x))\nreturn getattr(self, f'a{flag}')(x)",
    "any name": "y = self.b(self.a(x))\nreturn getattr(self, flag)(x)",
    "a name from elsewhere": "y = self.b(self.a(x))\nn = self.names[0]\nreturn getattr(self, n)(x)",
    "a name that was changed": (
        "n = 'c'\nn += ''\ny = self.b(self.a(x))\nreturn getattr(self, n)(x)"
    ),
    "one of its names": (
        "for n in ('c', 'b'):\n    x = getattr(self, n)(x)\nreturn self.b(self.a(x))"
    ),
}

APART = {
    "read between": "y = self.a(x)\nprint(y)\nreturn self.b(y)",
    "also returned": "y = self.a(x)\nreturn y, self.b(y)",
    "changed between": "y = self.a(x)\ny += 1\nreturn self.b(y)",
    "changed in place": "y = self.a(x)\ny.mul_(2)\nreturn self.b(y)",
    "a function between": "return self.b(self.a(x).relu())",
    "kept": "self.kept = self.a(x)\nreturn self.b(self.kept)",
    "in a list": "y = [self.a(x)]\nreturn self.b(y[0])",
    "the second alone": "return self.b(self.a(x) if flag else x)",
    "the second again": "return self.b(self.b(self.a(x)))",
    "the first alone": "y = self.a(x)\nreturn self.b(y) if flag else y",
    "one branch": "y = x\nif flag:\n    y = self.a(x)\nreturn self.b(y)",
    "the weight": "return self.b(self.a(x)) * self.a.weight.sum()",
    "another name": "first = self.a\nreturn self.b(first(x))",
    "the module handed on": "helper(self)\nreturn self.b(self.a(x))",
    "another module": "return helper.a(x) + self.b(self.a(x))",
    "a base class": "return super().forward(x) + self.b(self.a(x))",
    "a keyword": "return self.b(input=self.a(x))",
    "a loop that stops": (
        "for _ in x:\n    x = self.a(x)\n    if flag:\n        break\n    x = self.b(x)\nreturn x"
    ),
    "a loop around": "for _ in x:\n    x = self.b(x)\n    x = self.a(x)\nreturn x",
    "exceptions in between": (
        "try:\n    x = self.a(x)\n    x = self.b(x)\nexcept E:\n    pass\nreturn x"
    ),
    "a context that catches": "with helper():\n    x = self.a(x)\n    x = self.b(x)\nreturn x",
    "a function of its own": "y = self.a(x)\nf = lambda: y\nreturn self.b(y), f",
    "a comprehension": "y = self.a(x)\nz = [y for _ in x]\nreturn self.b(y), z",
    "everything it has": "y = self.a(x)\nhelper(locals())\nreturn self.b(y)",
    "a global name": "global y\ny = self.a(x)\nhelper()\nreturn self.b(y)",
    "another order": "return self.a(self.b(x))",
    "only one": "return self.a(x)",
    "bound by a pattern": "y = self.a(x)\nmatch flag:\n    case y:\n        pass\nreturn self.b(y)",
    "bound by a function": "y = self.a(x)\ndef y():\n    pass\nreturn self.b(y)",
    "bound by an import": "y = self.a(x)\nimport torch as y\nreturn self.b(y)",
    "bound by an exception": (
        "y = self.a(x)\ntry:\n    print(x)\nexcept E as y:\n    x = self.b(y)\nreturn self.b(y)"
    ),
    "matched": "y = self.a(x)\nmatch y:\n    case 1:\n        pass\nreturn self.b(y)",
}


class Base(nn.Module):
    def forward(self, x: Any) -> Any:
        return x


def module_running(code: str) -> nn.Module:
    """A module with a method of some code."""
    body = "".join(f"        {line}\n" for line in code.splitlines())
    source = f"class Example(Base):\n    def run(self, x, flag=False):\n{body}"
    place = f"<example {abs(hash(code))}>"
    linecache.cache[place] = (len(source), None, source.splitlines(keepends=True), place)
    names: dict[str, Any] = {"Base": Base, "torch": torch, "E": RuntimeError, "helper": print}
    exec(compile(source, place, "exec"), names)
    kind: Callable[[], nn.Module] = names["Example"]
    return kind()


@pytest.mark.parametrize(
    "code", (JOINED | JOINED_BESIDE_NAMES).values(), ids=JOINED | JOINED_BESIDE_NAMES
)
def test_the_second_takes_all_that_the_first_returns(code: str) -> None:
    assert runs_as_one(module_running(code), "run", ["a", "b"])


@pytest.mark.parametrize("code", (APART | APART_BY_NAMES).values(), ids=APART | APART_BY_NAMES)
def test_somebody_else_takes_it_or_gives_it(code: str) -> None:
    assert not runs_as_one(module_running(code), "run", ["a", "b"])


def test_three_in_turn() -> None:
    module = module_running("y = self.b(self.a(x))\nreturn self.c(y)")
    assert runs_as_one(module, "run", ["a", "b", "c"])
    assert not runs_as_one(module, "run", ["a", "c"])


def test_code_that_is_not_at_hand() -> None:
    names: dict[str, Any] = {"Base": Base}
    exec("class Example(Base):\n    def run(self, x):\n        return self.b(self.a(x))", names)
    assert not runs_as_one(names["Example"](), "run", ["a", "b"])
    assert not runs_as_one(Base(), "missing", ["a", "b"])
