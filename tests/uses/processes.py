"""What other processes run; they import neither pytest nor a model library."""

import os
import pickle
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def in_processes(function: Callable[..., Any], arguments: list[tuple[Any, ...]]) -> list[Any]:
    """What a function returns in one spawned process per tuple of arguments."""
    context = torch.multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    processes = [
        context.Process(target=_put, args=(queue, index, function, *args))
        for index, args in enumerate(arguments)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=120)
    results: dict[int, Any] = {}
    while not queue.empty():
        index, result = queue.get()
        results[index] = result
    codes = [process.exitcode for process in processes]
    for process in processes:
        process.kill()  # one that waits for another in vain would keep the tests from ending
    assert len(results) == len(processes), f"a process raised; exit codes {codes}"
    return [results[index] for index in range(len(processes))]


def _put(queue: Any, index: int, function: Callable[..., Any], *args: Any) -> None:
    torch.set_num_threads(1)
    queue.put((index, function(*args)))
    os._exit(0)  # torch's communication threads may abort a process, or hang, while it is undone


def answer(model: nn.Module, x: Tensor) -> list[list[float]]:
    """A model's output."""
    with torch.no_grad():
        return model(x).tolist()


def train(rank: int, pickled: bytes, x: Tensor, store: str) -> list[float]:
    """Two steps of one of two processes; the sum of each parameter afterwards.

    The model comes as bytes, since torch would let both processes share its memory.
    """
    model: nn.Module = pickle.loads(pickled)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=2
    )
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.01)
    for _ in range(2):  # the second step raises if a parameter was not used in the first
        optimizer.zero_grad()
        F.cross_entropy(parallel(x + rank), torch.tensor([1, 2])).backward()
        optimizer.step()
    torch.distributed.barrier()  # the other may still read of what this one sent
    return [float(p.detach().double().sum()) for p in parallel.parameters()]
