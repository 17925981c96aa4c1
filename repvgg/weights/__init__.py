"""Weights in files and folders, under the names that anybody gives them.

Files, in the order in which data flows: `layouts`, `checkpoints`, `hub`, `timm_models`.
"""

from repvgg.weights.checkpoints import load_checkpoint, load_fresh, save_checkpoint
from repvgg.weights.hub import from_pretrained, save_pretrained
from repvgg.weights.layouts import Layout, convert_state_dict, find_layout, is_fused

__all__ = [
    "Layout",
    "convert_state_dict",
    "find_layout",
    "from_pretrained",
    "is_fused",
    "load_checkpoint",
    "load_fresh",
    "save_checkpoint",
    "save_pretrained",
]
