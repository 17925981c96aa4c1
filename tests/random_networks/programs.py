"""Random networks as readable source: one can print them, run them, and drop lines from them."""

import linecache
import random
import re
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.random_networks import vocabulary
from tests.support.randomise import randomise_batch_norm

NAMES: dict[str, Any] = {name: getattr(vocabulary, name) for name in vocabulary.__all__}

OPTIONS = {
    "mask": ("None", "torch.tensor(0.5)"),
    "residual": ("None", "torch.tensor(0.3)"),
    "flag": ("False", "True"),
    "scale": ("1.0", "0.5"),
    "size": ("None", "4"),
}
"""Settings of a `forward`: what they are by default, and what somebody may say instead."""


@dataclass(frozen=True)
class ModuleSource:
    """The source of one module class, line by line."""

    name: str
    inputs: tuple[str, ...]
    attributes: tuple[str, ...]
    steps: tuple[str, ...]
    result: str
    features: str = ""
    """The value at which a `forward_features` ends, if the module has one."""
    apart: bool = False
    """Whether `forward` repeats what its two halves do, rather than to call them."""

    def source(self) -> str:
        attributes = "".join(f"        {line}\n" for line in self.attributes)
        methods = "\n".join(
            f"    def {name}(self, {', '.join(inputs)}):\n"
            f"{''.join(f'        {line}{chr(10)}' for line in steps)}"
            f"        return {result}\n"
            for name, inputs, steps, result in self.methods()
        )
        return (
            f"class {self.name}(nn.Module):\n"
            f"    def __init__(self):\n        super().__init__()\n{attributes}\n{methods}"
        )

    def methods(self) -> list[tuple[str, Sequence[str], Sequence[str], str]]:
        """The name, the inputs, the steps and the result of each method."""
        whole = ("forward", self.inputs, self.steps, self.result)
        halves = self.halves()
        if halves is None:
            return [whole]
        first, passed, last = halves
        options = [text for text in self.inputs if "=" in text and text.split("=")[0] not in passed]
        methods = [
            ("forward_features", self.inputs, first, ", ".join(passed)),
            ("forward_head", [*passed, *options], last, self.result),
        ]
        if not self.apart:
            given = ", ".join(text.partition("=")[0] for text in self.inputs)
            between = f"{', '.join(passed)} = self.forward_features({given})"
            rest = ", ".join([*passed, *(text.partition("=")[0] for text in options)])
            whole = ("forward", self.inputs, [between], f"self.forward_head({rest})")
        return [*methods, whole]

    def halves(self) -> tuple[tuple[str, ...], list[str], tuple[str, ...]] | None:
        """The steps of `forward_features`, what it returns, and the steps behind it."""
        ends = [i for i, line in enumerate(self.steps) if line.startswith(f"{self.features} = ")]
        if not self.features or not ends:
            return None
        first, last = self.steps[: ends[0] + 1], self.steps[ends[0] + 1 :]
        values = r"\bv\d+\b"
        made = {*re.findall(values, f"{self.inputs} {first}")}
        read = re.findall(values, f"{last} {self.result}")
        passed = [name for name in dict.fromkeys(read) if name in made]
        return (first, passed, last) if passed else None

    def options(self) -> list[str]:
        """The names of the settings, which may be left out."""
        names = [text.partition("=")[0] for text in self.inputs if "=" in text]
        return [name for name in names if name in OPTIONS]

    def without_unused_attributes(self) -> "ModuleSource":
        kept: list[str] = []
        text = "\n".join(self.steps) + self.result
        for line in reversed(self.attributes):
            name = line.partition(" = ")[0].removeprefix("self.").partition(".")[0]
            if re.search(rf"self\.{name}\b", text):
                kept.append(line)
                text += line.partition(" = ")[2]
        return replace(self, attributes=tuple(reversed(kept)))

    def without_unread_steps(self) -> "ModuleSource":
        """The same module without the values that nobody reads, changes or returns."""
        kept: list[str] = []
        text = self.result
        for line in reversed(self.steps):
            assigned = re.fullmatch(r"(v\d+) = (.*)", line)
            reads = set(re.findall(r"\bv\d+\b", text))
            changes = assigned is None or re.search(r"_\(|inplace", assigned[2])
            if changes or assigned is None or assigned[1] in reads:
                kept.append(line)
                text += line
        return replace(self, steps=tuple(reversed(kept)))

    def shorter(self) -> Iterator["ModuleSource"]:
        """The same module with one step less or with a simpler result."""
        if self.features:
            yield replace(self, features="")
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
    container: str = ""
    """Whether the inputs arrive in a "list" or a "dict"."""
    optional: bool = False
    """Whether the last input may be left out."""

    def __str__(self) -> str:
        classes = "\n\n".join(module.source() for module in self.modules)
        shapes = [f"torch.randn{shape}" for shape in self.input_shapes]
        inputs = f"({''.join(f'{shape}, ' for shape in shapes)})"
        if self.container:
            inputs = f"([{', '.join(shapes)}],)"
        if self.container == "dict":
            inputs = f"(dict(zip('ab', {inputs[1:-2]})),)"
        name = self.modules[-1].name
        return (
            f"from tests.random_networks.vocabulary import *\n\n\n{classes}\n"
            f"# seed {self.seed}{', with and without the last input' if self.optional else ''}\n"
            f"model, inputs = {name}().eval(), {inputs}\n"
        )

    def build(self) -> nn.Module:
        """The network in evaluation mode, with randomised batch norms and scales."""
        names = vars(self.classes())
        # without gradients: else what pruning computes of a weight could not be copied
        with seeded(self.seed), torch.no_grad():
            model: nn.Module = names[self.modules[-1].name]().eval()
            randomise_batch_norm(model, self.seed, self.calls()[0])
        for recorder in recorders(model).values():
            recorder.seen.clear()
        return model

    def classes(self) -> types.ModuleType:
        """A Python module that holds the classes; `inspect` and `pickle` find it as any other."""
        home = types.ModuleType(f"random_network_{self.seed}")
        home.__file__ = f"{home.__name__}.py"
        text = str(self).partition("# seed")[0]
        linecache.cache[home.__file__] = (len(text), None, text.splitlines(True), home.__file__)
        sys.modules[home.__name__] = home
        exec(compile(text, home.__file__, "exec"), vars(home))
        return home

    def forget(self) -> None:
        """Removes the Python module of the classes."""
        name = f"random_network_{self.seed}"
        sys.modules.pop(name, None)
        linecache.cache.pop(f"{name}.py", None)

    def inputs(self) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(torch.randn(shape, generator=generator) for shape in self.input_shapes)

    def calls(self, dtype: torch.dtype = torch.float32) -> list[tuple[Any, ...]]:
        """The arguments of each way to call the network."""
        inputs = tuple(x.to(dtype) for x in self.inputs())
        return [self.packed(inputs), inputs[:-1]] if self.optional else [self.packed(inputs)]

    def packed(self, inputs: Sequence[Tensor]) -> tuple[Any, ...]:
        """The arguments that carry these inputs."""
        if self.container == "list":
            return (list(inputs),)
        if self.container == "dict":
            return (dict(zip("ab", inputs, strict=False)),)
        return tuple(inputs)

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


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Starts the random numbers of torch, numpy and Python; puts back where they were."""
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()
    torch.default_generator.manual_seed(seed)  # `torch.manual_seed` takes a tenth of the time
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])


def recorders(model: nn.Module) -> dict[str, vocabulary.Recorder]:
    """The hooks of a network that keep what they see, by the place of their module."""
    return {
        name: hook
        for name, module in model.named_modules(remove_duplicate=False)
        for hook in module._forward_hooks.values()
        if isinstance(hook, vocabulary.Recorder)
    }


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
            for call in program.calls():
                program.build()(*call)
    except Exception:
        return False
    return True
