"""Networks with channels of very different ranges, and what equalising them does."""

from typing import Any

import torch
from torch import Tensor, fx, nn

import reparam
from tests.support.errors import FLOAT64_BOUND, relative_error, run
from tests.support.randomise import randomise_batch_norm
from tests.support.snapshot import Snapshot


def spread(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives the rows and columns of every weight ranges from 1/16 to 16, in eval mode."""
    randomise_batch_norm(model.eval(), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                for axis in (0, 1):
                    shape = [1] * parameter.dim()
                    shape[axis] = parameter.shape[axis]
                    exponents = 8 * torch.rand(shape, generator=generator) - 4
                    parameter.mul_(exponents.exp2())
    return model


def image(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def equalized(model: nn.Module, *inputs: Tensor, **options: Any) -> nn.Module:
    """The equalised model, which must compute the same and leave the model as it was."""
    model = model.double()
    before = Snapshot(model)
    equal = reparam.equalize(model, **options)
    before.assert_unchanged()
    assert type(equal) is type(model) or isinstance(model, fx.GraphModule)  # each has its own type
    assert relative_error(run(equal, inputs), run(model, inputs)) <= FLOAT64_BOUND
    return equal


def scaled(equal: nn.Module) -> set[str]:
    """The layers whose outputs are scaled."""
    rows = equal.reparam_report.equalized
    return {row.place.partition(" ")[0] for row in rows if row.channels[0]}


def reasons(equal: nn.Module) -> dict[str, str]:
    """Why which layers are not scaled."""
    rows = equal.reparam_report.refused
    return {row.place.partition(" ")[0]: row.reason for row in rows}
