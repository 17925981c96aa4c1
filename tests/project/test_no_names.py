"""The library knows laws, not networks: no model, block or model library is named in its code.

Two files are left out, where users choose by such names, and whose names no other file reads.
"""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

import reparam

PACKAGE = Path(reparam.__file__).parent
SOURCES = PACKAGE / "cli" / "models" / "model_sources.py"
"""The command line builds models of the libraries that the user names, in this one file."""
BLOCKS = PACKAGE / "expansion" / "blocks.py"
"""The branches that users ask for by their paper's name: data, made of steps, in this one file."""
WORDS = PACKAGE / "cli" / "words.py"
"""What may be written for a model on the command line, in this one file."""
FILES = sorted(path for path in PACKAGE.rglob("*.py") if path not in (SOURCES, BLOCKS, WORDS))
NAMES = re.compile(
    r"""
    timm | torchvision | transformers | ultralytics | yolo | mmcv | mmdet | mmpretrain | detectron
    | repvgg | repvit | repghost | replk | repmlp | repnext | repmixer | repconv | reptile
    | mobile | resnet | resnext | vgg | densenet | inception | efficient(net|vit|former)
    | convnext | fastvit | levit | deit | swin | poolformer | shvit | tinyvit | iformer
    | ghost | lcnet | mixnet | nasnet | regnet | vanilla | unet | sobel | laplac
    | acnet | acb | dbb | diverse | orepa | lora | ecb | layer_?scale | batchnorm\w*act
    """,
    re.VERBOSE | re.IGNORECASE,
)
STRINGS = {tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}  # since 3.12
BEFORE_A_DOCSTRING = {tokenize.INDENT, tokenize.NEWLINE, tokenize.ENCODING}
LAYOUT = {tokenize.COMMENT, tokenize.NL}


def code_tokens(source: str) -> Iterator[tokenize.TokenInfo]:
    """Names and strings, without docstrings: a docstring is a statement of its own."""
    tokens = [
        token
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type not in LAYOUT
    ]
    before = tokenize.ENCODING
    for token, after in pairwise(tokens):
        stands_alone = before in BEFORE_A_DOCSTRING and after.type == tokenize.NEWLINE
        if token.type == tokenize.NAME or (token.type in STRINGS and not stands_alone):
            yield token
        if token.type != tokenize.DEDENT:
            before = token.type


def named(source: str) -> list[str]:
    return [
        f"line {token.start[0]}: {token.string}"
        for token in code_tokens(source)
        if NAMES.search(token.string)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_network_is_named(path: Path) -> None:
    assert named(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import timm\n", ["line 1: timm"]),
        ("def f():\n    return 'RepVGG'\n", ["line 2: 'RepVGG'"]),
        ("x = 1\nfuse_resnet = x\n", ["line 2: fuse_resnet"]),
        ('"""RepVGG."""\n# ACNet\nx = 1\n', []),
        ('def f():\n    """As in DBB."""\n    x = 1  # DBB\n', []),
        ('X = 1\n"""What LoRA needs."""\n', []),
        ("f('''Not a docstring: timm''')\n", ["line 1: '''Not a docstring: timm'''"]),
    ],
)
def test_only_docstrings_and_comments_may(source: str, found: list[str]) -> None:
    assert named(source) == found


def test_one_file_names_libraries() -> None:
    libraries = {"timm", "torchvision", "transformers", "ultralytics"}
    source = SOURCES.read_text(encoding="utf-8")
    assert all(re.search(rf"\b{library}\b", source) for library in libraries)


def test_blocks_with_names_are_data() -> None:
    """Each is one expression over the steps; what they mean is written where no name stands."""
    tree = ast.parse(BLOCKS.read_text(encoding="utf-8"))
    makers = [
        item for item in tree.body if isinstance(item, ast.FunctionDef) and item.name[0] != "_"
    ]
    assert len(makers) > 5
    for maker in makers:
        _, *statements = maker.body
        assert isinstance(statements[-1], ast.Return)
        assert all(isinstance(statement, ast.AnnAssign) for statement in statements[:-1])
    inside = {line for maker in makers for line in range(maker.lineno, (maker.end_lineno or 0) + 1)}
    source = BLOCKS.read_text(encoding="utf-8")
    outside = [line for line in named(source) if int(line.split()[1][:-1]) not in inside]
    assert outside == []


def test_all_files_are_read() -> None:
    assert {"algebra/affine.py", "planning/planner.py", "rules/registry.py"} <= {
        str(path.relative_to(PACKAGE)) for path in FILES
    }
