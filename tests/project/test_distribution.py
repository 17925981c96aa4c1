"""What users install: an sdist and a wheel are built, looked into, installed and imported."""

import ast
import email
import os
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata

import reparam

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = "reparam", "repvgg"
NAME = f"reparam-{reparam.__version__}"

USE = """
import importlib.metadata
import sys
from pathlib import Path

import torch
import reparam

folder = Path(sys.argv[1]).resolve()
assert folder in Path(reparam.__file__).resolve().parents, reparam.__file__
assert importlib.metadata.version("reparam") == reparam.__version__
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).eval()
assert len(reparam.fuse(model).reparam_report.fused) == 1
import repvgg
assert "repvgg_a0" in repvgg.list_models()
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that is built from it, as `python -m build` does."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "warning" not in (result.stdout + result.stderr).lower()
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    return built / f"{NAME}-py3-none-any.whl"


def metadata(wheel: Path) -> Metadata:
    with zipfile.ZipFile(wheel) as archive:
        return Metadata.from_email(archive.read(f"{NAME}.dist-info/METADATA"), validate=True)


def test_one_sdist_and_one_wheel_are_built(built: Path) -> None:
    names = sorted(path.name for path in built.iterdir() if path.name != ".gitignore")
    assert names == [f"{NAME}-py3-none-any.whl", f"{NAME}.tar.gz"]


def test_the_wheel_holds_the_packages_whole_and_nothing_else(wheel: Path) -> None:
    """Whatever is under version control there, so data that a package reads, too."""
    listed = subprocess.run(
        ["git", "ls-files", *PACKAGES], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip("not a checkout of git")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"{NAME}.dist-info/")}
    assert names == set(listed.stdout.splitlines())
    assert {f"{package}/py.typed" for package in PACKAGES} <= names


def test_the_sdist_can_be_tested_and_documented(built: Path) -> None:
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {name.removeprefix(f"{NAME}/") for name in archive.getnames()}
    needed = "LICENSE README.md CHANGELOG.md CITATION.cff CONTRIBUTING.md constraints.txt"
    assert {*needed.split(), "mkdocs.yml", "docs/hooks.py", "tests/test_tiny.py"} <= names
    assert not [
        name for name in names if "__pycache__" in name or name.startswith(("site", ".git/"))
    ]


def test_the_metadata_is_valid(wheel: Path) -> None:
    """All that an index looks at: `validate=True` checks every field."""
    found = metadata(wheel)
    assert found.name == "reparam"
    assert str(found.version) == reparam.__version__
    assert found.license_expression == "Apache-2.0"
    assert found.license_files == ["LICENSE"]
    assert found.description_content_type == "text/markdown"
    assert found.description == (ROOT / "README.md").read_text(encoding="utf-8")
    assert sorted(found.provides_extra or []) == sorted(PROJECT["optional-dependencies"])
    with zipfile.ZipFile(wheel) as archive:
        licence = archive.read(f"{NAME}.dist-info/licenses/LICENSE")
        tags = email.message_from_bytes(archive.read(f"{NAME}.dist-info/WHEEL"))
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert tags["Tag"] == "py3-none-any"


def test_the_version_stands_in_one_place() -> None:
    """Elsewhere it is read: nobody assigns a version, and the project says that it is dynamic."""
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assigned = [
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name) and target.id == "__version__"
    ]
    assert assigned == ["reparam/__init__.py"]
    assert "version:" not in (ROOT / "CITATION.cff").read_text(encoding="utf-8").split("\n", 1)[1]


def pip(*arguments: str, python: str = sys.executable) -> None:
    command = [python, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_installed_wheel_works(wheel: Path, tmp_path: Path) -> None:
    """Beside the dependencies that are there; the next test installs these, too."""
    target = tmp_path / "target"
    pip("--no-deps", "--no-index", "--no-compile", "--target", str(target), str(wheel))
    subprocess.run(
        [sys.executable, "-W", "error", "-c", USE, str(target)],
        check=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(target)},
    )


@pytest.mark.corpus
def test_the_wheel_works_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    """With the dependencies that it declares and nothing else, in the pinned versions."""
    folder = tmp_path / "environment"
    venv.create(folder, with_pip=True)
    python = str(folder / "bin" / "python")
    pip("-c", "constraints.txt", str(wheel), python=python)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    check = [python, "-m", "pip", "--disable-pip-version-check", "check"]
    subprocess.run(check, check=True, env=environment)
    subprocess.run(
        [python, "-W", "error", "-c", USE, str(folder)], check=True, cwd=tmp_path, env=environment
    )
