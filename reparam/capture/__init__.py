"""From a model or a program to a flat graph that knows whose code made each node.

Files, in the order in which data flows: `reading`, `item_assignment`, `checked_values`,
`operator_traits`, `structures`, `given_arguments`, `code_statement`, `given_objects`, `trace`,
`invariants`, `stand_ins`, `tracer`, `public_methods`, `tracing_attempts`, `programs`, `recorded`.
"""

from reparam.capture.checked_values import (
    Assumed,
    CheckedIdentity,
    checked_axes,
    checked_same,
    checked_sizes,
)
from reparam.capture.code_statement import CodeStatement, EarlyReturnError, Returning, returned
from reparam.capture.invariants import CAPTURED, GRAPH, Invariant, hold
from reparam.capture.item_assignment import assign, assignments
from reparam.capture.operator_traits import (
    CONSTANT_FACTORIES,
    Trait,
    computes_on_tensors,
    converts,
    has_known_name,
    is_in_place,
    is_of_torch,
    operator_name,
    reads_metadata,
    reads_rank,
    reads_shape,
    reads_shape_only,
    returns_what_it_wrote,
    torch_name,
    traits,
    traits_of,
    type_named_by,
)
from reparam.capture.programs import STATE_KINDS, as_module, lifted_state, read_program
from reparam.capture.recorded import RecordedTrace, as_trace, recorded_trace, recorded_values
from reparam.capture.stand_ins import (
    Kept,
    arrives_as_tensor,
    chooses_by_kinds,
    context,
    contexts_around,
    end_of_context,
    returns_a_tensor,
    with_blocks,
)
from reparam.capture.structures import (
    Built,
    filled,
    has_outline,
    is_same_constant,
    nodes_in,
    outline,
    reached,
    written_into,
)
from reparam.capture.trace import (
    Call,
    Trace,
    WayIn,
    calls_between,
    common_caller,
    knows_only_tensors,
    may_run_otherwise,
)
from reparam.capture.tracing_attempts import trace_forward
