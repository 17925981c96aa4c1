"""The notebooks of the documentation are clean, run, and show what their page says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from generate.notebook import read, render, run

import reparam
from reparam.rules import registered_rules
from reparam.rules.registry import forget_rules_but

DOCS = Path(__file__).resolve().parents[2] / "docs"
NOTEBOOKS = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.ipynb"))
QUICKSTART = DOCS / "notebooks" / "quickstart.ipynb"


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A notebook may register rules, and write files."""
    monkeypatch.chdir(tmp_path)
    reparam.plan(torch.nn.ReLU().eval())  # the rules of other packages are there from now on
    before = registered_rules()
    yield
    forget_rules_but(before)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_kept_without_outputs(name: str) -> None:
    """In the format that Jupyter reads: version 4.5, every cell with a name of its own."""
    notebook = json.loads((DOCS / name).read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[\w-]{1,64}", one) for one in names)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown")
        assert cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs(name: str) -> None:
    assert len(list(run(DOCS / name))) == len(read(DOCS / name))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_stands_on_a_page(name: str) -> None:
    pages = [path.read_text(encoding="utf-8") for path in DOCS.glob("*.md")]
    assert any(f"<!-- notebook: {name} -->" in page and f"]({name})" in page for page in pages)


def test_the_notebook_shows_plans_as_tables_a_check_and_a_rule() -> None:
    values = [shown.value for shown in run(QUICKSTART) if shown.value is not None]
    kinds = [type(value).__name__ for value in values]
    assert kinds == ["Plan", "Verification", "Plan", "RuleCheck", "Plan"]
    first, _, before, _, after = values
    assert [len(plan.fused) for plan in (first, before, after)] == [2, 0, 1]


def test_the_page_holds_what_the_cells_show() -> None:
    page = render("notebooks/quickstart.ipynb")
    assert page.count('<div class="shown">') == 5
    assert "2 Conv2d + 3 BatchNorm2d + 2 add" in page
    assert "fused_conv" in page
    assert "](../" not in page


def test_cells_print_show_and_fail_as_in_jupyter(tmp_path: Path) -> None:
    def write(*sources: str) -> Path:
        path = tmp_path / "a.ipynb"
        cells = [{"cell_type": "code", "source": source.splitlines(True)} for source in sources]
        path.write_text(json.dumps({"cells": cells}))
        return path

    shown = list(run(write("x = 1\nprint(x)\nx + 1", "x", "x;", "def f(): ...", "")))
    assert [one.printed for one in shown] == ["1\n", "", "", "", ""]
    assert [one.value for one in shown] == [2, 1, None, None, None]
    with pytest.raises(ZeroDivisionError):
        list(run(write("1 / 0")))
