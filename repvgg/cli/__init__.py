"""The command line: `python -m repvgg`, with one file per command.

A command (`convert`) stands beside what it does (`weight_conversion`); likewise `bench` and
`latencies`, `demo` and `demo_run`, `evaluate` and `accuracy`.

Files, in the order in which data flows: `options`, `latencies`, `bench`, `weight_conversion`,
`convert`, `accuracy`, `evaluate`, `operations`, `picture`, `demo_run`, `demo`, `train`.
"""

from __future__ import annotations

from collections.abc import Sequence

import click

from reparam import ReparamError
from repvgg.cli.bench import bench
from repvgg.cli.convert import convert
from repvgg.cli.demo import demo
from repvgg.cli.evaluate import evaluate
from repvgg.cli.train import train

_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def _commands() -> None:
    """RepVGG networks: train them with branches, fuse them with reparam."""


for _command in (demo, train, evaluate, convert, bench):
    _commands.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after the program's name; those of the process if `None`.

    Returns:
        The exit code: 0, 1 for a failure, 2 for wrong usage, 130 after Ctrl-C.
    """
    try:
        code = _commands.main(arguments, prog_name="python -m repvgg", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except ReparamError as error:
        click.echo(f"Error: {error}", err=True)
        return 1
    return code if isinstance(code, int) else 0
