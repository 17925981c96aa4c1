"""Operators that change no number in eval mode."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from reparam.algebra.affine import AffineConv
from reparam.errors import Refusal
from reparam.rules.registry import register_rule

aten = torch.ops.aten


@register_rule(
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.Dropout3d,
    nn.AlphaDropout,
    nn.FeatureAlphaDropout,
)
def identity_module(module: nn.Module, x: AffineConv) -> AffineConv | Refusal:
    """The identity, and dropout in eval mode."""
    if module.training and type(module) is not nn.Identity:
        return Refusal("dropout in training mode")
    return x


@register_rule(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout
)
def dropout(
    input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False
) -> AffineConv | Refusal:
    """Dropout outside training."""
    del p, inplace
    return _dropout(input, training)


@register_rule(aten.dropout, torch.dropout, aten.feature_dropout, aten.alpha_dropout)
def native_dropout(input: Any, p: Any, train: Any) -> AffineConv | Refusal:
    """Dropout outside training."""
    del p
    return _dropout(input, train)


def _dropout(x: Any, training: Any) -> AffineConv | Refusal:
    if training is not False or not isinstance(x, AffineConv):
        return Refusal("dropout in training mode")
    return x
