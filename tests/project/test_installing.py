"""What the pages and the messages say of installing: the PyTorch that is there is kept."""

from __future__ import annotations

import re
import subprocess
import venv
import zipfile
from pathlib import Path

import pytest

from reparam.errors import install_command

ROOT = Path(__file__).resolve().parents[2]
HERE = "2.12.0+cu130"


def wheel(folder: Path, name: str, version: str, *requires: str) -> None:
    """A distribution of nothing but its metadata, and a package that tells its version."""
    info = f"{name}-{version}.dist-info"
    metadata = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        archive.writestr(f"{name}/__init__.py", f"__version__ = {version!r}\n")
        archive.writestr(f"{info}/METADATA", "\n".join(metadata) + "\n")
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip finds what it may install: two builds of PyTorch, and what asks for one."""
    folder = tmp_path_factory.mktemp("shelf")
    wheel(folder, "torch", "2.13.0")
    wheel(folder, "torch", HERE)
    wheel(folder, "torchvision", "0.28.0", "torch==2.13.0")
    wheel(folder, "torchvision", "0.27.0", "torch==2.12.0")
    wheel(folder, "timm", "1.0.31", "torch", "torchvision")
    wheel(folder, "reparam", "0.1.0", "torch>=2.8,<2.15")
    return folder


def pip(home: Path, shelf: Path, *words: str) -> None:
    options = ["--no-index", "--find-links", str(shelf), "--disable-pip-version-check", "-q"]
    subprocess.run([home / "bin" / "python", "-m", "pip", "install", *options, *words], check=True)


@pytest.fixture
def home(tmp_path: Path, shelf: Path) -> Path:
    """An environment with a PyTorch of another version, built for another device."""
    venv.create(tmp_path / "home", with_pip=True)
    pip(tmp_path / "home", shelf, f"torch=={HERE}")
    return tmp_path / "home"


def torch_in(home: Path) -> str:
    tell = "from importlib.metadata import version; print(version('torch'))"
    told = subprocess.run(
        [home / "bin" / "python", "-c", tell], check=True, capture_output=True, text=True
    )
    return told.stdout.strip()


def test_the_command_that_messages_print_keeps_the_torch_that_is_there(
    home: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reparam.errors.version", lambda _: torch_in(home))
    words = re.findall(r'[^\s"]+', install_command("timm"))
    assert words[:2] == ["pip", "install"]
    pip(home, shelf, *words[2:])
    assert torch_in(home) == HERE


def test_without_a_word_on_torch_it_would_be_replaced(home: Path, shelf: Path) -> None:
    pip(home, shelf, "timm")
    assert torch_in(home) == "2.13.0"


def test_the_line_of_the_page_keeps_it_and_the_constraints_do_not(home: Path, shelf: Path) -> None:
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^pip install -e \. (.*)$", page, re.MULTILINE)
    asked = re.search(r"python -c '(.*)'", line)
    assert asked is not None
    told = subprocess.run(
        [home / "bin" / "python", "-c", asked[1]], check=True, capture_output=True, text=True
    )
    pip(home, shelf, "reparam", f"torch=={told.stdout.strip()}")
    assert torch_in(home) == HERE
    pip(home, shelf, "reparam", "-c", str(ROOT / "constraints.txt"))
    assert torch_in(home) == "2.13.0"
