"""What the commands have in common: which model, with which weights and inputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from reparam.cli.words import (
    FORMS,
    InputShape,
    read_argument,
    read_path,
    read_shape,
    source_of,
)

NOTHING_FUSED = 3
"""Exit code where nothing was fused although it had to be."""


@dataclass
class Settings:
    """What holds for the whole program.

    Args:
        debug: Whether an error shows its traceback.
    """

    debug: bool = False


@dataclass(frozen=True)
class Request:
    """Which model a command is about.

    Args:
        model: Its name, in one of the `FORMS`.
        arguments: What is passed to the function that builds it.
        weights: A file of weights.
        inputs: Shapes of inputs; empty for those that the model is known to take.
        seed: Fixes what is random.
        randomise: Whether fresh batch norms get values of their own; None for what is usual for
            the command.
    """

    model: str
    arguments: dict[str, Any]
    weights: Path | None
    inputs: tuple[InputShape, ...]
    seed: int
    randomise: bool | None


def _set_debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    context.ensure_object(Settings).debug = value


def _known(_: click.Context, __: click.Parameter, value: str) -> str:
    if source_of(value) is not None:
        return value
    from reparam.cli.models import near_models

    near = near_models(value)
    advice = f"; did you mean {' or '.join(near)}?" if near else ""
    raise click.BadParameter(f"{value!r} is none of {FORMS}{advice}")


def read_by(read: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """Makes the callback of an option whose words a function reads: its ValueError is ours."""

    def convert(_: click.Context, __: click.Parameter, value: Any) -> Any:
        try:
            return tuple(map(read, value)) if isinstance(value, tuple) else value and read(value)
        except ValueError as error:
            raise click.BadParameter(str(error)) from error

    return convert


debug_option = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    callback=_set_debug,
    help="Show the traceback of an error.",
)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")

html_option = click.option(
    "--html",
    callback=read_by(read_path),
    metavar="FILE",
    help="Write the plan as a page, too.",
)

require_option = click.option(
    "--require-fused",
    is_flag=True,
    help=f"Exit with {NOTHING_FUSED} if nothing can be fused.",
)

cost_option = click.option(
    "--cost",
    type=click.Choice(["macs", "memory", "latency"]),
    default="macs",
    help="What must not rise; latency is measured, on the sizes of the inputs.",
)

keep_option = click.option(
    "--keep",
    multiple=True,
    metavar="PATH",
    help="Leave this module as it is, with all in it; may have wildcards, such as 'head.*', and be "
    "given several times.",
)

fold_norms_option = click.option(
    "--fold-norms",
    is_flag=True,
    help="Move the weights of norms into what reads them, too: it saves no operator, but rotations "
    "need it.",
)

threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1, max=os.cpu_count()),
    default=1,
    help="Number of CPU threads.",
)

_OPTIONS = (
    click.argument("model", metavar="MODEL", callback=_known),
    click.option(
        "--arg",
        "arguments",
        multiple=True,
        metavar="KEY=VALUE",
        callback=read_by(read_argument),
        help="Pass an argument to what builds MODEL: a Python literal, else a string. May be given "
        "several times.",
    ),
    click.option(
        "--weights",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Load these weights, exactly: .safetensors, or .pt and .pth with nothing but tensors.",
    ),
    click.option(
        "--input",
        "inputs",
        multiple=True,
        callback=read_by(read_shape),
        metavar="SHAPE",
        help="Shape of an input, such as 1,3,224,224 or 1x16:int64, or mask=1,16:bool for one that "
        "is given by name; once for each input.  [default: what MODEL is known to take]",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0, max=2**32 - 1),
        default=0,
        help="Fixes fresh weights and random inputs.",
    ),
    click.option(
        "--randomise-batch-norm/--no-randomise-batch-norm",
        "randomise",
        default=None,
        help="Give the batch norms of a fresh network values of their own, which are the identity "
        "otherwise.  [default: only for verify]",
    ),
    debug_option,
)


def model_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the argument MODEL and its options, which the command gets as one `Request`."""

    @wraps(command)
    def collected(
        *,
        model: str,
        arguments: tuple[tuple[str, Any], ...],
        weights: Path | None,
        inputs: tuple[InputShape, ...],
        seed: int,
        randomise: bool | None,
        **others: Any,
    ) -> Any:
        return command(Request(model, dict(arguments), weights, inputs, seed, randomise), **others)

    return _with_options(collected, _OPTIONS)


def planning_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds how to plan, and what to show of a plan."""
    options = (
        cost_option,
        fold_norms_option,
        keep_option,
        json_option,
        html_option,
        require_option,
    )
    return _with_options(command, options)


def _with_options(
    command: Callable[..., Any], options: Sequence[Callable[..., Any]]
) -> Callable[..., Any]:
    """A command with some options, in the order in which its help shows them."""
    for option in reversed(options):
        command = option(command)
    return command
