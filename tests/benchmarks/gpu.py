"""The same comparison on a GPU: `python -m tests.benchmarks.gpu`, on any machine with CUDA."""

import time
from copy import deepcopy
from functools import lru_cache
from typing import Any

import click
import torch
from torch import nn

from tests.benchmarks import page
from tests.benchmarks.engines import Engine, Runner, compiled, eager
from tests.benchmarks.forms import FX, LIMIT, OURS, BareConvolutions, forms, reason
from tests.benchmarks.measuring import interleaved, summary
from tests.benchmarks.networks import TIMM
from tests.benchmarks.results import Kept
from tests.corpora.network import Network
from tests.support.correctness_page import run_versions


def graphed(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    """One CUDA graph: nothing but the kernels is left of the call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            model(*inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        model(*inputs)
    return graph.replay


def tuned(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    run = torch.compile(model, dynamic=False, mode="max-autotune")
    run(*inputs)
    return lambda: run(*inputs)


ENGINES: dict[str, Engine] = {
    "eager": eager,
    "CUDA graph": graphed,
    "torch.compile": compiled,
    "torch.compile, max-autotune": tuned,
}
TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LAYOUTS = {"": torch.contiguous_format, ", channels_last": torch.channels_last}


@lru_cache(maxsize=1)
def forms_of(network: Network) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The forms of the network that is measured now: making them takes longer than running them."""
    return forms(network, network.inputs(1, 1))


def measure(
    network: Network,
    batch: int,
    engine: str,
    dtype: str,
    layout: str,
    *,
    device: str = "cuda",
    rounds: int = 101,
    seconds: float = 10,
) -> dict[str, Any]:
    """Measure all forms of one network in one engine, type and layout."""
    made, missing = forms_of(network)
    inputs = tuple(
        value.to(device, TYPES[dtype]).contiguous(memory_format=LAYOUTS[layout])
        for value in network.inputs(batch, 1)
    )
    torch._dynamo.reset()
    runners: dict[str, Runner] = {}
    failed = dict(missing)
    with torch.no_grad():
        moved = {
            form: deepcopy(model).to(device, TYPES[dtype]).to(memory_format=LAYOUTS[layout])
            for form, model in made.items()
        }
        moved[LIMIT] = BareConvolutions(moved[OURS], inputs, LAYOUTS[layout])
        for form, model in moved.items():
            if "compile" in engine and form in (FX, LIMIT):
                continue
            try:
                runners[form] = ENGINES[engine](model, inputs)
                runners[form]()
            except Exception as problem:  # an engine that does not know an operator
                runners.pop(form, None)
                failed[form] = reason(problem)
        finish = torch.cuda.synchronize if device == "cuda" else lambda: None
        times = interleaved(runners, rounds, seconds, finish)
    return {
        "network": network.name,
        "library": network.library,
        "engine": f"{engine}, {dtype}{layout}",
        "batch": batch,
        "rounds": min(map(len, times.values()), default=0),
        "milliseconds": summary(times),
        "missing": failed,
    }


@click.command()
@click.option("--network", "names", multiple=True, help="Only these networks.")
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 32), show_default=True)
@click.option("--engine", "engines", multiple=True, type=click.Choice(list(ENGINES)))
@click.option("--rounds", default=101, show_default=True)
@click.option("--again", is_flag=True, help="Measure what was measured, too.")
def main(
    names: tuple[str, ...],
    batches: tuple[int, ...],
    engines: tuple[str, ...],
    rounds: int,
    again: bool,
) -> None:
    """Measures on the GPU, for docs/data/gpu.json and docs/benchmarks.md."""
    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA device: it takes a GPU and a CUDA build")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    kept = Kept(page.GPU, {"hardware": torch.cuda.get_device_name(), **run_versions(0)})
    start = time.perf_counter()
    for network in TIMM:
        if names and network.name not in names:
            continue
        for engine in engines or ENGINES:
            for dtype in TYPES:
                for layout in LAYOUTS:
                    label = f"{engine}, {dtype}{layout}"
                    for batch in batches:
                        done = kept.has(network=network.name, engine=label, batch=batch)
                        if done and not again:
                            continue
                        kept.add(measure(network, batch, engine, dtype, layout, rounds=rounds))
            print(f"{time.perf_counter() - start:6.0f} s  {network.name}: {engine}")
    page.write()


if __name__ == "__main__":
    main()
