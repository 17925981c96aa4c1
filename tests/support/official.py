"""The authors' RepVGG and RepVGGplus, stated once more from their published structure.

What the package is compared with: the modules, their names and what they compute, as trained and
as deployed, and how the one becomes the other by hand. Nothing here uses the package.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Official:
    """One network.

    Args:
        depths: Blocks of stages 1 to 4.
        widths: Channels of stages 1 to 4.
        stem: Channels of stage 0.
        groups: Groups of layers 2, 4, … 26.
        squeeze: Whether squeeze-and-excitation stands before the ReLU.
        plus: Whether it is a RepVGGplus.
        classes: Number of classes.
    """

    depths: Sequence[int]
    widths: Sequence[int]
    stem: int
    groups: int = 1
    squeeze: bool = False
    plus: bool = False
    classes: int = 1000

    def build(self, *, deploy: bool) -> nn.Module:
        """The network as trained, or as deployed."""
        return _OfficialNetwork(self, deploy)


def _variant(
    depths: Sequence[int], a: float, b: float, groups: int = 1, squeeze: bool = False
) -> Official:
    widths = [int(64 * a), int(128 * a), int(256 * a), int(512 * b)]
    return Official(depths, widths, min(64, int(64 * a)), groups, squeeze)


OFFICIAL = {
    "repvgg_a0": _variant([2, 4, 14, 1], 0.75, 2.5),
    "repvgg_a1": _variant([2, 4, 14, 1], 1, 2.5),
    "repvgg_a2": _variant([2, 4, 14, 1], 1.5, 2.75),
    "repvgg_b0": _variant([4, 6, 16, 1], 1, 2.5),
    "repvgg_b1": _variant([4, 6, 16, 1], 2, 4),
    "repvgg_b1g2": _variant([4, 6, 16, 1], 2, 4, 2),
    "repvgg_b1g4": _variant([4, 6, 16, 1], 2, 4, 4),
    "repvgg_b2": _variant([4, 6, 16, 1], 2.5, 5),
    "repvgg_b2g2": _variant([4, 6, 16, 1], 2.5, 5, 2),
    "repvgg_b2g4": _variant([4, 6, 16, 1], 2.5, 5, 4),
    "repvgg_b3": _variant([4, 6, 16, 1], 3, 5),
    "repvgg_b3g2": _variant([4, 6, 16, 1], 3, 5, 2),
    "repvgg_b3g4": _variant([4, 6, 16, 1], 3, 5, 4),
    "repvgg_d2se": _variant([8, 14, 24, 1], 2.5, 5, 1, True),
    "repvggplus_l2pse": Official([8, 14, 24, 1], [160, 320, 640, 2560], 64, plus=True),
}


def _convolve(inputs: int, outputs: int, size: int, stride: int, groups: int) -> nn.Sequential:
    layers = nn.Sequential()
    padding = (size - 1) // 2
    layers.add_module(
        "conv", nn.Conv2d(inputs, outputs, size, stride, padding, groups=groups, bias=False)
    )
    layers.add_module("bn", nn.BatchNorm2d(outputs))
    return layers


class _Squeeze(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, inner, 1)
        self.up = nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.down(x.mean((2, 3), keepdim=True)).clamp(min=0)
        return x * self.up(inner).sigmoid()


class _Block(nn.Module):
    def __init__(
        self, network: Official, inputs: int, outputs: int, stride: int, groups: int, deploy: bool
    ) -> None:
        super().__init__()
        self.deploy = deploy
        self.se = _Squeeze(outputs, outputs // 16) if network.squeeze else nn.Identity()
        self.post_se = _Squeeze(outputs, outputs // 4) if network.plus else nn.Identity()
        if deploy:
            self.rbr_reparam = nn.Conv2d(inputs, outputs, 3, stride, 1, groups=groups)
            return
        if stride == 1 and inputs == outputs:
            self.rbr_identity = nn.BatchNorm2d(inputs)
        self.rbr_dense = _convolve(inputs, outputs, 3, stride, groups)
        self.rbr_1x1 = _convolve(inputs, outputs, 1, stride, groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.deploy:
            total = self.rbr_reparam(x)
        else:
            total = self.rbr_dense(x) + self.rbr_1x1(x)
            if hasattr(self, "rbr_identity"):
                total = total + self.rbr_identity(x)
        out: Tensor = self.post_se(self.se(total).clamp(min=0))
        return out


class _PlusStage(nn.Module):
    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


class _OfficialNetwork(nn.Module):
    def __init__(self, network: Official, deploy: bool) -> None:
        super().__init__()
        self.plus = network.plus
        self.deploy = deploy
        self.stage0 = _Block(network, 3, network.stem, 2, 1, deploy)
        layer, inputs = 1, network.stem
        stages = []
        for depth, width in zip(network.depths, network.widths, strict=True):
            blocks = []
            for position in range(depth):
                groups = network.groups if layer % 2 == 0 and layer <= 26 else 1
                stride = 1 if position else 2
                blocks.append(_Block(network, inputs, width, stride, groups, deploy))
                layer, inputs = layer + 1, width
            stages.append(blocks)
        if network.plus:
            half = network.depths[2] // 2
            self.stage1 = _PlusStage(stages[0])
            self.stage2 = _PlusStage(stages[1])
            self.stage3_first = _PlusStage(stages[2][:half])
            self.stage3_second = _PlusStage(stages[2][half:])
            self.stage4 = _PlusStage(stages[3])
        else:
            for number, blocks in enumerate(stages, start=1):
                self.add_module(f"stage{number}", nn.Sequential(*blocks))
        self.linear = nn.Linear(network.widths[3], network.classes)
        if network.plus and not deploy:
            self.stage1_aux = _auxiliary(network.widths[0], network.classes)
            self.stage2_aux = _auxiliary(network.widths[1], network.classes)
            self.stage3_first_aux = _auxiliary(network.widths[2], network.classes)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        if not self.plus:
            for number in range(5):
                x = self.get_submodule(f"stage{number}")(x)
            logits: Tensor = self.linear(x.mean((2, 3)))
            return logits
        first = self.stage1(self.stage0(x))
        second = self.stage2(first)
        third = self.stage3_first(second)
        main: Tensor = self.linear(self.stage4(self.stage3_second(third)).mean((2, 3)))
        if self.deploy:
            return main
        return {
            "main": main,
            "stage1_aux": self.stage1_aux(first),
            "stage2_aux": self.stage2_aux(second),
            "stage3_first_aux": self.stage3_first_aux(third),
        }


def _auxiliary(channels: int, classes: int) -> nn.Sequential:
    downsample = _convolve(channels, channels, 3, 2, 1)
    downsample.add_module("relu", nn.ReLU())
    linear = nn.Linear(channels, classes)
    return nn.Sequential(downsample, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)


def fuse_by_hand(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights as deployed, of weights as trained, by the formulas of section 3.3."""
    fused = {n: t for n, t in state.items() if ".rbr_" not in n and "_aux." not in n}
    for name in [name for name in state if name.endswith(".rbr_dense.conv.weight")]:
        block = name.removesuffix(".rbr_dense.conv.weight")
        dense, point = state[name], state[f"{block}.rbr_1x1.conv.weight"]
        kernel, bias = _fold(dense, state, f"{block}.rbr_dense.bn")
        for padded, norm in ((_pad(point), "rbr_1x1.bn"), (_unit(dense), "rbr_identity")):
            if f"{block}.{norm}.weight" in state:
                other, constant = _fold(padded, state, f"{block}.{norm}")
                kernel, bias = kernel + other, bias + constant
        fused[f"{block}.rbr_reparam.weight"] = kernel.to(dense.dtype)
        fused[f"{block}.rbr_reparam.bias"] = bias.to(dense.dtype)
    return fused


def _fold(kernel: Tensor, state: dict[str, Tensor], norm: str) -> tuple[Tensor, Tensor]:
    mean, variance, weight, bias = (
        state[f"{norm}.{part}"].double()
        for part in ("running_mean", "running_var", "weight", "bias")
    )
    scale = weight / (variance + 1e-5).sqrt()
    return kernel.double() * scale[:, None, None, None], bias - mean * scale


def _pad(point: Tensor) -> Tensor:
    padded = torch.zeros(*point.shape[:2], 3, 3, dtype=point.dtype)
    padded[:, :, 1, 1] = point[:, :, 0, 0]
    return padded


def _unit(dense: Tensor) -> Tensor:
    unit = torch.zeros_like(dense)
    for channel in range(len(dense)):
        unit[channel, channel % dense.shape[1], 1, 1] = 1
    return unit
