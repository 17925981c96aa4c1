"""A plan as one page of HTML that needs nothing else.

`branches` and `kernel_pictures` say what one region was made of, `region_details` gathers and
verifies it, `blocks` and `drawn_graphs` say what is drawn and what opens, `page_contents` is all of
that as plain data, `graph_data` writes the graphs for the page's script, `rendering` makes it HTML,
and `writing` is what `Plan.to_html` calls.

The script is in `templates/script/`: `graph` finds what is seen of a graph some blocks of which are
open, `layout` its places, `drawing` makes it SVG, `viewport` moves and zooms it, `export` saves it,
`details` tells of what was chosen, and `page` joins them.

Files, in the order in which data flows: `branches`, `kernel_pictures`, `blocks`, `drawn_graphs`,
`region_details`, `page_contents`, `graph_data`, `rendering`, `writing`.
"""

from reparam.report.html.writing import write_plan

__all__ = ["write_plan"]
