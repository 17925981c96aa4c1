"""The page about networks says what was measured."""

import json

from tests.corpora.libraries import LIBRARIES
from tests.corpora.table import DATA, PAGE, render


def test_the_page_is_the_rendering_of_the_data() -> None:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    assert PAGE.read_text(encoding="utf-8") == render(data)


def test_every_network_was_measured() -> None:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    measured = [(row["library"], row["name"]) for row in data["networks"]]
    known = [(library, n.name) for library, networks in LIBRARIES.items() for n in networks]
    assert sorted(measured) == sorted(known)
