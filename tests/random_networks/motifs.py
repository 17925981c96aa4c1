"""Makers of several steps: parallel branches, views, concatenations and shared layers."""

from math import prod

from tests.random_networks.scope import RejectedError, Scope
from tests.random_networks.steps import (
    IMAGES,
    call,
    convolution_layer,
    linear,
    normalised,
    spelled,
    summed,
)


def convolution_and_norm(s: Scope) -> str:
    x = s.pick(*IMAGES)
    return normalised(s, call(s, convolution_layer(s, x), x))


def parallel_branches(s: Scope) -> str:
    """Branches over one base, of one stride and one size: most collapse to one convolution."""
    x = s.pick(*IMAGES)
    channels, *sizes = s.shape(x)[1:]
    rank, stride = len(sizes), s.choice([1, 1, 1, 2])
    depthwise = s.chance(0.3)
    c_out = channels if depthwise or s.chance(0.6) else s.choice([4, 6])
    groups = channels if depthwise else s.choice([1, 1, 1, 2])
    kinds = ["square", "square", "pointwise", "flat", "dilated", "pool", "sequence", "padded"]
    if stride == 1 and c_out == channels:
        kinds += ["identity", "identity", "scaled", "norm"]
    branches = []
    for kind in s.rng.sample(kinds, s.choice([2, 2, 3, 4])):
        branches.append(branch(s, kind, x, rank, channels, c_out, stride, groups))
    s.rng.shuffle(branches)
    total = branches[0]
    for other in branches[1:]:
        if total == other:
            raise RejectedError
        total = summed(s, total, other)
    return normalised(s, total) if s.chance(0.3) else total


