"""How fast the forms of a network run in each engine: `python -m tests.benchmarks inference`."""

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch

from tests.benchmarks.engines import ENGINES
from tests.benchmarks.forms import AGAIN, FX, LIMIT, OURS, BareConvolutions, forms, reason
from tests.benchmarks.measuring import interleaved, summary
from tests.corpora.network import Network
from tests.support.counting import count_operators

COMPILED = {"repvgg_a0", "mobileone_s0", "repvit_m0_9", "fastvit_t8", "resnet50", "tiny"}
"""The networks that are compiled, which takes minutes each."""


def measure(
    network: Network,
    batches: Sequence[int],
    engines: Sequence[str],
    rounds: int,
    seconds: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Measure all forms of one network.

    Args:
        network: The network.
        batches: How many inputs at a time.
        engines: Names of the engines.
        rounds: How often each form runs, at most.
        seconds: How long the rounds of one comparison may take.
        keep: Takes each result.
    """
    engines = [e for e in engines if "compile" not in e or network.name in COMPILED]
    if not engines:
        return
    made, missing = forms(network, network.inputs(1, 1))
    counts = {
        form: [counted.convolutions, counted.batch_norms, counted.additions, counted.macs]
        for form, model in made.items()
        for counted in [count_operators(model, network.inputs(1, 1))]
    }
    for engine in engines:
        for batch in batches:
            if "compile" in engine and batch > 1:
                continue
            inputs = network.inputs(batch, 1)
            runners, failed = {}, dict(missing)
            torch._dynamo.reset()
            with torch.inference_mode("compile" not in engine), torch.no_grad():
                for form, model in made.items():
                    if "eager" not in engine and form in (FX, AGAIN):
                        continue
                    try:
                        runners[form] = ENGINES[engine](deepcopy(model), inputs)
                        runners[form]()
                    except Exception as problem:  # an engine that does not know an operator
                        runners.pop(form, None)
                        failed[form] = reason(problem)
                if OURS in runners and "eager" not in engine:
                    runners[AGAIN] = runners[OURS]
                if OURS in runners and "eager" in engine:
                    last = engine.endswith("channels_last")
                    layout = torch.channels_last if last else torch.contiguous_format
                    ours = deepcopy(made[OURS]).to(memory_format=layout)
                    runners[LIMIT] = BareConvolutions(ours, inputs, layout)
                times = interleaved(runners, rounds, seconds) if len(runners) > 1 else {}
            keep(
                {
                    "network": network.name,
                    "library": network.library,
                    "multi_branch": getattr(network, "multi_branch", False),
                    "engine": engine,
                    "batch": batch,
                    "rounds": min(map(len, times.values()), default=0),
                    "milliseconds": summary(times),
                    "missing": failed,
                    "operators": counts,
                }
            )
