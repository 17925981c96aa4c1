"""Plans every architecture of timm, torchvision and transformers: none may raise.

`python -m tests.corpora.architectures` takes all of them, one after another in one process;
`--library timm --match "swin|maxvit"` takes some, and keeps what is known of the others. Large
networks have the structure alone, on the meta device. The rows are in docs/data/architectures.json.
"""

import argparse
import gc
import importlib
import json
import re
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import reparam
import tests.conftest  # noqa: F401 - makes torchvision importable

DATA = Path(__file__).resolve().parents[2] / "docs" / "data" / "architectures.json"

SMALL = 10_000_000
"""Networks of at most as many parameters are planned with their weights, too."""

LAYERS = 2
"""How many layers networks have that say it by a number."""

COUNTS = "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers".split()


@dataclass(frozen=True)
class Row:
    """What became of one architecture: "planned", "raised", "out of time" or "not built"."""

    library: str
    name: str
    outcome: str
    weights: str = "meta"
    fused: int = 0
    refused: int = 0
    detail: str = ""


class OutOfTimeError(BaseException):
    """Passes through whatever catches exceptions."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raise `OutOfTimeError` after some time."""

    def ring(signum: int, frame: Any) -> None:
        raise OutOfTimeError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class StructureAlone(TorchFunctionMode):
    """Memory that nobody has written to yet is none; small tables of numbers stay numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.empty, torch.randn, torch.rand) and kwargs.get("device") is None:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def timm_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every architecture of timm."""
    timm = importlib.import_module("timm")
    for name in timm.list_models():
        yield name, lambda name=name: timm.create_model(name)


def torchvision_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every architecture of torchvision, without weights."""
    models = importlib.import_module("torchvision.models")
    for name in models.list_models():
        without = {"weights": None}
        if name in models.list_models(models.detection) + models.list_models(models.segmentation):
            without["weights_backbone"] = None
        yield name, lambda name=name, without=without: models.get_model(name, **without)


def transformers_models() -> Iterator[tuple[str, Callable[[], nn.Module]]]:
    """Every model class that transformers maps a configuration to, with a few layers."""
    transformers = importlib.import_module("transformers")
    auto = importlib.import_module("transformers.models.auto.modeling_auto")
    configurations = dict(
        importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING_NAMES
    )
    kinds: dict[str, str] = {}
    for mapping, entries in vars(auto).items():
        if mapping.startswith("MODEL_") and mapping.endswith("MAPPING_NAMES"):
            for model_type, names in entries.items():
                for name in (names,) if isinstance(names, str) else names:
                    kinds.setdefault(name, model_type)
    for name, model_type in sorted(kinds.items()):
        if model_type in configurations:
            configuration = configurations[model_type]

            def build(name: str = name, configuration: str = configuration) -> nn.Module:
                config = getattr(transformers, configuration)()
                for part in (config, *vars(config).values()):
                    for count in COUNTS:
                        if isinstance(getattr(part, count, None), int):
                            with suppress(Exception):  # some say it by another number
                                setattr(part, count, min(LAYERS, getattr(part, count)))
                model: nn.Module = getattr(transformers, name)(config)
                return model

            yield name, build


LIBRARIES = {
    "timm": timm_models,
    "torchvision": torchvision_models,
    "transformers": transformers_models,
}


def structure(build: Callable[[], nn.Module], seconds: float) -> nn.Module:
    """A network without its numbers, or with them where its own code needs these.

    Raises:
        RuntimeError: If it cannot be built.
    """
    problems = []
    for around in (torch.device("meta"), StructureAlone(), nullcontext()):
        try:
            with within(seconds), around:
                model = build()
            return model.to("meta").eval()
        except (Exception, OutOfTimeError) as error:
            problems.append(described(error))
    raise RuntimeError(problems[-1])


def outcome(library: str, name: str, build: Callable[[], nn.Module], seconds: float) -> Row:
    """Plan one architecture, with its weights if it is small."""
    try:
        model = structure(build, seconds)
    except RuntimeError as error:
        return Row(library, name, "not built", detail=str(error))
    small = sum(parameter.numel() for parameter in model.parameters()) <= SMALL
    weights = "random" if small else "meta"
    if small:
        model = build().eval()
    try:
        with within(seconds):
            plan = reparam.plan(model)
    except OutOfTimeError:
        return Row(library, name, "out of time", weights)
    except Exception as error:
        return Row(library, name, "raised", weights, detail=described(error))
    return Row(library, name, "planned", weights, len(plan.fused), len(plan.refused))


def described(error: BaseException) -> str:
    """An exception in one line."""
    return f"{type(error).__name__}: {error}".strip().split("\n", 1)[0][:200]


def kept() -> dict[tuple[str, str], Row]:
    """The rows of earlier runs."""
    rows = json.loads(DATA.read_text(encoding="utf-8")) if DATA.exists() else []
    return {(row["library"], row["name"]): Row(**row) for row in rows}


def write(rows: dict[tuple[str, str], Row]) -> None:
    """Write all rows, one a line."""
    lines = [json.dumps(asdict(rows[key])) for key in sorted(rows)]
    DATA.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8")


def main() -> None:
    """Plan what the arguments select, and renew its rows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", choices=[*LIBRARIES], action="append")
    parser.add_argument("--match", default="", help="a regular expression that names must match")
    parser.add_argument("--seconds", type=float, default=120.0, help="at most, per architecture")
    parser.add_argument("--missing", action="store_true", help="leave out what has a row")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows = kept()
    for library in options.library or LIBRARIES:
        for name, build in LIBRARIES[library]():
            if not re.search(options.match, name) or (options.missing and (library, name) in rows):
                continue
            start = time.perf_counter()
            row = rows[library, name] = outcome(library, name, build, options.seconds)
            took = time.perf_counter() - start
            print(f"{took:6.1f} s  {library} {name}: {row.outcome} {row.detail}", flush=True)
            write(rows)
            gc.collect()


if __name__ == "__main__":
    main()
