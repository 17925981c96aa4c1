"""What a real kernel makes of plans and reports: text as text, and one table for a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]

MODEL = """
import reparam, torch
layers = [torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)]
plan = reparam.plan(torch.nn.Sequential(*layers).eval())
"""


def executed(cells: list[Any], folder: Path) -> list[list[Any]]:
    """The outputs of each cell, run by a kernel of its own."""
    notebook = nbformat.v4.new_notebook(cells=cells)
    client = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]


def code(*sources: str) -> list[Any]:
    return [nbformat.v4.new_code_cell(source) for source in sources]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    prepared = f"import sys; sys.path.insert(0, {str(ROOT)!r})" + MODEL
    return executed(
        code(
            prepared,
            "print(str(plan).splitlines()[0])",
            "plan",
            "text = str(plan)",
            "print(plan)",
            "plan.to_html()",
            "import os; os.environ['DATABRICKS_RUNTIME_VERSION'] = '15'; print(plan)",
            "plan.report",
        ),
        tmp_path_factory.mktemp("kernel"),
    )


def test_text_is_text(outputs: list[list[Any]]) -> None:
    (first,) = outputs[1]
    assert first.text == "Sequential: 2 operators become 1, in 1 place; refused: 0\n"
    assert outputs[3] == []


@pytest.mark.parametrize("cell", [4, 6])
def test_what_is_printed_is_the_table_once(outputs: list[list[Any]], cell: int) -> None:
    (printed,) = outputs[cell]
    assert printed.output_type == "stream"
    assert printed.text.count("conv 3x3, 3 -> 8") == 1


@pytest.mark.parametrize("cell", [2, 7])
def test_a_last_line_is_shown_once_as_a_table(outputs: list[list[Any]], cell: int) -> None:
    (shown,) = outputs[cell]
    assert shown.output_type == "execute_result"
    assert shown.data["text/html"].count("<table>") == 1
    assert "<td" in shown.data["text/html"]
    assert len(shown.data["text/plain"].splitlines()) == 1


def test_the_page_is_at_hand(outputs: list[list[Any]]) -> None:
    (shown,) = outputs[5]
    assert shown.data["text/html"].startswith("<iframe srcdoc=")
    assert "conv 3x3" in shown.data["text/html"]


def test_the_notebook_of_the_documentation_runs_in_a_kernel(tmp_path: Path) -> None:
    path = ROOT / "docs" / "notebooks" / "quickstart.ipynb"
    cells = nbformat.read(path, as_version=4).cells
    before = code(f"import sys; sys.path.insert(0, {str(ROOT)!r})")
    shown = executed([*before, *cells], tmp_path)
    assert not [out for cell in shown for out in cell if out.output_type == "error"]
    assert any("<table>" in out.get("data", {}).get("text/html", "") for c in shown for out in c)
