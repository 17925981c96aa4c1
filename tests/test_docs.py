"""Runs every Python block of README.md and docs/, and every docstring example, as tests.

The blocks of one file build on each other, so one file is one test: this also holds when the tests
are spread over several processes. A failure names the file and the line of the block.
"""

import doctest
import sys
import types
from pathlib import Path

import pytest
import torch
from sybil import Document, Sybil
from sybil.parsers import markdown, rest

ROOT = Path(__file__).resolve().parent.parent
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE

PAGES = Sybil(
    parsers=[markdown.PythonCodeBlockParser(doctest_optionflags=FLAGS), markdown.SkipParser()]
)
DOCSTRINGS = Sybil(parsers=[rest.DocTestParser(optionflags=FLAGS)])


def documents() -> dict[str, Document]:
    """All files with at least one example, by their path in the repository."""
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    modules = [*sorted((ROOT / "reparam").rglob("*.py")), *sorted((ROOT / "repvgg").rglob("*.py"))]
    parsed = {path: PAGES.parse(path) for path in pages}
    parsed |= {path: DOCSTRINGS.parse(path) for path in modules}
    return {str(path.relative_to(ROOT)): found for path, found in parsed.items() if found.regions}


DOCUMENTS = documents()


@pytest.mark.parametrize("name", DOCUMENTS)
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = DOCUMENTS[name]
    # The classes that an example defines belong to a module of their own, as they would in a file.
    module = types.ModuleType("example_" + Path(name).stem.replace("-", "_").lower())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document.namespace = vars(module)
    monkeypatch.chdir(tmp_path)  # examples may write files
    torch.manual_seed(0)
    for example in document.examples():
        example.evaluate()
