"""A plan as one page of HTML that needs nothing else.

`branches` and `kernel_pictures` say what one region was made of, `region_details` gathers and
verifies it, `drawn_graphs` and `graph_layout` say where each operator is drawn, `page_contents` is
all of that as plain data, `rendering` makes it HTML, and `writing` is what `Plan.to_html` calls.

Files, in the order in which data flows: `branches`, `kernel_pictures`, `drawn_graphs`,
`graph_layout`, `region_details`, `page_contents`, `rendering`, `writing`.
"""

from reparam.report.html.writing import write_plan

__all__ = ["write_plan"]
