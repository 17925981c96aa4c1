"""`reparam rules`."""

from __future__ import annotations

import click
from rich import box
from rich.table import Table
from rich.text import Text

from reparam.cli.options import debug_option, json_option
from reparam.cli.printing import show, show_json


@click.command()
@json_option
@debug_option
def rules(as_json: bool) -> None:
    """Lists the operators that are known, and the rule of each.

    Among them are those of installed packages that bring rules.
    """
    from reparam.rules import (
        describe_rule,
        first_line,
        is_built_in,
        load_rules,
        registered_rules,
        spelled,
    )

    load_rules()
    listed = [
        {
            "target": spelled(target),
            "rule": describe_rule(rule),
            "does": first_line(rule),
            "built_in": is_built_in(rule),
        }
        for target, rule in registered_rules().items()
    ]
    if as_json:
        show_json("rules", {"rules": listed})
        return
    table = Table(box=box.SIMPLE, pad_edge=False)
    table.add_column("operator", overflow="fold")
    table.add_column("what it does", overflow="fold")
    table.add_column("rule", no_wrap=True)
    for row in listed:
        table.add_row(*(Text(str(row[key])) for key in ("target", "does", "rule")))
    show(table)
