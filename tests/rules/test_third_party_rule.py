"""A package of somebody else's teaches reparam its layer by an entry point; a broken one does not.

`tests/rules/third_party_rule/` is that package: an ordinary distribution, which is built and
installed into a folder of its own, without the network.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import reparam
from reparam.rules import load_rules, registered_rules
from reparam.rules.registry import GROUP, forget_rules_but

ROOT = Path(__file__).resolve().parents[2]
USE = """
import sys
import torch
from torch import nn
import decibels
import reparam

assert "decibels.rules" not in sys.modules, "rules are loaded when they are needed, not before"
torch.manual_seed(0)
parts = nn.Conv2d(3, 8, 3), decibels.Gain(8), nn.ReLU(), nn.Conv2d(8, 8, 1), decibels.Gain(8)
model = nn.Sequential(*parts).eval()
{first}
x = torch.randn(2, 3, 9, 8)
fused = reparam.fuse(model)
kinds = [type(part).__name__ for part in fused if not isinstance(part, nn.Identity)]
assert kinds == ["Conv2d", "ReLU", "Conv2d"], kinds
assert max(reparam.verify(model, fused, x).fused) < 1e-6
"""
CHECK = "assert reparam.testing.rulecheck(decibels.Gain(8), (2, 8, 6, 7)).error < 1e-12"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed package."""
    folder = tmp_path_factory.mktemp("third_party")
    source, target = folder / "source", folder / "target"
    shutil.copytree(
        ROOT / "tests" / "rules" / "third_party_rule", source
    )  # a build writes next to it
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", target, source],
        check=True,
        capture_output=True,
    )
    return target


@pytest.mark.parametrize("first", ["", CHECK], ids=["fuse", "rulecheck"])
def test_an_installed_package_brings_its_rules(installed: Path, first: str, tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-W", "error", "-c", USE.format(first=first)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(installed), str(ROOT)))},
    )


def test_the_package_is_left_as_it_was(installed: Path) -> None:
    """No build left anything in the checkout."""
    names = {path.name for path in (ROOT / "tests" / "rules" / "third_party_rule").rglob("*")}
    assert not {name for name in names if name == "build" or name.endswith(".egg-info")}


# -- Entry points that fail -----------------------------------------------------------------------

BROKEN = """
import reparam
from torch import nn

class Mine(nn.Module):
    pass

reparam.register_rule(Mine)(lambda module, x: x)
{failure}
"""


@pytest.fixture
def unloaded() -> Iterator[None]:
    """As in a process that has not loaded any rules yet; afterwards as before."""
    before = registered_rules()
    load_rules.cache_clear()
    yield
    forget_rules_but(before)
    load_rules.cache_clear()


def distribution(folder: Path, name: str, code: str | None) -> None:
    """A distribution as pip leaves it: one module, and one entry point."""
    info = folder / f"{name}-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\nrules = {name}_rules\n")
    if code is not None:
        (folder / f"{name}_rules.py").write_text(code)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (None, "ModuleNotFoundError"),
        (BROKEN.format(failure="raise OSError('no kernel')"), "OSError: no kernel"),
        (BROKEN.format(failure="reparam.register_rule(nn.Conv2d)"), "Conv2d already has a rule"),
        (BROKEN.format(failure="reparam.register_rule(int)"), "'int'> cannot have a rule"),
    ],
)
def test_a_broken_package_is_named_and_left_out(
    code: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unloaded: None
) -> None:
    distribution(tmp_path, "broken", code)
    monkeypatch.syspath_prepend(tmp_path)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    before = registered_rules()
    with pytest.warns(UserWarning, match=r"rules of broken 0\.3, entry point 'rules' =") as caught:
        assert len(reparam.plan(model).fused) == 1
    assert said in str(caught[0].message)
    assert caught[0].filename == __file__
    assert registered_rules() == before
    sys.modules.pop("broken_rules", None)
    reparam.plan(model)  # it is tried, and warned of, once


def test_the_order_of_packages_is_that_of_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unloaded: None
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(reparam, "seen", seen, raising=False)
    for name in ("zeta", "alpha"):
        distribution(tmp_path, name, "import reparam\nreparam.seen.append(__name__)")
    monkeypatch.syspath_prepend(tmp_path)
    load_rules()
    assert seen == ["alpha_rules", "zeta_rules"]
    for name in seen:
        del sys.modules[name]
