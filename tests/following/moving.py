"""Random updates of a model, as training makes them."""

from typing import TypeVar

import torch
from torch import nn

ModelT = TypeVar("ModelT", bound=nn.Module)


def moved(model: ModelT, seed: int = 0) -> ModelT:
    """The model, after a random update of all parameters and statistics, which it keeps."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).to(parameter) * 0.1)
        for name, buffer in model.named_buffers():
            random = torch.rand(buffer.shape, generator=generator)
            if name.endswith("running_mean"):
                buffer.add_(random.to(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(1 + random.to(buffer))
    return model
