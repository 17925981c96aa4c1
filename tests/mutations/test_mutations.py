"""The planted mistakes still fit the source. `python -m tests.mutations` runs the tests on them."""

import ast

import pytest

from tests.mutations.mistake import Mistake
from tests.mutations.mistakes import MISTAKES
from tests.mutations.planting import ROOT, TESTS, planted


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.name)
def test_every_mistake_applies(mistake: Mistake) -> None:
    source = (ROOT / "reparam" / mistake.file).read_text(encoding="utf-8")
    changed = mistake.applied(source)
    assert ast.dump(ast.parse(changed)) != ast.dump(ast.parse(source))


def test_names_differ() -> None:
    assert len({mistake.name for mistake in MISTAKES}) == len(MISTAKES) >= 10


def test_a_mistake_that_does_not_apply_is_an_error() -> None:
    mistake = Mistake("nothing", "costs.py", "no such text", "")
    with pytest.raises(ValueError, match="'nothing' does not apply: its text stands 0 times"):
        mistake.applied("some text")


def test_a_mistake_is_planted_in_a_copy() -> None:
    mistake = MISTAKES[0]
    original = (ROOT / "reparam" / mistake.file).read_text(encoding="utf-8")
    with planted(mistake) as folder:
        assert (folder / "reparam" / mistake.file).read_text(encoding="utf-8") != original
        assert all((folder / test).exists() for test in TESTS)
    assert not folder.exists()
    assert (ROOT / "reparam" / mistake.file).read_text(encoding="utf-8") == original
