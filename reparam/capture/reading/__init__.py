"""Code that cannot be traced, read and never run.

Files, in the order in which data flows: `source`, `pieces`, `values`, `possible_callers`,
`follower`, `method_names`, `spelled_names`, `passed_on`, `function_reader`, `modules_used`,
`onlookers`.
"""

from reparam.capture.reading.method_names import (
    methods_naming,
    methods_run_by,
    methods_running,
    names_computed_with,
    names_forward_uses,
    names_of_properties,
    names_of_public_methods,
    names_used_by,
)
from reparam.capture.reading.modules_used import Reach, called_by_methods
from reparam.capture.reading.onlookers import Onlookers
from reparam.capture.reading.passed_on import hands_itself_on, runs_as_one, runs_by_name
from reparam.capture.reading.pieces import (
    PIECES,
    Piece,
    Span,
    bound_in_comprehensions,
    piece_around,
    place_of,
    root_of,
    span_of,
)
from reparam.capture.reading.possible_callers import CallSites
from reparam.capture.reading.source import (
    attributes_set,
    codes_in,
    definition,
    forget_classes,
    functions_below,
    own_methods,
    syntax_tree,
)
from reparam.capture.reading.values import contents
