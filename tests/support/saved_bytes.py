"""How many bytes a forward pass keeps for the backward pass."""

from typing import Any

import torch
from torch import Tensor, nn


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """The memory of all tensors that autograd saves, each storage counted once."""
    storages: dict[int, Any] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that its place is not given away
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        result = model(images)
    del result
    return sum(storage.nbytes() for storage in storages.values())


def saved_per_image(model: nn.Module, images: Tensor) -> tuple[float, float]:
    """What is saved for each image, and what is saved however many there are, such as weights."""
    half = images[: len(images) // 2].clone()
    few, many = saved_bytes(model, half), saved_bytes(model, images)
    per_image = (many - few) / (len(images) - len(half))
    return per_image, many - len(images) * per_image
