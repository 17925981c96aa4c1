"""Random networks as readable source: one can print them, run them, and drop lines from them."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tests.support import vocabulary
from tests.support.randomise import randomise_batch_norm

NAMES: dict[str, Any] = {name: getattr(vocabulary, name) for name in vocabulary.__all__}


@dataclass(frozen=True)
class ModuleSource:
    """The source of one module class, line by line."""

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    steps: tuple[str, ...]
    result: str

    def source(self) -> str:
        attributes = "".join(f"        {line}\n" for line in self.attributes)
        steps = "".join(f"        {line}\n" for line in self.steps)
        return (
            f"class {self.name}(nn.Module):\n"
            f"    def __init__(self):\n        super().__init__()\n{attributes}\n"
            f"    def forward(self, {', '.join(self.inputs)}):\n{steps}"
            f"        return {self.result}\n"
        )

    def without_unused_attributes(self) -> "ModuleSource":
        kept: list[str] = []
        text = "\n".join(self.steps) + self.result
        for line in reversed(self.attributes):
            name = line.partition(" = ")[0].removeprefix("self.").partition(".")[0]
            if re.search(rf"self\.{name}\b", text):
                kept.append(line)
                text += line.partition(" = ")[2]
        return replace(self, attributes=tuple(reversed(kept)))

    def shorter(self) -> Iterator["ModuleSource"]:
        """The same module with one step less or with a simpler result."""
        for value in re.findall(r"\bv\d+\b", self.result):
            if self.result != value:
                yield replace(self, result=value)
        for index, line in enumerate(self.steps):
            before, after = self.steps[:index], self.steps[index + 1 :]
            assigned = re.match(r"(v\d+) = (.*)", line)
            if assigned is None:
                yield replace(self, steps=before + after)
                continue
            target = re.compile(rf"\b{assigned[1]}\b")
            for read in dict.fromkeys(re.findall(r"\bv\d+\b", assigned[2])):
                renamed = tuple(target.sub(read, text) for text in after)
                yield replace(self, steps=before + renamed, result=target.sub(read, self.result))


@dataclass(frozen=True)
class Program:
    """Module classes, the last of which is the network, and the shapes of its inputs."""

    modules: tuple[ModuleSource, ...]
    input_shapes: tuple[tuple[int, ...], ...]
    seed: int

    def __str__(self) -> str:
        classes = "\n\n".join(module.source() for module in self.modules)
        inputs = ", ".join(f"torch.randn{shape}" for shape in self.input_shapes)
        return (
            f"from tests.support.vocabulary import *\n\n\n{classes}\n"
            f"model, inputs = {self.modules[-1].name}().eval(), [{inputs}]"
            f"  # seed {self.seed}\n"
        )

    def build(self) -> nn.Module:
        """The network in evaluation mode, with randomised batch norms and scales."""
        names = dict(NAMES)
        for module in self.modules:
            exec(module.source(), names)
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            model: nn.Module = names[self.modules[-1].name]().eval()
        return randomise_batch_norm(model, self.seed, self.inputs())

    def inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(torch.randn(shape, generator=generator) for shape in self.input_shapes)

    def shorter(self) -> Iterator["Program"]:
        for index, module in enumerate(self.modules):
            for shorter in module.shorter():
                modules = [*self.modules]
                modules[index] = shorter
                yield replace(self, modules=tuple(modules)).without_unused()

    def without_unused(self) -> "Program":
        modules: list[ModuleSource] = []
        text = ""
        for module in reversed(self.modules):
            if not modules or re.search(rf"\b{module.name}\(", text):
                modules.append(module.without_unused_attributes())
                text += modules[-1].source()
        return replace(self, modules=tuple(reversed(modules)))


def shrink(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Drops steps as long as the program still runs and `fails` stays true of it."""
    for shorter in program.shorter():
        if runs(shorter) and fails(shorter):
            return shrink(shorter, fails)
    return program


def runs(program: Program) -> bool:
    """Whether the network is built and computes."""
    try:
        with torch.no_grad():
            program.build()(*program.inputs())
    except Exception:
        return False
    return True
