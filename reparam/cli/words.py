"""What the words of a command line say, read without PyTorch."""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMS = (
    "timm/NAME, torchvision/NAME, hf/MODEL_TYPE, hf/FOLDER, ultralytics/FILE.yaml, "
    "package.module:factory or FILE.pt2"
)

LIBRARIES = ("timm", "torchvision", "hf", "ultralytics")
"""What may stand before the slash of a MODEL."""

_FACTORY = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""A MODEL that names a function, a class or a module: ``package.module:name``."""

DTYPES = (
    "float16", "bfloat16", "float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool",
)  # fmt: skip
"""The types of inputs, by their names in torch."""


OUTPUTS = (".pt2", ".onnx", ".safetensors")
"""The formats of a fused model's file, by what its name ends with."""


@dataclass(frozen=True)
class InputShape:
    """The shape and the type of one input.

    Args:
        sizes: The shape.
        dtype: The name of the type, one of `DTYPES`.
        name: The argument of forward that it is; empty where its place says so.
    """

    sizes: tuple[int, ...]
    dtype: str = "float32"
    name: str = ""

    def __str__(self) -> str:
        sizes = ",".join(map(str, self.sizes))
        shape = sizes if self.dtype == "float32" else f"{sizes}:{self.dtype}"
        return f"{self.name}={shape}" if self.name else shape


def source_of(name: str) -> tuple[str, str] | None:
    """Where a MODEL comes from, and its name there; None if it has none of the `FORMS`.

    It comes from one of the `LIBRARIES`, from a ``"program"``, or from a ``"factory"``.
    """
    if name.endswith(".pt2"):
        return "program", name
    prefix, _, rest = name.partition("/")
    if rest and prefix in LIBRARIES:
        return prefix, rest
    return ("factory", name) if _FACTORY.fullmatch(name) else None


def read_argument(word: str) -> tuple[str, Any]:
    """Reads ``key=value``, where the value is a Python literal, or else a string.

    Raises:
        ValueError: If there is no ``=``, or no name before it.
    """
    key, equals, text = word.partition("=")
    if not equals or not key.isidentifier():
        raise ValueError(f"{word!r} is no key=value")
    try:
        return key, ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return key, text


def read_path(text: str) -> Path:
    """Reads the name of a file that is to be written.

    Raises:
        ValueError: If it is a folder.
    """
    path = Path(text)
    if path.is_dir():
        raise ValueError(f"{text} is a folder; name a file in it, such as {path / 'fused.pt2'}")
    return path


def read_output(text: str) -> Path:
    """Reads the name of a fused model's file, which says its format.

    Raises:
        ValueError: If it is a folder, or no format is called like that.
    """
    path = read_path(text)
    if path.suffix not in OUTPUTS:
        raise ValueError(f"no format has the suffix of {text!r}; use {', '.join(OUTPUTS)}")
    return path


def read_shape(text: str) -> InputShape:
    """Reads a shape such as ``1,3,224,224``, ``1x16:int64`` or ``mask=1,16:bool``.

    Raises:
        ValueError: If it is no shape, or of no known type.
    """
    name, equals, shape = text.rpartition("=")
    if equals and not name.isidentifier():
        raise ValueError(f"{name!r} is no name of an argument")
    sizes, colon, dtype = shape.partition(":")
    numbers = [size.strip() for size in re.split("[,x×]", sizes)]
    if not all(size.isascii() and size.isdigit() and int(size) > 0 for size in numbers):
        raise ValueError(f"{text!r} is no shape; write sizes such as 1,3,224,224 or 1x3x224x224")
    if colon and dtype not in DTYPES:
        raise ValueError(f"{dtype!r} is none of the types {', '.join(DTYPES)}")
    return InputShape(tuple(map(int, numbers)), dtype or "float32", name)
