"""The model that a command is about: where it comes from, its weights, inputs that it takes.

Files, in the order in which data flows: `input_shapes`, `randomising`, `weights`,
`program_checks`, `program_loading`, `model_sources`.
"""

from reparam.cli.models.input_shapes import make_inputs
from reparam.cli.models.model_sources import Built, build_model, near_models
from reparam.cli.models.randomising import is_untrained, randomise_batch_norm
from reparam.cli.models.weights import load_weights
