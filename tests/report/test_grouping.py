"""Reports of large networks are short, and say all when asked."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import reparam
from reparam.report import FusedRow, RefusedRow, Report
from reparam.report.grouping import by_reasons, kinds, path_of, within

ROOT = Path(__file__).resolve().parents[2]


def fused(*places: str, sized: bool = False) -> list[FusedRow]:
    return [
        FusedRow(place, "2 Conv2d + add", "conv 3x3, 3 -> 8", (9, 5), (3, 1), sized=sized)
        for place in places
    ]


@pytest.fixture(scope="module")
def large() -> reparam.Plan:
    with torch.device("meta"):
        model = timm.create_model("densenet201").eval()
    return reparam.plan(model.to_empty(device="cpu"))


def test_a_large_plan_is_printed_short_and_shown_whole(large: reparam.Plan) -> None:
    assert len(str(large).splitlines()) <= 60
    assert "features.denseblock4.denselaye" in str(large)
    whole = large.table()
    assert all(whole.count(f" {row.place.split(' ')[0]} ") >= 1 for row in large.fused[:5])
    assert len(whole.splitlines()) > len(large.fused) + len(large.refused)
    assert "95 batch_norm" in str(large)
    assert "because" not in large.table(refused=False)
    assert len(large.table(depth=1, refused=False, limit=3).splitlines()) < 12


def test_repr_is_one_line(large: reparam.Plan) -> None:
    assert repr(large).startswith("<Plan of DenseNet: 204 operators become 102")
    assert repr(large.report).startswith("<Report of DenseNet")
    assert "\n" not in repr(large)


def test_a_notebook_gets_a_tree(large: reparam.Plan) -> None:
    shown = large._repr_html_()
    assert shown.count("<details>") == shown.count("</details>") > 3
    assert "features: 102 places" in shown


def test_numbered_parts_are_taken_together() -> None:
    rows = fused(*(f"stages.{i}.{j} (add)" for i in range(4) for j in range(6)), "head")
    assert [part.label for part in within(rows, 5)] == [
        "stages.0.0-5",
        "stages.1.0-5",
        "stages.2.0-5",
        "stages.3.0-5",
        "head",
    ]
    assert [part.label for part in within(rows, 2)] == ["stages.0-3", "head"]
    assert [part.label for part in within(fused("a", "b", "c", "d"), 2)] == ["a", "others"]
    assert sum(len(part.rows) for part in within(fused("a", "b", "c", "d"), 2)) == 4


@pytest.mark.parametrize(
    ("place", "path"), [("a.b (add_1)", "a.b"), ("a.b", "a.b"), ("add_1", "add_1"), ("0 (x)", "0")]
)
def test_paths_of_places(place: str, path: str) -> None:
    assert path_of(place) == path


def test_operators_add_up_by_kind() -> None:
    assert kinds(["2 Conv2d + add", "Conv2d + 3 add"]) == "4 add + 3 Conv2d"
    assert kinds(["a + b + c + d + e"]) == "a + b + c + d + …"


def test_reasons_that_say_what_to_do_come_first() -> None:
    rows = [RefusedRow(f"a.{i}", "add", f"add_{i} is also read by mul_{i}") for i in range(5)]
    helped = RefusedRow("b", "mul", "it is not known; pass example_inputs")
    groups = by_reasons([*rows, helped])
    assert [len(group.rows) for group in groups] == [1, 5]
    assert groups[0].rows[0] is helped
    assert groups[1].label == "… is also read by …"


def test_units_are_named() -> None:
    per_position, in_all = fused("a"), fused("b", sized=True)
    assert "per position" in str(Report("M", per_position))
    assert "per position" not in str(Report("M", in_all))
    mixed = str(Report("M", per_position + in_all))
    assert "9 -> 5 per position" in mixed
    assert mixed.count("per position") == 1
    assert str(Report("M")) == "M: nothing is fused; refused: 0"


def test_a_report_as_values_is_what_json_takes() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.BatchNorm2d(8)
    model = nn.Sequential(*layers).eval()
    values = reparam.fuse(model).reparam_report.to_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["fused"][0]["place"] == "1"
    assert values["refused"][0]["reason"]
    assert set(values) == {
        "class", "operators", "fused", "refused", "frozen", "dropped", "notes", "cost",
    }  # fmt: skip
    broken = Report("M", [FusedRow("a", "b", "c", (1, 1), (1, 1), error=float("nan"))])
    assert broken.to_dict()["fused"][0]["float64_error"] is None


PRINTING = """
import reparam, torch
layers = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)
print(reparam.plan(torch.nn.Sequential(*layers).eval()))
"""


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_code_pages_of_windows(encoding: str) -> None:
    process = subprocess.run(
        [sys.executable, "-c", PRINTING],
        env={"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True,
        check=True,
    )
    rule = "─" if encoding == "utf-8" else "-"
    assert f"{rule * 20}\n" in process.stdout.decode(encoding).replace("\r", "")


def test_the_command_line_prints_on_a_code_page(tmp_path: Path) -> None:
    (tmp_path / "nets_of_pages.py").write_text(
        "from torch.nn import BatchNorm2d, Conv2d, Sequential\n\n\n"
        "def grün():\n    return Sequential(Conv2d(3, 8, 3), BatchNorm2d(8))\n",
        encoding="utf-8",
    )
    process = subprocess.run(
        [sys.executable, "-m", "reparam", "plan", "nets_of_pages:grün"],
        env={"PYTHONPATH": f"{ROOT}:{tmp_path}", "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert b"conv 3x3" in process.stdout


def test_what_follows_an_identity_follows_what_is_before_it() -> None:
    layers = [nn.ReLU(), nn.Dropout(), nn.Identity(), nn.Flatten(), nn.BatchNorm1d(8)]
    report = reparam.plan(nn.Sequential(*layers).eval(), torch.randn(2, 8)).report
    assert [row.reason for row in report.refused] == ["it follows 0, which is not affine"]
