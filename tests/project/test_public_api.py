"""The public interface is what its listing says, and the documentation shows all of it."""

import re
import tomllib
from pathlib import Path

import reparam
from tests.support.public_api import LISTING, listing, public_names

ROOT = Path(__file__).resolve().parents[2]
API = re.findall(
    r"^::: (\S+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE
)


def test_the_interface_is_the_listed_one() -> None:
    written = LISTING.read_text(encoding="utf-8")
    assert written == listing(), (
        "the public interface changed. If that is meant (docs/stability.md), renew the listing: "
        "python -m tests.support.public_api"
    )


def test_all_is_sorted_and_there() -> None:
    assert reparam.__all__ == sorted(reparam.__all__)
    assert all(hasattr(reparam, name) for name in reparam.__all__)


def test_the_page_shows_every_public_name_once() -> None:
    assert sorted(API) == sorted(name for name, _ in public_names())


def test_every_public_name_says_what_it_is() -> None:
    assert not [name for name, thing in public_names() if not (thing.__doc__ or "").strip()]


def test_the_page_on_installation_names_every_extra_and_what_it_brings() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\|(.*)\|$", page, re.MULTILINE))
    assert rows.keys() == project["optional-dependencies"].keys()
    for extra, requirements in project["optional-dependencies"].items():
        for requirement in requirements:
            inner = re.fullmatch(r"reparam\[(.*)\]", requirement)
            package = re.match(r"[\w-]+", requirement)
            assert package is not None
            if inner is not None:
                assert all(f"`{one}`" in rows[extra] for one in inner[1].split(","))
            elif extra not in ("test", "docs"):  # these say it in other words
                assert package[0] in rows[extra]
