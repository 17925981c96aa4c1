"""The page of built-in rules is what its command writes, and shows all of them."""

from reparam.rules import first_line, spelled
from tests.support.rules_page import PAGE, built_in_rules, page


def test_the_page_shows_the_registry() -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(), "renew it: python -m tests.support.rules_page"


def test_every_rule_is_shown_with_every_spelling() -> None:
    rules = built_in_rules()
    text = page()
    assert all(f"`{spelled(target)}`" in text for target in rules)
    assert all(first_line(rule) in text for rule in rules.values())
    assert all(first_line(rule).endswith((".", ")")) for rule in rules.values())


def test_spellings_name_one_target_each() -> None:
    names = [spelled(target) for target in built_in_rules()]
    assert len(set(names)) == len(names)
