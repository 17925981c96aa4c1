"""Does it compute the same: one operator, one module, the model, which else is put back.

Files, in the order in which data flows: `exact_run`, `outside_sizes`, `region_check`,
`random_runs`, `model_check`, `call_samples`, `module_check`, `transactions`.
"""

from reparam.verification.exact_run import ExactRun
from reparam.verification.model_check import (
    Verification,
    relative_error,
    runnable,
    verify,
)
from reparam.verification.module_check import Check, MismatchError, MisreadError
from reparam.verification.random_runs import random_inputs, try_to_run
from reparam.verification.region_check import NOT_FINITE, REGION_BOUND, compared, is_finite
from reparam.verification.transactions import Model, Transaction, called_with, copied_model
