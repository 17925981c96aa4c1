"""What `reparam.fuse` costs beside a busy process: `python -m tests.benchmarks busy`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

import reparam
from tests.benchmarks.fusing import chain, network
from tests.benchmarks.results import Kept

NETWORKS = ("chain of 300", "mobileone_s0", "repvit_m0_9", "repvgg_a0")
THREADS = (1, 2)
"""Numbers of threads that the user of `fuse` has set."""

NEIGHBOUR = """
import torch
torch.set_num_threads(2)
a = torch.rand(1024, 1024)
print("busy", flush=True)
while True:
    a @ a
"""


@contextmanager
def busy() -> Iterator[None]:
    """Let a process of two threads multiply matrices meanwhile."""
    command = [sys.executable, "-c", NEIGHBOUR]
    free = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=free) as neighbour:
        try:
            assert neighbour.stdout is not None
            neighbour.stdout.readline()
            yield
        finally:
            neighbour.kill()


def seconds(name: str, threads: int, repeats: int = 3) -> float:
    """The least time of `fuse` on some threads."""
    model = chain(300) if name == "chain of 300" else network(name)
    torch.set_num_threads(threads)
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        reparam.fuse(model)
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure(name: str, repeats: int = 3) -> dict[str, Any]:
    """The time of `fuse` by itself and beside a busy process, each in a process of its own."""
    times = {}
    for where in ("alone", "beside"):
        for threads in THREADS:
            command = [sys.executable, "-m", "tests.benchmarks.busy", name, str(threads), where]
            free = {**os.environ, "OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
            output = subprocess.run(
                [*command, str(repeats)], check=True, capture_output=True, text=True, env=free
            ).stdout
            times[f"{where}, {threads}"] = json.loads(output.splitlines()[-1])
    return {"what": "busy", "network": name, "seconds": times}


def measure_all(kept: Kept) -> None:
    """Measure all networks."""
    for name in NETWORKS:
        kept.add(measure(name))


if __name__ == "__main__":
    chosen, number, place, times = sys.argv[1:]
    if place == "alone":
        print(round(seconds(chosen, int(number), int(times)), 4))
    else:
        with busy():
            print(round(seconds(chosen, int(number), int(times)), 4))
