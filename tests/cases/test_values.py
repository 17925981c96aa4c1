"""What happens to a value on its way: shapes read, detached, cast, checkpointed, under autocast."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import reparam
from tests.cases.checking import answers, assert_exact
from tests.refusals.checking import Network, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

C = 4
Step = Callable[[Any, Tensor], Tensor]


def network(step: Step) -> nn.Module:
    """A step between a convolution and its batch norm."""
    return ready(
        Network(
            lambda self, x: self.norm(step(self, self.conv(x))),
            conv=nn.Conv2d(C, C, 1),
            norm=nn.BatchNorm2d(C),
        )
    )


def asserted(m: Any, y: Tensor) -> Tensor:
    assert y.shape[1] == C
    assert y.ndim == 4
    return y


def reshaped(m: Any, y: Tensor) -> Tensor:
    batch, channels, height, width = y.shape
    return y.reshape(batch, channels, height * width).reshape(batch, channels, height, width)


NOTHING: dict[str, Step] = {
    "shape read": lambda m, y: (y.shape[0], y)[1],
    "size read": lambda m, y: (y.size(), y.size(1), y.dim(), y)[3],
    "asserted": asserted,
    "scaled by its size": lambda m, y: y / y.shape[1],
    "contiguous": lambda m, y: y.contiguous(),
    "channels last": lambda m, y: y.contiguous(memory_format=torch.channels_last),
    "clone": lambda m, y: y.clone(),
    "to its type": lambda m, y: y.to(y.dtype),
    "to its device": lambda m, y: y.to(y.device),
    "to the weight's type": lambda m, y: y.to(m.conv.weight.dtype),
    "to the weight": lambda m, y: y.to(m.conv.weight),
    "type_as": lambda m, y: y.type_as(m.conv.weight),
    "to float64": lambda m, y: y.to(torch.float64),
    "double": lambda m, y: y.double(),
    "cpu": lambda m, y: y.cpu(),
    "detach": lambda m, y: y.detach(),
    "data": lambda m, y: y.data,
    "requires_grad_": lambda m, y: y.requires_grad_(False),
    "reshaped": reshaped,
    "view_as": lambda m, y: y.view_as(y),
    "flat": lambda m, y: y.flatten(2).unflatten(2, y.shape[2:]),
    "transposed": lambda m, y: y.transpose(2, 3).transpose(2, 3),
    "index": lambda m, y: y[:, :, :],
    "ellipsis": lambda m, y: y[...],
    "unsqueezed": lambda m, y: y.unsqueeze(0).squeeze(0),
    "expanded": lambda m, y: y.expand(-1, -1, -1, -1),
    "expanded to itself": lambda m, y: y.expand_as(y),
    "chunks": lambda m, y: torch.cat(y.chunk(2, 1), 1),
    "split": lambda m, y: torch.cat(y.split([1, 3], 1), 1),
    "stacked": lambda m, y: torch.stack([y, y]).sum(0),
    "interpolated to itself": lambda m, y: F.interpolate(y, scale_factor=1.0),
    "rolled": lambda m, y: y.roll(1, 2),
    "flipped": lambda m, y: y.flip(3),
    "permuted channels": lambda m, y: y[:, [3, 1, 0, 2]],
    "shuffled channels": lambda m, y: F.channel_shuffle(y, 2),
    "first image": lambda m, y: y[:1],
    "doubled batch": lambda m, y: y.repeat(2, 1, 1, 1),
    "cropped": lambda m, y: y[:, :, 1:-1, 1:],
    "every second": lambda m, y: y[:, :, ::2, ::2],
    "softmax": lambda m, y: y.softmax(1),
    "norm": lambda m, y: F.normalize(y, dim=1),
    "where": lambda m, y: torch.where(y > 0, y, 0.1 * y),
    "gather": lambda m, y: y.gather(1, torch.zeros_like(y, dtype=torch.int64)),
    "float and back": lambda m, y: y.float().double(),
    "float and to": lambda m, y: y.to(torch.float32).to(torch.float64),
    "half and back": lambda m, y: y.half().double(),
    "bfloat16 and type_as": lambda m, y: y.bfloat16().type_as(m.conv.weight),
    "integers": lambda m, y: (y * 8).long().double(),
    "rounded": lambda m, y: (y * 8).round() / 8,
    "complex": lambda m, y: torch.view_as_real(y.to(torch.complex128))[..., 0],
    "fourier": lambda m, y: torch.fft.ifft2(torch.fft.fft2(y)).real,
    "sparse": lambda m, y: y.to_sparse().to_dense(),
}  # fmt: skip


@pytest.mark.parametrize("name", NOTHING)
def test_a_step_between_a_convolution_and_its_batch_norm(name: str) -> None:
    """Shape reads, detach, contiguous, views and casts in the middle of a pattern."""
    assert_exact(network(NOTHING[name]), images())


@pytest.mark.parametrize("name", ["shape read", "contiguous", "clone", "size read"])
def test_a_step_that_is_none_does_not_keep_a_batch_norm(name: str) -> None:
    """These steps compute nothing."""
    fused = assert_exact(network(NOTHING[name]), images())
    assert count_operators(fused, (images(),)).batch_norms == 0


@pytest.mark.parametrize("name", ["float and back", "float and to", "half and back", "rounded"])
def test_rounding_is_not_folded_away(name: str) -> None:
    """Rounding to another type is not affine; a network without it differs."""
    model = network(NOTHING[name])
    naive = network(lambda m, y: y)
    naive.load_state_dict(model.state_dict())
    error = relative_error(answers(naive, images()), answers(model, images()))
    assert error > 1e-9  # of the network that leaves the rounding out


@pytest.mark.parametrize("cast", [torch.float16, torch.bfloat16])
def test_a_norm_in_float32_after_a_half_precision_convolution(cast: torch.dtype) -> None:
    """`norm(conv(x).float())` gives float32, as mixed-precision code writes it."""
    model = network(lambda m, y: y.float()).float()
    model.conv.to(cast)
    fused, x = reparam.fuse(model), images().to(cast)
    assert run(fused, (x,)).dtype == torch.float32
    assert relative_error(run(fused, (x,)), run(model, (x,)).double()) < 1e-6


def assert_same_gradients(model: nn.Module, fused: nn.Module) -> None:
    """The gradients of the input are equal."""
    gradients = []
    for each in (model, fused):
        x = images().requires_grad_()
        each(x).square().sum().backward()
        gradients.append(x.grad)
    assert relative_error(gradients[1], gradients[0]) <= 1e-9


@pytest.mark.parametrize("step", ["detach", "data", "no grad"])
def test_gradients_stop_where_they_stopped(step: str) -> None:
    """A detached branch gets no gradient before, and none after."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        if step == "no grad":
            with torch.no_grad():
                z = self.other(x)
        else:
            z = self.other(x).detach() if step == "detach" else self.other(x).data
        return self.norm(y + z)

    model = ready(Network(forward, conv=nn.Conv2d(C, C, 1), other=nn.Conv2d(C, C, 1),
                          norm=nn.BatchNorm2d(C)))  # fmt: skip
    fused = assert_exact(model, images())
    assert_same_gradients(model, fused)