def branch(
    s: Scope, kind: str, x: str, rank: int, channels: int, c_out: int, stride: int, groups: int
) -> str:
    """One branch whose value has the size of `x` divided by the stride."""
    bias = s.choice(["", ", bias=False"])
    rest = f"stride={stride}, groups={groups}{bias}"
    layer = f"nn.Conv{rank}d({channels}, {c_out}"
    if kind == "identity":
        return x
    if kind == "norm":
        return normalised(s, x)
    if kind == "scaled":
        shape = ", ".join([str(channels), *["1"] * rank])
        return s.assign(f"{x} * {s.attribute(f'nn.Parameter(torch.randn({shape}))')}")
    if kind == "pool":
        include = s.choice([True, True, True, False])
        y = call(s, s.attribute(f"{layer}, 1, groups={groups}, bias=False)"), x)
        settings = f"3, {stride}, 1, count_include_pad={include}"
        y = s.assign(f"F.avg_pool{rank}d({y}, {settings})")
    elif kind == "pointwise":
        y = call(s, s.attribute(f"{layer}, 1, {rest})"), x)
    elif kind == "flat":
        kernel = [1] * rank
        kernel[s.rng.randrange(rank)] = 3
        padding = spelled([k // 2 for k in kernel])
        y = call(s, s.attribute(f"{layer}, {spelled(kernel)}, padding={padding}, {rest})"), x)
    elif kind == "dilated":
        y = call(s, s.attribute(f"{layer}, 3, padding=2, dilation=2, {rest})"), x)
    elif kind == "sequence":
        y = call(s, s.attribute(f"nn.Conv{rank}d({channels}, {channels}, 1, bias=False)"), x)
        if s.chance(0.3):
            y = normalised(s, y)
        y = call(s, s.attribute(f"{layer}, 3, padding=1, {rest})"), y)
    elif kind == "padded":
        amounts = ", ".join(["1, 1"] * rank)
        y = s.assign(f"F.pad({x}, ({amounts}))")
        y = call(s, s.attribute(f"{layer}, 3, {rest})"), y)
    else:
        kernel_size = s.choice([3, 3, 5])
        y = call(s, s.attribute(f"{layer}, {kernel_size}, padding={kernel_size // 2}, {rest})"), x)
    return normalised(s, y) if s.chance(0.6) else y


def assigned_border(s: Scope) -> str:
    """A padding whose border is overwritten: with what its input is outside, or with anything."""
    x = s.pick(*IMAGES)
    channels, rank = s.shape(x)[1], len(s.shape(x)) - 2
    layer = s.attribute(f"nn.Conv{rank}d({channels}, {s.choice([channels, channels + 2])}, 1)")
    y = call(s, layer, x)
    sides = [s.choice([1, 1, 1, 2, 0]) for _ in range(2 * rank)]
    padded = s.assign(f"F.pad({y}, {tuple(sides)})")
    bias = f"{layer}.bias"
    other = s.attribute(f"nn.Parameter(torch.randn({s.shape(y)[1]}))")
    usual = s.choice([bias] * 6 + [other, "0", "0.5", f"{y}.mean()"])
    lines = []
    for axis in range(rank):
        before, after = sides[2 * (rank - axis) - 2 :][:2]
        for low, high, number in ((0, before, 0), (-after, None, -1)):
            if before if number == 0 else after:
                index = [":"] * (axis + 2) + [":".join(str(n or "") for n in (low, high))]
                one = (high or -low) == 1 and s.chance(0.3)
                index[-1] = str(number) if one else index[-1]
                if s.chance(0.3):
                    index = ["...", *index[2:], *[":"] * (rank - axis - 1)]
                value = usual if s.chance(0.97) else s.choice([bias, other, "0"])
                if value.startswith("self"):
                    ones = ["1"] * (rank - one)
                    value += s.choice(
                        [f".view({', '.join(['-1', *ones])})", f"[:{', None' * len(ones)}]"]
                    )
                lines.append(f"{padded}[{', '.join(index)}] = {value}")
    if s.chance(0.3):
        s.rng.shuffle(lines)
    if s.chance(0.1):
        lines.pop()
    if s.chance(0.2):
        others = [f"{padded}.mul_(2)", f"{padded}[:, :1] = 0", f"{padded}[..., 1] = 0.5"]
        lines.insert(s.rng.randrange(len(lines) + 1), s.choice(others))
    taken = s.assign(f"{padded}[:, :, :1]") if s.chance(0.1) else ""
    for line in lines:
        s.change(padded, line)
    kernel = s.choice([2, 3, 3])
    c_out = s.choice([channels, channels, 4])
    z = call(s, s.attribute(f"nn.Conv{rank}d({s.shape(y)[1]}, {c_out}, {kernel})"), padded)
    if taken and s.chance(0.7):
        z = s.assign(f"{z} + {taken}.mean()")
    if s.chance(0.3) and s.shape(z) == s.shape(x):
        z = summed(s, z, x)
    return normalised(s, z) if s.chance(0.3) else z


def view(s: Scope) -> str:
    x = s.pick()
    shape = s.shape(x)
    if len(shape) == 4:
        batch, channels, *_ = shape
        forms = [
            "{x}.permute(0, 2, 3, 1)",
            "{x}.flatten(2)",
            "{x}.flatten(1)",
            "{x}.flatten(2).transpose(1, 2)",
            "{x}.transpose(2, 3)",
            "{x}[:, :, 1:, :-1]",
            "{x}[..., 1:-1]",
            "{x}[..., ::2]",
            f"{{x}}.reshape({batch}, {channels}, -1)",
            f"{{x}}[:, :{max(channels // 2, 1)}]",
            "torch.flatten({x}, 1)",
            "F.interpolate({x}, scale_factor=2)",
            "{x}.movedim(1, -1)",
            "{x}.flip(1)",
            "{x}.roll(1, -1)",
            "{x}.narrow(2, 1, 2)",
            "{x}[:, -1:]",
            "{x}.squeeze(0)",
        ]
        if channels % 4 == 0:
            forms.append("F.pixel_shuffle({x}, 2)")
        if channels % 2 == 0:
            forms.append(
                "{x}.view({x}.shape[0], 2, -1, *{x}.shape[2:]).transpose(1, 2).flatten(1, 2)"
            )
    elif len(shape) == 3:
        forms = [
            "{x}.transpose(1, 2)",
            "{x}.mean(1)",
            "{x}.flatten(1)",
            "{x}[:, 0]",
            "{x}.unsqueeze(2)",
            "{x}.reshape(-1, {x}.shape[-1])",
            "{x}.unflatten(1, (-1, 2))",
            "torch.swapaxes({x}, 1, 2)",
        ]
    elif len(shape) == 2:
        forms = ["{x}[:, :, None, None]", "{x}.unsqueeze(1)", "{x}.unsqueeze(-1)", "{x}[:, 1:]"]
    else:
        forms = ["{x}.flatten(3)", "{x}[:, :, 0]", "{x}.mean(-1)"]
    return s.assign(s.choice(forms).format(x=x))


def regrouped(s: Scope) -> str:
    """A convolution whose channels a reshape splits, as heads, and a norm of one of the parts."""
    x = s.pick(3, 4)
    batch, _, *sizes = s.shape(x)
    heads, width = s.choice([2, 3]), s.choice([2, 4])
    layer = f"nn.Conv{len(sizes)}d({s.shape(x)[1]}, {heads * width}, 1)"
    y = call(s, s.attribute(layer), x)
    if len(sizes) == 1:
        (length,) = s.unpack(f"{x}.shape[2:]", 1)
        z = s.assign(f"{y}.reshape(-1, {width}, {length})")
    else:
        height, side = s.unpack(f"{x}.shape[2:]", 2)
        row = f"{height} * {side}" if s.chance(0.6) else "-1"
        z = s.assign(f"{y}.view({x}.shape[0], {heads}, {width}, {row})")
    z = normalised(s, z)
    shape = (batch, heads * width, *sizes)
    return s.assign(f"{z}.reshape({', '.join(map(str, shape))})") if s.chance(0.7) else z


def partitioned(s: Scope) -> str:
    """A linear layer over all positions of a value, and a convolution of it beside that."""
    x = s.pick(*IMAGES)
    channels, *sizes = s.shape(x)[1:]
    rank, columns = len(sizes), prod(s.shape(x)[1:])
    if columns > 400:
        raise RejectedError
    image = f"{x}.view(-1, {', '.join(map(str, (channels, *sizes)))})"
    y = s.assign(image) if s.chance(0.6) else x
    groups = channels if s.chance(0.3) else 1
    if s.chance(0.5):
        z = call(s, s.attribute(f"nn.Linear({columns}, {columns})"), s.assign(f"{y}.flatten(1)"))
    else:
        layer = s.attribute(f"nn.Conv1d({columns}, {columns}, 1, groups={groups})")
        z = call(s, layer, s.assign(f"{x}.reshape(-1, {columns}, 1)"))
    kind = s.choice(["square", "pointwise", "flat", "pool", "identity", "scaled"])
    local = branch(s, kind, y, rank, channels, channels, 1, groups)
    if s.chance(0.5):
        return summed(s, s.assign(f"{z}.view_as({y})"), local)
    return summed(s, s.assign(f"{z}.flatten(1)"), s.assign(f"{local}.flatten(1)"))


def channels_last_linear(s: Scope) -> str:
    x = s.pick(4)
    channels = s.shape(x)[1]
    y = s.assign(f"{x}.permute(0, 2, 3, 1)")
    y = call(s, s.attribute(f"nn.Linear({channels}, {channels})"), y)
    if s.chance(0.4):
        y = s.assign(f"{y} * {s.attribute(f'nn.Parameter(torch.randn({channels}))')}")
    y = s.assign(f"{y}.permute(0, 3, 1, 2)")
    return s.assign(f"{x} + {y}") if s.chance(0.5) else y


def chunks(s: Scope) -> str:
    x = s.pick(*IMAGES)
    channels = s.shape(x)[1]
    half = channels // 2
    splits = [f"{x}.chunk(2, dim=1)", f"torch.split({x}, {half}, 1)", f"{x}.tensor_split(2, 1)"]
    splits += [f"{x}.split([1, {channels - 1}], dim=1)", f"({x}[:, :{half}], {x}[:, {half}:])"]
    a, b = s.unpack(s.choice(splits))
    if s.chance(0.6):
        b = call(s, convolution_layer(s, b, s.shape(b)[1]), b)
    if s.chance(0.4):
        a = call(s, convolution_layer(s, a, s.shape(a)[1]), a)
    if s.chance(0.5) and s.shape(a) == s.shape(b):
        return summed(s, a, b)
    return s.assign(f"torch.cat([{a}, {b}], 1)")


def stacked_branches(s: Scope) -> str:
    """Convolutions side by side over one value, concatenated: an Inception block."""
    x = s.pick(*IMAGES)
    channels, rank = s.shape(x)[1], len(s.shape(x)) - 2
    branches = []
    for kernel in s.rng.sample([1, 3, 5], s.choice([2, 2, 3])):
        layer = f"nn.Conv{rank}d({channels}, {s.choice([2, 4])}, {kernel}, padding={kernel // 2})"
        y = call(s, s.attribute(layer), x)
        branches.append(normalised(s, y) if s.chance(0.5) else y)
    y = s.assign(f"torch.cat([{', '.join(branches)}], {s.choice(['1', 'dim=1'])})")
    return normalised(s, y) if s.chance(0.4) else y


def scaled_tree(s: Scope) -> str:
    """A scale after sums and concatenations of convolutions of different values."""
    x = s.pick(*IMAGES)
    channels, rank = s.shape(x)[1], len(s.shape(x)) - 2
    width = s.choice([2, 4])

    def tree(depth: int) -> str:
        if depth and s.chance(0.7):
            a, b = tree(depth - 1), tree(depth - 1)
            if s.shape(a) == s.shape(b) and s.chance(0.6):
                return summed(s, a, b)
            return s.assign(f"torch.cat([{a}, {b}], {s.choice(['1', 'dim=1', 'axis=1'])})")
        value = s.assign(f"{s.choice(['torch.sin', 'torch.cos', 'F.relu', 'F.silu'])}({x})")
        kernel, bias = s.choice([1, 3]), s.choice(["", ", bias=False"])
        layer = f"nn.Conv{rank}d({channels}, {width}, {kernel}, padding={kernel // 2}{bias})"
        y = call(s, s.attribute(layer), value)
        return normalised(s, y) if s.chance(0.3) else y

    y = tree(2)
    if s.chance(0.2):
        y = s.assign(s.choice(["{x}.contiguous()", "F.dropout({x}, 0.1, False)"]).format(x=y))
    return normalised(s, y) if s.chance(0.7) else s.assign(f"{y} * 2 + 1")


def scaled_parts(s: Scope) -> str:
    """Scales of parts of a concatenation, and what reads it."""
    x = s.pick(*IMAGES)
    parts = []
    for _ in range(s.choice([2, 2, 3])):
        y = call(s, convolution_layer(s, x, s.choice([2, 4])), x) if s.chance(0.4) else x
        if parts and s.shape(y)[2:] != s.shape(parts[0])[2:]:
            raise RejectedError
        y = s.assign(f"{s.choice(['torch.sigmoid', 'F.relu', 'F.silu'])}({y})")
        for scale in s.rng.sample(["norm", "number", "one", "none", "none"], 2):
            if scale == "norm":
                y = normalised(s, y)
            elif scale == "number":
                y = s.assign(s.choice(["{y} * 0.5", "{y} / 3", "{y} * 2 - 0.5"]).format(y=y))
        parts.append(y)
    if s.chance(0.15):
        parts.append(s.choice(parts))
    y = s.assign(f"torch.cat([{parts[0]}, {parts[1]}], 1)")
    if len(parts) > 2:
        y = s.assign(f"torch.cat(({', '.join([y, *parts[2:]])}), dim=1)")
    if s.chance(0.3):
        between = ["F.avg_pool{n}d({y}, 2)", "F.dropout({y}, 0.1, False)", "F.relu({y})"]
        y = s.assign(s.choice(between).format(y=y, n=len(s.shape(y)) - 2))
    if s.chance(0.2):
        y = normalised(s, y)
    readers = [call(s, convolution_layer(s, y), y) for _ in range(s.choice([1, 1, 1, 2]))]
    return summed(s, *readers) if len({*map(s.shape, readers)}) < len(readers) else readers[-1]


def summed_stacks(s: Scope) -> str:
    """Sums of concatenations, most of which are cut alike and share parts."""
    x = s.pick(*IMAGES)
    rank = len(s.shape(x)) - 2
    values = [s.assign(f"{f}({x})") for f in ("torch.sigmoid", "F.relu")]
    layers = [s.choice([[2, 3], [0, 3], [3, 3], [2, 0]])] * 3
    if s.chance(0.15):
        layers[1] = [3, 2]
    total = ""
    for widths in layers[: s.choice([2, 2, 3])]:
        parts = []
        for value, width in zip(values, widths, strict=True):
            kernel = s.choice([1, 3, 3])
            layer = f"nn.Conv{rank}d({s.shape(x)[1]}, {width}, {kernel}, padding={kernel // 2})"
            y = call(s, s.attribute(layer), value) if width else value
            parts.append(normalised(s, y) if width and s.chance(0.3) else y)
        if s.chance(0.1):
            values.reverse()
        stack = s.assign(f"torch.cat([{', '.join(parts)}], {s.choice(['1', 'dim=1'])})")
        total = summed(s, total, stack) if total else stack
        if s.chance(0.1) and s.shape(values[0]) == s.shape(total):
            total = summed(s, total, values[0])
    return normalised(s, total) if s.chance(0.3) else s.assign(f"F.silu({total})")


def concatenated(s: Scope) -> str:
    a = s.pick(2, 3, 4)
    b = s.alike(a)
    y = s.assign(s.choice([f"torch.cat([{a}, {b}], 1)", f"torch.cat(({b}, {a}), dim=1)"]))
    return normalised(s, y) if s.chance(0.4) else y


def called_again(s: Scope) -> str:
    """A layer or block that is called already, on another value or the same."""
    layers = [m for m in s.owner._modules if f"self.{m}(" in "\n".join(s.steps)]
    if not layers:
        raise RejectedError
    return s.assign(f"self.{s.choice(layers)}({s.pick()})")


def weight_read(s: Scope) -> str:
    """A weight that forward also reads by itself."""
    weights = [name for name, _ in s.owner.named_parameters() if name.endswith(".weight")]
    # A table of which only rows are read is dropped, and its memory with it.
    weights = [name for name in weights if not name.endswith(".table.weight")]
    if not weights:
        raise RejectedError
    weight, x = f"self.{s.choice(weights)}", s.pick(3, 4)
    forms = [f"{x} * {weight}.mean()", f"{x} + {weight}.flatten()[0]"]
    forms.append(f"F.conv{len(s.shape(x)) - 2}d({x}, {weight})")
    return s.assign(s.choice(forms))


def tied(s: Scope) -> str:
    """A second layer with the first one's weight, or the same layer under a second name."""
    layers = [n for n, m in s.owner.named_children() if hasattr(m, "weight")]
    if not layers:
        raise RejectedError
    first = s.choice(layers)
    source = next(a for a in s.attributes if a.startswith(f"self.{first} = "))
    if s.chance(0.4):
        second = s.attribute(f"self.{first}")
    else:
        second = s.attribute(source.partition(" = ")[2])
        s.attribute_line(f"{second}.weight = self.{first}.weight")
    return s.assign(f"{second}({s.pick()})")


def view_write(s: Scope) -> str:
    """A write into a part of a value, through a view or an item."""
    x = s.pick(2, 3, 4)
    lines = [f"{x}[:, 0] = 0", f"{x}[:, :1] *= 2", f"{x}[..., -1] += 0.5", f"{x}[:, 1:].neg_()"]
    lines += [f"{x}.flatten(1).mul_(0.5)", f"{x}.transpose(0, 1).add_(1)", f"torch.relu_({x}[:1])"]
    lines += [f"{x}.view(-1)[0] = 1.0", f"{x}.copy_({x} * 2)", f"{x}.unsqueeze(1).sub_(0.3)"]
    return s.change(x, s.choice(lines))


def shape_read(s: Scope) -> str:
    x = s.pick(4)
    batch = s.choice(["{x}.shape[0]", "{x}.size(0)", "len({x})"]).format(x=x)
    if batch.startswith("len"):
        raise RejectedError
    if s.chance(0.3):  # sizes of their own, and a check of them
        batch, channels, height, width = s.unpack(f"{x}.shape", 4)
        if s.chance(0.5):
            s.steps.append(f"assert {channels} == {s.shape(x)[1]} and {x}.ndim == 4")
        tokens = s.assign(f"{x}.reshape({batch}, {channels}, {height} * {width}).transpose(1, 2)")
        y = linear(s, tokens)
        return s.assign(f"{y}.transpose(1, 2).reshape({batch}, -1, {height}, {width})")
    forms = [f"{x}.reshape({batch}, {x}.shape[1], -1)", f"{x}.view({batch}, -1)"]
    forms += [f"{x} / {x}.shape[1]", f"{x} * ({x}.shape[-1] ** -0.5)"]
    return s.assign(s.choice(forms))
