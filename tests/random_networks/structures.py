"""Makers of steps that call modules: containers, blocks, hooks, and what tracing cannot enter."""

import re

from tests.random_networks.programs import OPTIONS
from tests.random_networks.scope import RejectedError, Scope
from tests.random_networks.steps import IMAGES, call, convolution_layer, normalised


def library_module(s: Scope) -> str:
    """A module of the vocabulary, with layers inside."""
    x = s.pick(3, 4)
    shape = s.shape(x)
    if len(shape) == 3:
        tokens = ["LinearNorm({c}, {o})", "Attention({c})", "Residual(Attention({c}))"]
        tokens.append("Residual(nn.Sequential(nn.LayerNorm({c}), nn.Linear({c}, {c})))")
        module = s.choice(tokens).format(c=shape[-1], o=s.choice([4, shape[-1]]))
        return s.assign(f"{s.attribute(module)}({x})")
    forms = [
        "Residual(ConvNorm({c}, {c}, 3, groups={c}))",
        "Residual(nn.Conv2d({c}, {c}, 3, padding=1))",
        "nn.Sequential(ConvNorm({c}, 4, 3), nn.ReLU(inplace=True), ConvNorm(4, {c}))",
        "StandardisedConv2d({c}, 4, 3, padding=1)",
        "Residual(nn.Sequential(nn.BatchNorm2d({c}), nn.Conv2d({c}, {c}, 1)))",
        "Branches(ConvNorm({c}, {c}, 3), ConvNorm({c}, {c}), nn.BatchNorm2d({c}))",
        "Branches(ConvNorm({c}, 4, 3), ConvNorm({c}, 4), None)",
        "Branches(nn.Identity(), nn.Conv2d({c}, {c}, 3, padding=1))",
        "MergedKernel({c}, 4, 3)",
        'Adapted(nn.Conv2d({c}, 4, 3, padding=1), 2, "a")',
        'Adapted(nn.Conv2d({c}, {c}, 1), 2, "a", "b")',
    ]
    return s.assign(f"{s.attribute(s.choice(forms).format(c=shape[1]))}({x})")


def container(s: Scope) -> str:
    """Layers in a list, a dictionary or a sequence, some of them called by their place."""
    x = s.pick(4)
    c = s.shape(x)[1]
    layers = [f"nn.Conv2d({c}, {c}, {k}, padding={k // 2})" for k in (1, 3)]
    layers += [f"ConvNorm({c}, {c}, 3)", f"nn.BatchNorm2d({c})", f"LayerScale({c}, 1, 1)"]
    first, second = s.rng.sample(layers, 2)
    kind = s.choice(["list", "dict", "sequence"])
    if kind == "dict":
        m = s.attribute(f'nn.ModuleDict({{"first": {first}, "second": {second}}})')
        forms = [f'{m}["second"]({m}["first"]({x}))', f'{m}["first"]({x})']
        forms.append(f"sum(layer({x}) for layer in {m}.values())")
    elif kind == "list":
        m = s.attribute(f"nn.ModuleList([{first}, {second}])")
        forms = [f"sum(layer({x}) for layer in {m})", f"sum([layer({x}) for layer in {m}]) + {x}"]
        forms += [f"{m}[1]({m}[0]({x}))", f"{m}[-1]({x})", f"{m}[0]({x}) + {m}[1]({x})"]
    else:
        m = s.attribute(f"nn.Sequential({first}, nn.Identity(), {second})")
        forms = [f"{m}({x})", f"{m}[2]({m}[0]({x}))", f"{m}[:2]({x})", f"{m}({m}[2]({x}))"]
    return s.assign(s.choice(forms))


def hooked(s: Scope) -> str:
    """A layer with a hook or a pre-hook."""
    x = s.pick(*IMAGES)
    layer = convolution_layer(s, x)
    kinds = ["forward_hook(Recorder())", "forward_hook(doubled_output)"]
    kinds.append("forward_pre_hook(halved_input)")
    if s.chance(0.6):
        s.attribute_line(f"{layer}.register_{s.choice(kinds)}")
        return normalised(s, s.assign(f"{layer}({x})"))
    y = s.assign(f"{layer}({x})")
    norm = s.attribute(f"nn.BatchNorm{len(s.shape(y)) - 2}d({s.shape(y)[1]})")
    s.attribute_line(f"{norm}.register_{s.choice(kinds)}")
    return s.assign(f"{norm}({y})")


