"""The rules of other packages, found through the entry points of the group ``reparam.rules``.

Each names a module whose import registers its rules. They are imported once, when rules are needed
for the first time.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib.metadata import EntryPoint, entry_points

from reparam.rules.registry import forget_rules_but, registered_rules

GROUP = "reparam.rules"


@cache
def load_rules() -> None:
    """Import what installed packages name in the group ``reparam.rules``, once.

    One that cannot be imported is warned of and left out, with all of its rules: that a rule is
    missing makes no model wrong, and whoever fuses another model need not wait for its author.
    """
    for entry in sorted(entry_points(group=GROUP), key=_name):
        before = registered_rules()
        try:
            entry.load()
        except Exception as error:
            forget_rules_but(before)
            warnings.warn(
                f"the rules of {_name(entry)} cannot be loaded and are left out "
                f"({type(error).__name__}: {error}); please tell its authors, or uninstall it",
                stacklevel=3,
            )


def _name(entry: EntryPoint) -> str:
    """The distribution of an entry point, and what it says."""
    distribution = "" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}, "
    return f"{distribution}entry point {entry.name!r} = {entry.value!r}"
