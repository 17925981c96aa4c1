"""Training that can be interrupted at any moment, on one process or many, and evaluation.

Files, in the order in which data flows: `processes`, `recipes`, `sampling`, `losses`,
`kernel_decay`, `optimization`, `networks`, `starts`, `progress`, `loop`, `evaluation`,
`validation`, `keeping`, `run`.
"""

from repvgg.training.evaluation import Evaluation, evaluate
from repvgg.training.loop import train
from repvgg.training.networks import SMALL, build_network, image_size, network_of, small_repvgg
from repvgg.training.processes import Processes, join
from repvgg.training.recipes import DIGITS, PRECISIONS, Recipe, recipe_for
from repvgg.training.run import Habits, train_run
from repvgg.training.starts import BLOCKS, Run

__all__ = [
    "BLOCKS",
    "DIGITS",
    "PRECISIONS",
    "SMALL",
    "Evaluation",
    "Habits",
    "Processes",
    "Recipe",
    "Run",
    "build_network",
    "evaluate",
    "image_size",
    "join",
    "network_of",
    "recipe_for",
    "small_repvgg",
    "train",
    "train_run",
]
