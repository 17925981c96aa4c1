"""Code that cannot be traced, read and never run.

Files, in the order in which data flows: `source`, `values`, `call_sites`, `follower`,
`method_names`, `reader`, `reach`.
"""

from reparam.capture.reading.call_sites import CallSites
from reparam.capture.reading.method_names import (
    methods_naming,
    methods_running,
    names_forward_uses,
    names_of_public_methods,
    runs_as_one,
)
from reparam.capture.reading.reach import Reach, called_by_methods
from reparam.capture.reading.source import (
    codes_in,
    definition,
    forget_classes,
    functions_below,
    own_methods,
)
from reparam.capture.reading.values import contents
