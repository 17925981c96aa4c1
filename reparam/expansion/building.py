"""The branches of one layer, and what is left of its kernel without them."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd

from reparam.algebra import AffineConv, identity
from reparam.errors import Refusal, ReparamError
from reparam.expansion.blocks import Block, Kernel, Pool, Scale, Size, Skip, Step
from reparam.expansion.collapsing import forms_of, write
from reparam.expansion.expanded_layers import ChannelScale, ExpandedLayer, in_a_row

Layer = _ConvNd | nn.Linear

_CONVOLUTIONS: Mapping[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}

_POOLS: Mapping[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}

_PADS: Mapping[int, Any] = {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d}


class MisfitError(Exception):
    """A block, or a branch of it, is none for a layer."""


def trains_alike(made: ExpandedLayer) -> bool:
    """Whether an expanded layer would train like the layer alone, since each branch is one again.

    All branches then have the same gradient.
    """
    (layer,) = made.main
    return all(
        len(branch) == 1
        and type(branch[0]) is type(layer)
        and getattr(branch[0], "kernel_size", None) == getattr(layer, "kernel_size", None)
        for branch in made.sequences()
    )


def expanded(layer: Layer, block: Block) -> ExpandedLayer | Refusal:
    """A layer with the branches of a block, which computes what the layer does."""
    branches: list[nn.Sequential] = []
    for steps in block.branches:
        try:
            branches.append(_Branch(layer).built(steps))
        except MisfitError as misfit:
            # As in the papers: where the input cannot be added, there is no such branch.
            if not any(isinstance(step, Skip) for step in steps):
                return Refusal(str(misfit))
    if not branches:
        return Refusal(f"no branch of {block.name} is one for this layer")
    made = ExpandedLayer(nn.Sequential(copy.deepcopy(layer)), branches)
    made.train(layer.training)
    problem = take_out(made)
    return problem or made


def put_back(module: ExpandedLayer) -> None:
    """Add what the other branches compute to the main kernel, which has all of it then."""
    layer: Any = module.main_layer
    _, total = forms_of(module)
    if isinstance(total, AffineConv) and not layer.weight.is_meta:
        write(layer, *total.weights.evaluate())


def take_out(module: ExpandedLayer) -> Refusal | None:
    """Take what the other branches compute out of the main kernel, or say why that cannot be.

    The weights are computed in float64 and rounded once.
    """
    layer: Any = module.main_layer
    if layer.weight.is_meta:
        return None
    own, total = forms_of(module)
    if isinstance(total, Refusal):
        return total
    (kernel, bias), (summed, constant) = own.weights.evaluate(), total.weights.evaluate()
    taken = None if bias is None or constant is None else 2 * bias - constant
    write(layer, 2 * kernel - summed, taken)
    return None


class _Branch:
    """Builds the layers of a branch beside a layer."""

    def __init__(self, layer: Layer) -> None:
        self.layer = layer
        self.axes = len(layer.kernel_size) if isinstance(layer, _ConvNd) else 0
        weight = layer.weight
        self.like: dict[str, Any] = {"device": weight.device, "dtype": weight.dtype}
        self.groups = layer.groups if isinstance(layer, _ConvNd) else 1
        if isinstance(layer, _ConvNd):
            self.widths = layer.in_channels, layer.out_channels
        else:
            self.widths = layer.in_features, layer.out_features

    def built(self, steps: Sequence[Step]) -> nn.Sequential:
        """The layers of a branch.

        Raises:
            MisfitError: If there is no such branch beside the layer.
            ReparamError: If its steps are none in this order.
        """
        layers: list[nn.Module] = []
        channels = self.widths[0]
        spatial = self._spatial(steps)
        for index, step in enumerate(steps):
            place = index == spatial
            if isinstance(step, Kernel):
                made = self._channels_of(step, steps[index + 1 :])
                layers += self._kernel(step, channels, made, place=place)
                channels = made
            elif isinstance(step, Pool):
                layers += self._pool(step, place=place)
            elif isinstance(step, Scale):
                layers.append(
                    ChannelScale(channels, self.axes, step.start, trained=step.trained, **self.like)
                )
            else:
                self._check_skip()
                layers.append(nn.Identity())
        if channels != self.widths[1]:
            raise MisfitError(
                f"a branch makes {channels} channels beside {self.widths[1]}: end it with a Kernel"
            )
        if not self.axes and all(isinstance(step, Skip) for step in steps):
            raise MisfitError("a linear layer with the input beside it")
        return nn.Sequential(*layers)

    def _spatial(self, steps: Sequence[Step]) -> int | None:
        """The step with the layer's stride and padding: the one of several taps, or the last."""
        own = [
            index
            for index, step in enumerate(steps)
            if isinstance(step, Kernel | Pool) and any(k > 1 for k in self._size(step.size))
        ]
        if len(own) > 1:
            raise ReparamError(
                "a branch with two kernels of several taps in a row: at the border their padding "
                "would differ from that of one"
            )
        kernels = [i for i, step in enumerate(steps) if isinstance(step, Kernel | Pool)]
        return own[0] if own else (kernels[-1] if kernels else None)

    def _size(self, size: Size) -> tuple[int, ...]:
        """A kernel size with one entry per axis."""
        if not isinstance(self.layer, _ConvNd):
            return ()
        own = self.layer.kernel_size
        asked = size if isinstance(size, tuple) else (size,) * len(own)
        if len(asked) != len(own):
            raise MisfitError(f"a kernel of {len(asked)} axes beside one of {len(own)}")
        sizes = tuple(k if wanted is None else wanted for wanted, k in zip(asked, own, strict=True))
        if any(wanted > k for wanted, k in zip(sizes, own, strict=True)):
            raise MisfitError(f"a kernel of {sizes} does not fit into one of {own}")
        return sizes

    def _channels_of(self, step: Kernel, rest: Sequence[Step]) -> int:
        """How many channels a kernel makes."""
        if step.channels is None:
            last = not any(isinstance(later, Kernel) for later in rest)
            return self.widths[1] if last else self.widths[0]
        wanted = step.channels
        if isinstance(wanted, float):
            wanted = round(wanted * self.widths[0])
        return max(-(-wanted // self.groups), 1) * self.groups  # as many in each group

    def _kernel(self, step: Kernel, channels: int, made: int, *, place: bool) -> list[nn.Module]:
        """A convolution, or a linear layer, and the padding before it."""
        if not self.axes:
            linear = nn.Linear(channels, made, bias=False, **self.like)
            return [_started(linear, step)]
        size = self._size(step.size)
        pads, settings = self._geometry(size, place=place)
        mode = self.layer.padding_mode if place else "zeros"
        conv = _CONVOLUTIONS[self.axes](
            channels,
            made,
            size,
            groups=self.groups,
            bias=False,
            padding_mode=mode,
            **settings,
            **self.like,
        )
        return [*pads, _started(conv, step)]

    def _pool(self, step: Pool, *, place: bool) -> list[nn.Module]:
        """An average pool, and the padding before it."""
        if not isinstance(self.layer, _ConvNd):
            raise MisfitError("a pool beside a linear layer")
        if self.layer.padding_mode != "zeros" or set(self.layer.dilation) != {1}:
            raise MisfitError("a pool beside a convolution that is dilated, or pads with no zeros")
        size = self._size(step.size)
        pads, settings = self._geometry(size, place=place)
        settings.pop("dilation")
        too_wide = any(2 * side > k for side, k in zip(settings["padding"], size, strict=True))
        if too_wide or self.axes == 3:
            # Torch's pools pad by half of their kernel at most, and those over three axes want
            # an input of the kernel's size before they pad.
            pads = [_PADS[self.axes](_flat([(side, side) for side in settings["padding"]]))]
            settings["padding"] = (0,) * self.axes
        return [*pads, _POOLS[self.axes](size, **settings)]

    def _geometry(
        self, size: tuple[int, ...], *, place: bool
    ) -> tuple[list[nn.Module], dict[str, Any]]:
        """What pads before a kernel in the middle of the layer's own, and the kernel's settings."""
        layer: Any = self.layer
        if not place:
            ones = (1,) * self.axes
            return [], {"stride": ones, "dilation": ones, "padding": (0,) * self.axes}
        sides = [
            (before - d * ((k - own) // 2), after - d * (k - own - (k - own) // 2))
            for (before, after), d, k, own in zip(
                _sides(layer), layer.dilation, layer.kernel_size, size, strict=True
            )
        ]
        settings: dict[str, Any] = {"stride": layer.stride, "dilation": layer.dilation}
        if all(before == after >= 0 for before, after in sides):
            return [], {**settings, "padding": tuple(before for before, _ in sides)}
        if layer.padding_mode != "zeros" and any(side > 0 for pair in sides for side in pair):
            raise MisfitError(
                f"a smaller kernel beside one that pads by {layer.padding_mode!r} unevenly"
            )
        return [_PADS[self.axes](_flat(sides))], {**settings, "padding": (0,) * self.axes}

    def _check_skip(self) -> None:
        """Raise a MisfitError unless the input may be added to what the layer computes."""
        layer = self.layer
        if self.widths[0] != self.widths[1]:
            raise MisfitError("the input has another number of channels")
        if isinstance(layer, _ConvNd):
            if set(layer.stride) != {1}:
                raise MisfitError("the layer has a stride")
            for (before, after), d, k in zip(
                _sides(layer), layer.dilation, layer.kernel_size, strict=True
            ):
                if before + after != d * (k - 1) or before % d:
                    raise MisfitError("the layer changes the size of its input")


def _sides(layer: _ConvNd) -> list[tuple[int, int]]:
    """How much a convolution pads before and after each axis."""
    form: Any = in_a_row([layer], identity("x"))
    return [(axis.before, axis.after) for axis in form.axes]


def _flat(sides: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Paddings as torch takes them: the last axis first."""
    return tuple(side for pair in reversed(sides) for side in pair)


def _started(layer: Any, step: Kernel) -> nn.Module:
    """A layer with the weights that it starts with."""
    if step.zero:
        nn.init.zeros_(layer.weight)
    module: nn.Module = layer
    return module
