"""One process or several, as torchrun starts them: who am I, and sums over all of them."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from reparam import ReparamError


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes:
        rank: The number of this process.
        count: How many there are.
        device: What this process computes on.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Adds up the values of all processes; they have to be on the device."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values

    def send_from_first(self, model: nn.Module) -> None:
        """Gives the model of the first process to all others, buffers included."""
        if self.count > 1:
            for tensor in model.state_dict().values():
                distributed.broadcast(tensor, src=0)

    def agree(self, value: int) -> bool:
        """Whether all processes hold the same number."""
        values = torch.tensor([value, -value], device=self.device)
        if self.count > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return bool(values[0] == -values[1])

    def wrap(self, model: nn.Module) -> nn.Module:
        """Makes the backward pass average the gradients over all processes."""
        if self.count == 1:
            return model
        return DistributedDataParallel(
            model, device_ids=None if self.device.type == "cpu" else [self.device]
        )


@contextmanager
def join(device: str = "auto") -> Iterator[Processes]:
    """Joins the processes that torchrun started, or stands alone without it.

    Args:
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.

    Raises:
        ReparamError: If there is no GPU for this process, or another process went away.
    """
    rank, count = _number("RANK"), _number("WORLD_SIZE", 1)
    chosen = _device(device)
    if count == 1:
        yield Processes(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    distributed.init_process_group("gloo" if chosen.type == "cpu" else "nccl")
    try:
        yield Processes(rank, count, chosen)
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise ReparamError(
            f"process {rank} of {count} lost the connection to another one; "
            "what that one printed tells why"
        ) from error
    finally:
        distributed.destroy_process_group()
        # Left to the end of the interpreter, gloo's threads abort the process now and then.
        gc.collect()


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    local_rank, gpus = _number("LOCAL_RANK"), torch.cuda.device_count()
    if local_rank >= gpus:
        raise ReparamError(
            f"this machine has {gpus} GPUs that PyTorch can use, too few for process "
            f"{local_rank} on it; start fewer processes, or choose --device cpu"
        )
    return torch.device("cuda", local_rank)


def _number(variable: str, default: int = 0) -> int:
    return int(os.environ.get(variable, str(default)))


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo raises a plain RuntimeError.
    return isinstance(error, distributed.DistError) or "gloo" in str(error).lower()
