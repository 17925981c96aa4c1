"""`python -m reparam`, and the command `reparam`: the command line of `reparam.cli`."""

from __future__ import annotations

import sys


def run() -> int:
    """Runs the command line, or says what it lacks.

    Returns:
        The exit code.
    """
    try:
        from reparam.cli import main
    except ModuleNotFoundError as error:
        if error.name != "click":
            raise
        print(
            "Error: click is not installed; the command line needs it: pip install 'reparam[cli]'",
            file=sys.stderr,
        )
        return 1
    return main()


if __name__ == "__main__":
    sys.exit(run())
