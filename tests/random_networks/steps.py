"""Makers of single steps for random networks: each op in the spellings that real networks use."""

from tests.random_networks.scope import RejectedError, Scope

IMAGES = (3, 4, 5)
MODES = ("reflect", "replicate", "circular")


def convolution(s: Scope) -> str:
    x = s.pick(*IMAGES)
    return call(s, convolution_layer(s, x), x)


def convolution_layer(s: Scope, x: str, c_out: int | None = None) -> str:
    """A new layer that fits a value."""
    channels, *sizes = s.shape(x)[1:]
    rank = len(sizes)
    groups = s.choice([1, 1, 1, channels, *(g for g in (2, 3) if channels % g == 0)])
    c_out = c_out or s.choice([channels, channels, 4, 6, 12]) // groups * groups or groups
    kernel = per_axis(s, rank, [1, 1, 3, 3, 3, 2, 4, 5], 0.2)
    stride = per_axis(s, rank, [1, 1, 1, 1, 2, 3], 0.1)
    dilation = per_axis(s, rank, [1, 1, 1, 1, 2], 0.1)
    padding: str | list[int] = [d * (k - 1) // 2 for k, d in zip(kernel, dilation, strict=True)]
    if s.chance(0.3):
        padding = per_axis(s, rank, [0, 0, 1, 2], 0.2)
    elif s.chance(0.2) and max(stride) == 1:
        padding = "same"
    settings = [f"stride={spelled(stride)}", f"padding={spelled(padding)}"]
    settings.append(f"dilation={spelled(dilation)}")
    if groups > 1:
        settings.append(f"groups={groups}")
    if s.chance(0.5):
        settings.append("bias=False")
    if s.chance(0.12):
        settings.append(f'padding_mode="{s.choice(MODES)}"')
    source = f"nn.Conv{rank}d({channels}, {c_out}, {spelled(kernel)}, {', '.join(settings)})"
    if s.chance(0.08):
        wrappers = ["weight_norm({0})", "spectral_norm({0})", "with_own_forward({0})"]
        wrappers += ['prune.l1_unstructured({0}, "weight", amount=0.3)', "nn.DataParallel({0})"]
        source = s.choice(wrappers).format(source)
    elif s.chance(0.05) and rank == 2:
        source = source.replace("nn.Conv2d", s.choice(["PlainConv2d", "Doubled"]))
    return s.attribute(source)


def per_axis(s: Scope, rank: int, options: list[int], unequal: float) -> list[int]:
    if s.chance(unequal):
        return [s.choice(options) for _ in range(rank)]
    return [s.choice(options)] * rank


def spelled(value: str | list[int]) -> str:
    """`3` rather than `(3, 3)`."""
    if isinstance(value, str):
        return f'"{value}"'
    return str(value[0]) if len(set(value)) == 1 else str(tuple(value))


def call(s: Scope, layer: str, x: str) -> str:
    return s.assign(f"{layer}(input={x})" if s.chance(0.1) else f"{layer}({x})")


def functional_convolution(s: Scope) -> str:
    x = s.pick(*IMAGES)
    channels, *sizes = s.shape(x)[1:]
    rank = len(sizes)
    groups = s.choice([1, 1, channels])
    c_out = groups * s.choice([1, 2]) if groups > 1 else s.choice([channels, 4])
    kernel = per_axis(s, rank, [1, 3, 3, 2], 0.2)
    shape = ", ".join(map(str, [c_out, channels // groups, *kernel]))
    weight = s.attribute(f"nn.Parameter(0.3 * torch.randn({shape}))")
    bias = "None"
    if s.chance(0.5):
        bias = s.attribute(f"nn.Parameter(0.3 * torch.randn({c_out}))")
    if s.chance(0.3):  # a kernel computed from parameters
        factor = s.attribute(f"nn.Parameter(torch.rand({', '.join(['1'] * (rank + 2))}))")
        other = s.attribute(f"nn.Buffer(0.2 * torch.randn({shape}))")
        forms = ["{0} * {1}", "{0} * {1}.exp()", "({0} + {2})", "torch.sigmoid({1}) * {0}"]
        weight = s.choice(forms).format(weight, factor, other)
    padding = kernel[0] // 2
    forms = [
        f"F.conv{rank}d({x}, {weight}, {bias}, 1, {padding}, 1, {groups})",
        f"F.conv{rank}d({x}, {weight}, bias={bias}, padding={padding}, groups={groups})",
        f"torch.conv{rank}d({x}, {weight}, {bias}, stride=2, padding={padding}, groups={groups})",
        f"torch.ops.aten.convolution.default({x}, {weight}, {bias}, {[1] * rank},"
        f" {[padding] * rank}, {[1] * rank}, False, {[0] * rank}, {groups})",
    ]
    if groups == 1 and rank == 2:
        forms += [f'torch.einsum("bihw,oi->bohw", {x}, {weight}[:, :, 0, 0])']
    return s.assign(s.choice(forms))


def transposed_convolution(s: Scope) -> str:
    x = s.pick(*IMAGES)
    channels, *sizes = s.shape(x)[1:]
    rank = len(sizes)
    groups = s.choice([1, 1, channels, 2])
    c_out = s.choice([channels, 4])
    kernel, stride = s.choice([1, 2, 3, 4]), s.choice([1, 2, 2])
    settings = f"stride={stride}, padding={s.choice([0, 0, 1])}, groups={groups}"
    if stride > 1 and s.chance(0.3):
        settings += ", output_padding=1"
    if s.chance(0.5):
        settings += ", bias=False"
    if s.chance(0.15):
        settings += ", dilation=2"
    if s.chance(0.2):
        taps = ", ".join([str(kernel)] * rank)
        weight = s.attribute(f"nn.Parameter(0.3 * torch.randn({channels}, {c_out}, {taps}))")
        return s.assign(f"F.conv_transpose{rank}d({x}, {weight}, stride={stride})")
    layer = s.attribute(f"nn.ConvTranspose{rank}d({channels}, {c_out}, {kernel}, {settings})")
    y = call(s, layer, x)
    if s.chance(0.25):
        y = summed(s, y, call(s, s.attribute(s.attributes[-1].partition(" = ")[2]), x))
    return normalised(s, y) if s.chance(0.4) else y


def linear(s: Scope, x: str = "") -> str:
    x = x or s.pick(2, 3, 4)
    features, c_out = s.shape(x)[-1], s.choice([4, 6, s.shape(x)[-1]])
    if s.chance(0.3):
        weight = s.attribute(f"nn.Parameter(0.4 * torch.randn({c_out}, {features}))")
        bias = s.attribute(f"nn.Parameter(torch.randn({c_out}))")
        forms = [
            f"F.linear({x}, {weight})",
            f"F.linear({x}, {weight}, bias={bias})",
            f"{x} @ {weight}.t() + {bias}",
            f"torch.matmul({x}, {weight}.T)",
        ]
        return s.assign(s.choice(forms))
    if s.chance(0.1):
        return call(s, s.attribute(f"LowRank({features}, {c_out})"), x)
    if s.chance(0.1):
        active = s.choice(["", ', "a"', ', "a", "b"'])
        return call(s, s.attribute(f"Adapted(nn.Linear({features}, {c_out}), 2{active})"), x)
    if s.chance(0.1):  # a low-rank update of the weight itself
        weight, down, up = (
            s.attribute(f"nn.Parameter(0.4 * torch.randn({rows}, {columns}))")
            for rows, columns in ((c_out, features), (2, features), (c_out, 2))
        )
        return s.assign(f"F.linear({x}, {weight} + 0.5 * ({up} @ {down}))")
    bias_setting = s.choice(["", ", bias=False"])
    return call(s, s.attribute(f"nn.Linear({features}, {c_out}{bias_setting})"), x)


def batch_norm(s: Scope) -> str:
    return normalised(s, s.pick(2, 3, 4, 5))


def normalised(s: Scope, x: str) -> str:
    """Batch norm of a value, in one of its spellings."""
    shape = s.shape(x)
    channels, rank = shape[1], max(len(shape) - 2, 1)
    kind = s.choice(["module"] * 8 + ["function", "positional", "keywords", "subclass", "sync"])
    kind = kind if s.chance(0.97) else "batch"
    if kind == "keywords":
        return s.assign(f"{s.attribute(f'FunctionalNorm({channels})')}({x})")
    if kind == "subclass" and rank < 3:
        return s.assign(f"{s.attribute(f'BatchNormReLU{rank}d({channels})')}({x})")
    if kind == "sync":
        return s.assign(f"{s.attribute(f'nn.SyncBatchNorm({channels})')}({x})")
    if kind == "batch":  # its statistics are those of the batch, in evaluation too
        norm = f"nn.BatchNorm{rank}d({channels}, track_running_stats=False)"
        return s.assign(f"{s.attribute(norm)}({x})")
    affine = ", affine=False" if s.chance(0.15) else ""
    eps = ", eps=0.01" if s.chance(0.2) else ""
    norm = s.attribute(f"nn.BatchNorm{rank}d({channels}{eps}{affine})")
    statistics = f"{norm}.running_mean, {norm}.running_var"
    if kind == "function":
        bias = s.choice(["None", f"{norm}.bias", f"{norm}.bias"])
        settings = f"weight={norm}.weight, bias={bias}, training=self.training"
        return s.assign(f"F.batch_norm({x}, {statistics}, {settings}, eps={norm}.eps)")
    if kind == "positional" and s.chance(0.3):
        parts = f"{norm}.weight, {norm}.bias, {statistics}"
        return s.assign(f"torch.batch_norm({x}, {parts}, False, 0.1, {norm}.eps, False)")
    if kind == "positional":
        rest = f"{norm}.weight, {norm}.bias, False, 0.1, {norm}.eps"
        return s.assign(f"F.batch_norm({x}, {statistics}, {rest})")
    return call(s, norm, x)


def pool(s: Scope) -> str:
    x = s.pick(*IMAGES)
    rank = len(s.shape(x)) - 2
    if s.chance(0.15):
        return s.assign(f"F.adaptive_avg_pool{rank}d({x}, {s.choice([1, 1, 2])})")
    if s.chance(0.1):
        return s.assign(f"F.avg_pool{rank}d({x}, kernel_size={s.choice([2, 3])})")
    if s.chance(0.1) and rank == 2:
        return s.assign(f"F.avg_pool2d({x}, (1, 3), stride=(1, 2), padding=(0, 1))")
    kernel, stride = s.choice([2, 3, 3]), s.choice([1, 1, 2])
    padding = s.choice([0, kernel // 2])
    if s.chance(0.15):
        return s.assign(f"F.max_pool{rank}d({x}, {kernel}, {stride}, {padding})")
    settings = ""
    if s.chance(0.4):
        settings += f", count_include_pad={s.choice(['False', 'True'])}"
    if s.chance(0.25):
        settings += ", ceil_mode=True"
    if s.chance(0.1) and rank > 1:
        settings += ", divisor_override=5"
    if s.chance(0.5):
        layer = s.attribute(f"nn.AvgPool{rank}d({kernel}, {stride}, {padding}{settings})")
        return s.assign(f"{layer}({x})")
    return s.assign(f"F.avg_pool{rank}d({x}, {kernel}, {stride}, {padding}{settings})")


def pad(s: Scope) -> str:
    x = s.pick(*IMAGES)
    rank = len(s.shape(x)) - 2
    axes = 2 * s.choice([1, rank, rank])
    if s.chance(0.25):
        amounts = tuple(s.choice([0, 1, 2]) for _ in range(2 * rank))
        return s.assign(f'F.pad({x}, {amounts}, mode="{s.choice(MODES)}")')
    amounts = tuple(s.choice([0, 1, 1, 2, -1]) for _ in range(axes))
    value = s.choice(["", "", ", value=0.5", ', "constant", 0'])
    if s.chance(0.25):
        sides = tuple(s.choice([0, 1, 1, 2]) for _ in range(2 * rank))
        kinds = ["ZeroPad{0}d({1})", "ConstantPad{0}d({1}, 0.5)", "ReflectionPad{0}d({1})"]
        kinds += ["ReplicationPad{0}d({1})", "CircularPad{0}d({1})"]
        return s.assign(f"{s.attribute(f'nn.{s.choice(kinds).format(rank, sides)}')}({x})")
    return s.assign(f"F.pad({x}, {amounts}{value})")


def scale_or_shift(s: Scope) -> str:
    x = s.pick(2, 3, 4, 5)
    number = s.choice(["0.5", "2", "-1.5", "0.25", "1", "0"])
    forms = ["{x} * {k}", "{k} * {x}", "torch.mul({x}, {k})", "{x}.mul({k})", "{x} + {k}"]
    forms += ["{k} + {x}", "{x} - {k}", "{k} - {x}", "torch.add({x}, {k})", "{x}.sub({k})"]
    forms += ["torch.sub({x}, {k}, alpha=2)", "torch.add({x}, {k}, alpha=-0.5)"]
    if not s.chance(0.4):
        number = s.attribute(parameter(s, x))
        if s.chance(0.3):  # computed from parameters, and perhaps no parameter at all
            number = s.choice(["{0}.exp()", "({0} * {0})", "torch.sigmoid({0})"]).format(number)
        forms += ["torch.ops.aten.mul.Tensor({x}, {k})", "torch.ops.aten.add.Tensor({x}, {k})"]
        forms.append("torch.addcmul({x}, {x}, {k}, value=0.5)")
    else:
        forms += ["-{x}", "torch.neg({x})", "{x}.neg()"]
    if number != "0":
        forms += ["{x} / 3", "{x}.div(1.5)", "torch.true_divide({x}, 0.7)"]
    form = s.choice(forms).format(x=x, k=number)
    if s.chance(0.45):
        lines = [f"{x} *= {number}", f"{x} += {number}", f"{x}.mul_({number})"]
        lines += [f"{x}.add_({number})", f"{x} -= {number}", f"{x}.div_(1.5)", f"{x}.neg_()"]
        return s.change(x, s.choice(lines))
    return s.assign(form)


def parameter(s: Scope, x: str) -> str:
    """The source of a parameter that broadcasts to a value: per channel, mostly."""
    channels, *sizes = s.shape(x)[1:]
    ones = ["1"] * len(sizes)
    shapes = [[str(channels), *ones], ["1", str(channels), *ones], ["1"]]
    if s.chance(0.25):  # constants that vary in space, or over the last axis
        shapes = [[str(n) for n in s.shape(x)[1:]], [str(s.shape(x)[-1])], ["1", *map(str, sizes)]]
    values = f"torch.randn({', '.join(s.choice(shapes))})"
    return s.choice(["nn.Parameter({0})"] * 5 + ["nn.Buffer({0})", "{0}"]).format(values)


def layer_scale(s: Scope) -> str:
    x = s.pick(3, 4, 5)
    channels, *sizes = s.shape(x)[1:]
    shape = ", ".join(map(str, [channels, *(1 for _ in sizes)]))
    if len(sizes) == 1 and s.chance(0.5):
        shape = str(sizes[-1])
    if s.chance(0.2):
        return s.change(x, f"{x} = {s.attribute(f'LayerScale({shape}, inplace=True)')}({x})")
    if s.chance(0.3):
        gamma = s.attribute(f"nn.Parameter(torch.randn({channels}))")
        ones = ", 1" * len(sizes)
        forms = [
            f".view(1, -1{ones})",
            f".reshape({channels}{ones})",
            f"[:{', None' * len(sizes)}]",
        ]
        return s.assign(f"{x} * {gamma}{s.choice(forms)}")
    return s.assign(f"{s.attribute(f'LayerScale({shape})')}({x})")


def add_values(s: Scope) -> str:
    a = s.pick()
    return summed(s, a, s.alike(a))


def summed(s: Scope, a: str, b: str) -> str:
    """The sum or difference of two values of one shape, in one of its spellings."""
    if s.chance(0.2):
        lines = [f"{a} += {b}", f"{a}.add_({b})", f"{a} -= {b}", f"{a}.sub_({b}, alpha=0.5)"]
        return s.change(a, s.choice(lines))
    forms = ["{a} + {b}"] * 6 + ["torch.add({a}, {b})", "{a}.add({b})", "{a} - {b}", "{b} - {a}"]
    forms += ["torch.sub({a}, {b}, alpha=2)", "sum([{a}, {b}])", "{a}.add({b}, alpha=0.5)"]
    forms += ["torch.stack([{a}, {b}]).sum(0)", "torch.stack([{a}, {b}], dim=0).sum(dim=0)"]
    forms += [
        "torch.sum(torch.stack(({a}, {b}), -1), -1)",
        "({a} + {b}) / 2",
        "torch.rsub({a}, {b})",
    ]
    return s.assign(s.choice(forms).format(a=a, b=b))


def broadcast_sum(s: Scope) -> str:
    x = s.pick(4)
    other = s.choice(["{x}.mean((2, 3), keepdim=True)", "{x}[:, :, :1]", "{x}[:1]"])
    return s.assign(f"{x} + {other.format(x=x)}")


def activation(s: Scope) -> str:
    x = s.pick()
    forms = ["F.relu({x})", "torch.relu({x})", "{x}.relu()", "torch.sigmoid({x})", "F.gelu({x})"]
    forms += ["F.leaky_relu({x}, 0.1)", "F.leaky_relu({x}, 1.0)", "F.hardswish({x})", "F.silu({x})"]
    modules = [
        "nn.ReLU()",
        "nn.ReLU(inplace=True)",
        "nn.LeakyReLU(0.2)",
        "nn.Hardswish(inplace=True)",
    ]
    in_place = ["F.relu({x}, inplace=True)", "{x}.relu_()", "torch.relu_({x})"]
    kind = s.rng.random()
    if kind < 0.25:
        return s.change(x, f"{x} = {s.choice(in_place).format(x=x)}")
    if kind < 0.5:
        module = s.choice(modules)
        layer = s.attribute(module)
        if "inplace" in module:
            return s.change(x, f"{x} = {layer}({x})")
        return s.assign(f"{layer}({x})")
    return s.assign(s.choice(forms).format(x=x))


def nothing(s: Scope) -> str:
    x = s.pick()
    modules = ["nn.Identity()", "nn.Dropout(0.1)", "nn.Dropout(0.1, inplace=True)"]
    modules += ["nn.Sequential()", "nn.AlphaDropout(0.1)"]
    if s.chance(0.5):
        return s.assign(f"{s.attribute(s.choice(modules))}({x})")
    forms = [
        "F.dropout({x}, 0.2, self.training)",
        "F.dropout({x}, training=False)",
        "{x}.contiguous()",
        "{x}.contiguous(memory_format=torch.channels_last)",
        "{x}.detach()",
        "{x}.clone()",
        "{x}.to({x}.dtype)",
        "{x}.type_as({x})",
        "{x}.to(torch.float64).to({x}.dtype)",
        "{x}.double().type({x}.dtype)",
        "{x}.to({x}.device)",
        "{x}.expand({x}.shape)",
        "{x}.unsqueeze(0).squeeze(0)",
    ]
    return s.assign(s.choice(forms).format(x=x))


def rounded_input(s: Scope) -> str:
    """A round trip through another type that rounds, before anything is computed."""
    x = s.choice(s.inputs)
    if s.depth:
        raise RejectedError
    forms = ["{x}.float().to({x}.dtype)", "{x}.half().to({x})", "({x}.mul(16).int() / 16).to({x})"]
    return s.assign(s.choice(forms).format(x=x))


def normalised_by_data(s: Scope) -> str:
    """A norm over the input itself, which no pass can fold."""
    x = s.pick(3, 4)
    channels, last = s.shape(x)[1], s.shape(x)[-1]
    kinds = [f"nn.GroupNorm(1, {channels})", f"nn.LayerNorm({last})"]
    kinds.append(f"nn.InstanceNorm{len(s.shape(x)) - 2}d({channels}, affine=True)")
    return s.assign(f"{s.attribute(s.choice(kinds))}({x})")


def gate(s: Scope) -> str:
    a = s.pick()
    if len(s.shape(a)) == 4 and s.chance(0.5):
        return s.assign(f"{s.attribute(f'SqueezeExcite({s.shape(a)[1]})')}({a})")
    return s.assign(s.choice([f"{a} * {s.alike(a)}.sigmoid()", f"{a} * {s.alike(a)}"]))