def untraceable(s: Scope) -> str:
    """Control flow on shapes or data: symbolic tracing has to stop here."""
    x = s.pick(4)
    c = s.shape(x)[1]
    kind = s.choice(["same", "width", "window", "data", "exit", "grid", "noise", "value", "value"])
    if kind == "same":
        y = s.assign(f"pad_same({x}, 3, 2)")
        layer = s.attribute(f"nn.Conv2d({c}, 4, 3, stride=2, bias=False)")
        return normalised(s, call(s, layer, y))
    if kind == "value":  # the forward that is being written cannot be traced itself
        layer = convolution_layer(s, x, c)
        forms = [f"{layer}({x}) if {x}.mean() > 0 else {layer}(-{x})"] * 3
        forms += [f"{layer}({x}) if {x}.shape[-1] % 2 else {x}", f"{x} * {x}.max().item()"]
        forms += [f"{layer}({x}) * float({x}[0, 0, 0, 0] > 0) + {x}.mean().item()"]
        forms += [f"{x} + torch.arange({x}.shape[-1])", f"{x} - {x}.new_ones({x}.shape[-1])"]
        return s.assign(s.choice(forms))
    modules = {
        "width": "EvenWidth()",
        "window": "LimitedWindows(2)",
        "data": f"SignDependent(ConvNorm({c}, 4, 3))",
        "exit": f"EarlyExit(ConvNorm({c}, {c}), ConvNorm({c}, {c}, 3), nn.BatchNorm2d({c}))",
        "grid": "GridShift()",
        "noise": "Noise()",
    }
    return s.assign(f"{s.attribute(modules[kind])}({x})")


def several_inputs(s: Scope) -> str:
    """Modules that take lists, dictionaries, optional inputs and keywords."""
    x = s.pick(4)
    c = s.shape(x)[1]
    inner = s.choice([f"ConvNorm({c}, {c}, 3)", f"nn.Conv2d({c}, {c}, 1)", f"nn.BatchNorm2d({c})"])
    kind = s.choice(["list", "mapping", "optional", "keywords"])
    if kind == "list":
        other = s.alike(x)
        return s.unpack(f"{s.attribute(f'EachOf({inner}, ConvNorm({c}, 4))')}([{x}, {other}])")[0]
    if kind == "mapping":
        m = s.attribute(f"FromMapping({inner})")
        return s.assign(s.choice([f'{m}({{"x": {x}}})["out"]', f'{m}(dict(x={x}))["out"] + {x}']))
    if kind == "optional":
        m = s.attribute(f"Masked({inner})")
        forms = ["{m}({x})", "{m}({x}, None)", "{m}({x}, mask={x}.sigmoid())", "{m}({x}, scale=2)"]
    else:
        m = s.attribute(f"WithKeywords({inner})")
        forms = ["{m}({x})", "{m}({x}, {x})", "{m}({x}, scale=0.5)", "{m}({x}, unused=None)"]
    return s.assign(s.choice(forms).format(m=m, x=x))


WRAPPERS = [
    "nn.Sequential({0}, nn.ReLU())",
    "Residual({0})",
    "SignDependent({0})",
    "Counted({0})",
    "WithoutGradient({0})",
    "Checkpointed({0})",
    "nn.DataParallel({0})",
    "nn.ModuleList([{0}])[0]",
    "EarlyExit({0}, nn.ReLU())",
]


def block_call(s: Scope, name: str) -> str:
    """An instance of a generated class, called once, twice, or inside another module."""
    block = next(m for m in s.modules if m.name == name)
    taken = s.pick()
    needed = [text for text in block.inputs if "=" not in text]
    arguments = ", ".join([taken, *(s.pick() for _ in needed[1:])])
    item = s.choice(["[0]", "[1]", "[-1]"]) if block.result.startswith(("(", "Pair")) else ""
    item = '["out"]' if block.result.startswith("{") else item
    source = f"{name}()"
    plain = not item and len(needed) == 1
    if plain and s.chance(0.45):
        source = s.choice(WRAPPERS).format(source)
    layer = s.attribute(source)
    if plain and s.chance(0.1):
        s.attribute_line(f"{layer}.register_forward_hook(Recorder())")
    for option in block.options():
        if s.chance(0.4):
            arguments += f", {option}={OPTIONS[option][1]}"
    halves = block.halves()
    if halves and source == f"{name}()" and s.chance(0.4):
        features = s.assign(f"{layer}.forward_features({arguments}){'[0]' * (len(halves[1]) > 1)}")
        if s.chance(0.5):
            return features
    y = s.assign(f"{layer}({arguments}){item}")
    if re.match(r"v\d+ = self\.m\d+\(v\d+\)$", s.steps[-1]) and s.chance(0.2):
        return s.assign(f"{layer}({s.choice([taken, y])})")
    return y


def same_block_twice(s: Scope) -> str:
    """A block under two names, called on what it is called on already, or on what it gave."""
    blocks = {n for n, m in s.owner.named_children() if type(m).__name__.startswith("Block")}
    calls = [re.fullmatch(r"(v\d+) = self\.(m\d+)\((v\d+)\)", step) for step in s.steps]
    calls = [call for call in calls if call is not None and call[2] in blocks]
    if not calls:
        raise RejectedError
    result, block, taken = s.choice(calls).groups()
    return s.assign(f"{s.attribute(f'self.{block}')}({s.choice([result, taken])})")
