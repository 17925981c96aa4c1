"""Makers of code that asks what it got, has options, draws, remembers, observes or shares."""

from collections.abc import Callable

from tests.random_networks.questions import FACTS, KINDS, MODES
from tests.random_networks.scope import RejectedError, Scope
from tests.random_networks.steps import IMAGES, call, convolution_layer, normalised

PLACES = ("{0}", "{0}", "Residual({0})", "nn.Sequential({0}, nn.ReLU())", "SignDependent({0})")
"""Where a module stands, as far as its size stays the same."""


def in_block(s: Scope, x: str, fill: Callable[[Scope, str], str]) -> str:
    """A step in a class of its own, mostly: what cannot be traced leaves the rest alone then."""
    if s.depth or s.chance(0.25):
        return fill(s, x)
    inner = Scope(s.rng, [s.values[x].clone()], s.modules, s.depth + 1)
    result = fill(inner, inner.inputs[0])
    name = f"Block{len(s.modules)}"
    s.modules.append(inner.close(name, result))
    return s.assign(f"{s.attribute(f'{name}()')}({x})")


def question(s: Scope) -> str:
    """One of two ways, as a condition on a value or a mode says."""

    def asked(inner: Scope, x: str) -> str:
        condition = inner.choice([*KINDS, *FACTS, *FACTS, *MODES, *MODES]).format(x=x)
        ways = [x, f"{x} * 2", f"-{x}", f"{x} + 1"]
        if len(inner.shape(x)) in IMAGES and inner.chance(0.6):
            channels, rank = inner.shape(x)[1], len(inner.shape(x)) - 2
            layer = inner.attribute(f"nn.Conv{rank}d({channels}, {channels}, 3, padding=1)")
            ways = [x, f"{layer}({x})", f"{layer}({x}) * 2", f"{layer}(-{x})"]
        first, second = inner.rng.sample(ways, 2)
        y = inner.assign(f"{first} if {condition} else {second}")
        return normalised(inner, y) if len(inner.shape(y)) > 1 and inner.chance(0.5) else y

    return in_block(s, s.pick(), asked)


def answer(s: Scope) -> str:
    """A function that answers by what kind of value it gets, or that tries and catches."""

    def asked(inner: Scope, x: str) -> str:
        if len(inner.shape(x)) in IMAGES and inner.chance(0.6):
            x = call(inner, convolution_layer(inner, x, inner.shape(x)[1]), x)
        names = ["doubled", "matched", "by_type", "unpacked", "called"]
        forms = [f"{name}({x})" for name in names] + [f"rows({x})"] * 3
        sizes = ", ".join(map(str, inner.shape(x)[1:]))
        table = inner.attribute(f"nn.Parameter(torch.randn({sizes}))")
        forms += [f"added_where_it_fits({x}, {table})"] * 3
        return inner.assign(inner.choice(forms))

    return in_block(s, s.pick(), asked)


def option(s: Scope) -> str:
    """An input that may be left out; most calls leave it out."""
    x = s.pick()
    name = s.option()
    if name == "mask":
        return s.assign(s.choice(["{x} if mask is None else {x} * mask"]).format(x=x))
    if name == "residual":
        return s.assign(f"{x} if residual is None else {x} + residual")
    if name == "scale":
        return s.assign(s.choice([f"{x} * scale", f"{x} if scale == 1.0 else {x} * scale"]))
    if name == "size":
        return s.assign(f"{x} if size is None else {x}[..., :size]")
    other = s.alike(x) if s.chance(0.5) else f"{x} * 2"
    if len(s.shape(x)) in IMAGES and s.chance(0.5):
        channels, rank = s.shape(x)[1], len(s.shape(x)) - 2
        other = f"{s.attribute(f'nn.Conv{rank}d({channels}, {channels}, 1)')}({x})"
    return s.assign(s.choice([f"{other} if flag else {x}", f"{x} if not flag else {other}"]))