# -- Checkpointing --------------------------------------------------------------------------------


CHECKPOINTS: dict[str, Callable[[Any, Tensor], Any]] = {
    "block": lambda m, x: checkpoint(m.block, x, use_reentrant=False),
    "block, reentrant": lambda m, x: checkpoint(m.block, x, use_reentrant=True),
    "function": lambda m, x: checkpoint(lambda y: m.block(y) + y, x, use_reentrant=False),
    "layers": lambda m, x: m.norm(checkpoint(m.conv, x, use_reentrant=False)),
    "sequential": lambda m, x: checkpoint_sequential(m.block, 2, x, use_reentrant=False),
    "only in training": lambda m, x: checkpoint(m.block, x, use_reentrant=False)
    if m.training
    else m.block(x),
    "only with gradients": lambda m, x: checkpoint(m.block, x, use_reentrant=False)
    if torch.is_grad_enabled()
    else m.block(x),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpointing(name: str) -> None:
    """`torch.utils.checkpoint` runs a block through a function that tracing cannot follow."""
    block = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C))
    model = ready(
        Network(CHECKPOINTS[name], block=block, conv=nn.Conv2d(C, C, 1), norm=nn.BatchNorm2d(C))
    )
    fused = assert_exact(model, images())
    assert_same_gradients(model, fused)


# -- Autocast -------------------------------------------------------------------------------------


def in_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.norm(m.conv(x))


def norm_outside(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = m.conv(x)
    return m.norm(y.float())


def norm_without(m: Any, x: Tensor) -> Tensor:
    y = m.conv(x)
    with torch.autocast("cpu", enabled=False):
        return m.norm(y.float())


@torch.autocast("cpu", dtype=torch.bfloat16)
def decorated(m: Any, x: Tensor) -> Tensor:
    return m.norm(m.conv(x))


@pytest.mark.parametrize("forward", [in_autocast, norm_outside, norm_without, decorated])
def test_autocast_in_forward(forward: Callable[..., Any]) -> None:
    """A forward that casts: the same types come out, and the numbers of that precision."""
    model = ready(Network(forward, conv=nn.Conv2d(C, C, 1), norm=nn.BatchNorm2d(C))).float()
    x = images().float()
    for example_inputs in (None, x):
        fused = reparam.fuse(model, example_inputs)
        y, expected = run(fused, (x,)), run(model, (x,))
        assert y.dtype == expected.dtype
        assert relative_error(y, expected.double()) < 0.05
        if forward is norm_without:
            assert relative_error(y, expected.double()) < 1e-6


def test_fusing_under_autocast_is_as_exact_as_without() -> None:
    """The weights are folded in float64 whatever is set around."""
    model = network(lambda m, y: y)
    for single in (model, deepcopy(model).float()):
        x = images().to(next(single.parameters()).dtype)
        plain = reparam.fuse(single)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            fused = reparam.fuse(single, x)
        for name, tensor in plain.state_dict().items():
            assert torch.equal(tensor, fused.state_dict()[name])


def test_a_fused_network_runs_under_autocast() -> None:
    """The same type comes out as of the network before."""
    model, x = network(lambda m, y: y).float(), images().float()
    fused = reparam.fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, expected = run(fused, (x,)), run(model, (x,))
    assert relative_error(y.double(), expected.double()) < 0.05
