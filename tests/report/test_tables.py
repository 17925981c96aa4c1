"""Reports are text: what others named is shown as it is named."""

import io
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

import reparam
from reparam.cli import main
from reparam.report import EqualizationReport, FusedRow, RefusedRow, Report

NAMES = ["[/bold]", "[red]", ":smile:", "[link=file:///x]", "<b>", r"\[bold]"]


class Named(nn.Module):
    """A network with a part of a given name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.add_module(name, nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._modules[self.name](x)
        return y


def shown(what: object, color: bool) -> str:
    """What a terminal gets."""
    console = Console(
        file=io.StringIO(), width=120, force_terminal=color, color_system=None, highlight=False
    )
    console.print(what)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_modules_are_text(name: str, tmp_path: Path) -> None:
    plan = reparam.plan(Named(name).eval())
    report = reparam.fuse(Named(name).eval()).reparam_report
    for what in (plan, report):
        assert f"{name}." in str(what)
        assert f"{name}." in shown(what, color=True)
    page = tmp_path / "page.html"
    plan.to_html(page)
    escaped = name.replace("<", "&lt;").replace(">", "&gt;")
    assert f"{escaped}." in page.read_text(encoding="utf-8")
    assert f"{escaped}." in report._repr_html_()


@pytest.mark.parametrize("name", NAMES)
def test_reasons_notes_and_classes_are_text(name: str) -> None:
    row = FusedRow(name, name, name, (1, 1), (2, 1), name=name)
    report = Report(name, [row], [RefusedRow(name, name, name)], [f"see {name}"])
    assert str(report).count(name) == 8
    assert f"see {name}" in str(EqualizationReport(name, notes=[f"see {name}"]))


def test_the_command_line_shows_what_rules_say_as_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("reparam.rules.registered_rules", lambda: {torch.relu: _rule})
    with suppress(SystemExit):
        main(["rules"])
    assert "What is [red] and [/red] stays so." in capsys.readouterr().out


def _rule(x: object) -> object:
    """What is [red] and [/red] stays so."""
    return x