def draw(s: Scope) -> str:
    """Random numbers in evaluation mode: on values, on kernels, on factors, of any generator."""
    x = s.pick(4)
    c = s.shape(x)[1]
    kernel = s.choice(["1", "3, padding=1"])
    forms = [f"DropConnect({c}, {c}, {kernel})", f"Variational({c}, {c}, {kernel})"]
    forms += [f'DrawnScale("{kind}")' for kind in ("tensor", "numpy", "python")]
    inner = s.choice([f"ConvNorm({c}, {c}, 3)", f"nn.Conv2d({c}, {c}, {kernel})"])
    kinds = ("python", "state", "generator")
    forms += ["SeededNoise()", f'NumpyScale({inner}, "{s.choice(kinds)}")']
    forms += [f"StochasticDepth({inner})"]
    y = s.assign(f"{s.attribute(s.choice(PLACES).format(s.choice(forms)))}({x})")
    return normalised(s, y) if s.chance(0.4) else y


def succession(s: Scope) -> str:
    """A module whose next call does something else."""
    x = s.pick(4)
    c = s.shape(x)[1]
    inner = s.choice([f"ConvNorm({c}, {c}, 3)", f"nn.Conv2d({c}, {c}, 1)", f"nn.BatchNorm2d({c})"])
    forms = [f'Cycled({inner}, "{s.choice(["class", "iterator"])}")', "Rotating()", "Alternating()"]
    forms += [f'Countdown({inner}, "{s.choice(["array", "list", "number"])}")', "Difference()"]
    y = s.assign(f"{s.attribute(s.choice(PLACES).format(s.choice(forms)))}({x})")
    return normalised(s, y) if s.chance(0.4) else y


def remnant(s: Scope) -> str:
    """A module that keeps something of an earlier call, or that writes where it reads."""
    x = s.pick(3, 4)
    c, axes = s.shape(x)[1], len(s.shape(x)) - 2
    forms = [f"CachedBias({c}, {axes})", "RunningMean()"]
    if axes == 1:
        forms += [
            f"PositionTable({c}, {s.shape(x)[2]})",
            f"KeepsLast(nn.Linear({s.shape(x)[2]}, 4))",
        ]
    else:
        inner = s.choice([f"ConvNorm({c}, {c}, 3)", f"nn.Conv2d({c}, {c}, 1)"])
        forms += [f"KeepsLast({inner})", f"AdaptiveNorm({c})"]
        forms += [f"nn.Sequential({inner}, CachedBias({c}, 2), nn.BatchNorm2d({c}))"]
    return s.assign(f"{s.attribute(s.choice(forms))}({x})")


def observed(s: Scope) -> str:
    """Observers of quantisation, which watch or only round, beside a norm that could be folded."""
    x = s.pick(4)
    c = s.shape(x)[1]
    inner = s.choice([f"ConvNorm({c}, {c}, 3)", f"nn.Conv2d({c}, 4, 1)", f"nn.BatchNorm2d({c})"])
    observing = s.choice([True, False])
    forms = [f"Observed({inner})", f"Quantised({inner}, {observing})"]
    forms += [f"QuantisedKernel({c}, {c}, 3, padding=1, observing={observing})"]
    y = s.assign(f"{s.attribute(s.choice(forms))}({x})")
    return normalised(s, y) if s.chance(0.5) else y


def shared(s: Scope) -> str:
    """Parts that a copy of the model shares with it."""
    if s.depth > 1:
        raise RejectedError
    x = s.pick(4)
    c = s.shape(x)[1]
    parts = [f"nn.Conv2d({c}, {c}, 3, padding=1), nn.BatchNorm2d({c})", f"ConvNorm({c}, {c})"]
    y = s.assign(f"{s.attribute(f'Shared({s.choice(parts)})')}({x})")
    return normalised(s, y) if s.chance(0.5) else y
