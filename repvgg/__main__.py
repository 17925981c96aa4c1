"""`python -m repvgg`, the command line of `repvgg.cli`."""

import sys

_OF_THE_DEMO_EXTRA = {"click", "matplotlib", "safetensors", "sklearn"}


def _run() -> int:
    try:
        from repvgg.cli import main

        return main()
    except ModuleNotFoundError as error:
        if error.name not in _OF_THE_DEMO_EXTRA:
            raise
        print(
            f"Error: {error.name} is not installed; the command line needs it: "
            "pip install 'reparam[demo]'",
            file=sys.stderr,
        )
        return 1


if __name__ == "__main__":
    sys.exit(_run())
