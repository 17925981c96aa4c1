"""What a model's code meets while it is traced, in place of values and of Python's own answers.

Files, in the order in which data flows: `known_dtypes`, `constant_values`, `rewritten_weights`,
`set_attributes`, `decided_by_inputs`, `contexts`, `leaf_functions`, `outlining`, `patches`,
`proxies`, `type_queries`, `doubts`, `kinds`, `kept_values`.
"""

from reparam.capture.stand_ins.constant_values import ConstantValues
from reparam.capture.stand_ins.contexts import (
    Contexts,
    context,
    contexts_around,
    end_of_context,
    with_blocks,
)
from reparam.capture.stand_ins.decided_by_inputs import (
    MOST_DECISIONS,
    Answer,
    Decide,
    Decisions,
    chooses_by_kinds,
)
from reparam.capture.stand_ins.doubts import Doubts
from reparam.capture.stand_ins.kept_values import Kept, KeptValues, settled_by
from reparam.capture.stand_ins.kinds import Kinds
from reparam.capture.stand_ins.known_dtypes import KnownDtype, KnownDtypes
from reparam.capture.stand_ins.leaf_functions import (
    LeafFunction,
    as_leaves,
    failing_function,
    found_in_modules,
)
from reparam.capture.stand_ins.outlining import (
    Outlined,
    place_of_failure,
    running_outlined,
    with_failing_outlined,
)
from reparam.capture.stand_ins.patches import UndonePatches
from reparam.capture.stand_ins.proxies import (
    Attribute,
    ConstantProxy,
    Proxy,
    arrives_as_tensor,
    comes_of_tensors,
    is_tensor,
    keys_after,
    made_of_one_value,
    returns_a_tensor,
)
from reparam.capture.stand_ins.rewritten_weights import RewrittenWeights
from reparam.capture.stand_ins.set_attributes import SetAttributes
from reparam.capture.stand_ins.type_queries import answering_for_proxies, is_caught, unanswerable
