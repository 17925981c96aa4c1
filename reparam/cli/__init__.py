"""The command line: `reparam`, or `python -m reparam`, with one file per command.

What needs PyTorch is imported when a command runs, so that `--help` answers at once.

Files, in the order in which data flows: `words`, `outputs`, `printing`, `progress`, `models`,
`options`, `preparing`, `rules`, `bench`, `fuse`, `plan`, `verify`.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence

import click

from reparam import __version__
from reparam.cli.bench import bench
from reparam.cli.fuse import fuse
from reparam.cli.options import Settings
from reparam.cli.plan import plan
from reparam.cli.printing import error_line
from reparam.cli.rules import rules
from reparam.cli.verify import verify
from reparam.errors import ReparamError

_FAILED = 1
_INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="reparam")
def _commands() -> None:
    """Fuses the linear branches of a network into single operators that compute the same.

    Exit codes: 0, 1 for a failure, 2 for wrong usage, 3 where verify finds a difference or nothing
    was fused under --require-fused, 130 after Ctrl-C.
    """


for _command in (plan, fuse, verify, bench, rules):
    _commands.add_command(_command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: The words after the program's name; those of the process if `None`.

    Returns:
        The exit code: 0, 1 for a failure, 2 for wrong usage, 3 where `verify` finds a difference
        or nothing was fused although it had to be, 130 after Ctrl-C.
    """
    settings = Settings()
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("ignore", FutureWarning)  # these are for whoever calls PyTorch
            code = _commands.main(
                arguments, prog_name="reparam", standalone_mode=False, obj=settings
            )
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return _INTERRUPTED
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _FAILED
    except Exception as error:  # the model's code and its library may raise anything
        if settings.debug:
            traceback.print_exc()
        click.echo(f"Error: {_in_one_line(error)}", err=True)
        return _FAILED
    return code if isinstance(code, int) else 0


def _in_one_line(error: Exception) -> str:
    if isinstance(error, ReparamError):
        return " ".join(str(error).split())
    return f"{error_line(error)} (--debug shows where)"


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"Warning: {' '.join(str(message).split())}", err=True)
