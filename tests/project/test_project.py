"""The project files agree with each other."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

import reparam

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pins.items()}


def requirements() -> list[str]:
    groups = [PROJECT["dependencies"], *PROJECT["optional-dependencies"].values()]
    return [one for group in groups for one in group if not one.startswith("reparam[")]


def test_the_version_is_a_version() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", reparam.__version__)


@pytest.mark.parametrize("requirement", requirements())
def test_every_requirement_is_pinned(requirement: str) -> None:
    name = re.match(r"[\w-]+", requirement)
    assert name is not None
    assert name[0].lower() in pinned()


def test_constraints_pin_public_versions() -> None:
    assert not [name for name, version in pinned().items() if "+" in version or "@" in version]


def test_the_readme_has_its_three_shell_blocks() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    extras = [re.findall(r'-e "\.\[(\w+)\]"', block) for block in blocks[:3]]
    assert extras == [["demo"], ["test"], ["dev"]]


def test_the_ci_script_is_valid_shell() -> None:
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_the_rule_of_the_readme_is_that_of_its_page() -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "custom-rules.md"]
    rules = [
        re.search(r"class LayerScale2d.*?\n```", page.read_text(encoding="utf-8"), re.DOTALL)
        for page in pages
    ]
    assert rules[0] is not None
    assert rules[1] is not None
    assert rules[0][0] == rules[1][0]
