"""The model that a command is about: where it comes from, its weights, inputs that it takes.

Files, in the order in which data flows: `input_shapes`, `randomising`, `weights`,
`program_checks`, `program_loading`, `model_sources`.
"""

from reparam.cli.models.input_shapes import InputShape, make_inputs, read_shape
from reparam.cli.models.model_sources import (
    FORMS,
    Built,
    build_model,
    is_known_form,
    read_argument,
)
from reparam.cli.models.randomising import is_untrained, randomise_batch_norm
from reparam.cli.models.weights import load_weights
