"""Images with labels: digits or folders, changed at random as a seed decides.

Files, in the order in which data flows: `randomness`, `optional`, `samples`, `digits`,
`image_folder`, `datasets`.
"""

from repvgg.data.datasets import check_same_classes, held_out_samples, training_samples
from repvgg.data.digits import Digits, held_out_digits, predict, split_digits, training_digits
from repvgg.data.optional import import_torchvision
from repvgg.data.randomness import seed_of, seeded
from repvgg.data.samples import Key, Samples, load_batches

__all__ = [
    "Digits",
    "Key",
    "Samples",
    "check_same_classes",
    "held_out_digits",
    "held_out_samples",
    "import_torchvision",
    "load_batches",
    "predict",
    "seed_of",
    "seeded",
    "split_digits",
    "training_digits",
    "training_samples",
]
