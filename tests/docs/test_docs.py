"""Runs every Python block of README.md and docs/, and every docstring example, as tests.

The blocks of one file build on each other, so one file is one test: this also holds when the tests
are spread over several processes. A failure names the file and the line of the block.

Pages that take a library of the extra `corpora`, or long, are run by `pytest -m corpus`.
"""

import doctest
import re
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from sybil import Document, Sybil
from sybil.parsers import markdown, rest

from tests.corpora.ultralytics_networks import import_ultralytics, use_suppression_in_python

ROOT = Path(__file__).resolve().parents[2]
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
RECIPES = {path.stem for path in (ROOT / "docs" / "cookbook").glob("*.md")} - {"index"}
LIBRARIES = {
    "openvino": "openvino",
    "peft": "peft",
    "segmentation-models-pytorch": "segmentation_models_pytorch",
    "transformers": "transformers",
    "ultralytics": "ultralytics",
}
"""What a recipe imports and a smaller installation may lack."""
COMPILING = {"aotinductor", "compile"}
"""Recipes that call a C++ compiler."""
LONG = {*LIBRARIES, *COMPILING} - {"openvino"}


def recipe(name: str) -> str:
    """The recipe that a page of the cookbook is; empty for other files."""
    path = Path(name)
    return path.stem if path.parent == Path("docs/cookbook") else ""


def marked(names: set[str]) -> list[object]:
    """The files as parameters, those that take long with the mark `corpus`."""
    mark = pytest.mark.corpus
    return [pytest.param(n, marks=mark if recipe(n) in LONG else ()) for n in sorted(names)]


def skip_without_a_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("there is no C++ compiler")


@contextmanager
def installed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Skips a recipe, with the reason, where what it needs is missing."""
    if name in LIBRARIES:
        pytest.importorskip(LIBRARIES[name], reason=f"{LIBRARIES[name]} is not installed")
    if name == "ultralytics":
        import_ultralytics()
        use_suppression_in_python(monkeypatch)
    if name in COMPILING:
        skip_without_a_compiler()
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
        torch.compiler.reset()
    yield
    if name in COMPILING:
        torch.compiler.reset()


@pytest.mark.parametrize("name", marked({*DOCUMENTS}))
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = DOCUMENTS[name]
    # The classes that an example defines belong to a module of their own, as they would in a file.
    module = types.ModuleType("example_" + Path(name).stem.replace("-", "_").lower())
    monkeypatch.setitem(sys.modules, module.__name__, module)
    document.namespace = vars(module)
    with installed(recipe(name), tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)  # examples may write files
        torch.manual_seed(0)
        for example in document.examples():
            example.evaluate()


def test_every_recipe_is_found() -> None:
    assert LONG <= RECIPES
    index = (ROOT / "docs" / "cookbook" / "index.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[.*\]\((.*)\.md\)", index, re.MULTILINE)) == RECIPES
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"cookbook/(.*)\.md", navigation)) == {*RECIPES, "index"}


@pytest.mark.parametrize("name", sorted(RECIPES))
def test_every_recipe_compares_outputs(name: str) -> None:
    page = (ROOT / "docs" / "cookbook" / f"{name}.md").read_text(encoding="utf-8")
    assert re.search(r"reparam\.verify\(|torch\.testing\.assert_close\(", page)
    assert "# yours: " in page
