"""Somebody's module tree: paths, copies, state put back, runs in float64.

Files, in the order in which data flows: `tree`, `weight_hooks`, `copying`, `undoing`,
`nested_values`, `threads`, `call_checks`, `chosen_modules`, `silent_writes`, `stateful_objects`,
`random_numbers`, `state`, `float64`, `example_inputs`.
"""

from reparam.modules.call_checks import ALONE, AtWork, check_inplace, check_model, check_module
from reparam.modules.chosen_modules import Choice, chosen, likely
from reparam.modules.copying import LateCopy, copy_apart, copy_model, own_registries
from reparam.modules.example_inputs import Inputs, as_inputs
from reparam.modules.float64 import (
    TYPES_MAY_DIFFER,
    Layer,
    Widened,
    call_exact,
    call_in_modes,
    in_float64,
    of_any_type,
    run_function,
    run_method,
    widen,
)
from reparam.modules.nested_values import (
    copied_values,
    flatten,
    is_dataclass,
    leaves_of,
    map_leaves,
)
from reparam.modules.random_numbers import random_numbers_kept, random_state, torch_random_state
from reparam.modules.silent_writes import SILENT_WRITES, is_torchs, written_by
from reparam.modules.state import (
    Watch,
    all_or_nothing,
    overwrite,
    tensors_held,
    undisturbed,
)
from reparam.modules.threads import threads_for, users_threads
from reparam.modules.tree import (
    all_names,
    count_leaves,
    fetch,
    find,
    has_hooks,
    has_own_call,
    held_aside,
    in_eval_mode,
    is_as_made,
    is_plain,
    join,
    layer_at,
    memory,
    names_of_tensors,
    own_tensors,
    read_from,
    special_tensor,
    unlike_its_class,
)
from reparam.modules.undoing import forget, fulfil, pending, promise
from reparam.modules.weight_hooks import computes_its_weights, drop_idle_hooks, weights_of_hooks
