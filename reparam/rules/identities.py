"""Operators that change no number in eval mode."""

from __future__ import annotations

from typing import Any

from torch import nn

from reparam.algebra import AffineConv
from reparam.errors import Refusal
from reparam.rules.registry import register_rule
from reparam.rules.spelling import spellings


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
    *spellings("dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout", "F")
)
def dropout(
    input: Any, p: Any = 0.5, training: Any = True, inplace: Any = False
) -> AffineConv | Refusal:
    """Dropout outside training."""
    del p, inplace
    return _dropout(input, training)


@register_rule(
    *spellings("dropout", "torch aten"), *spellings("feature_dropout alpha_dropout", "aten")
)
def native_dropout(input: Any, p: Any, train: Any) -> AffineConv | Refusal:
    """Dropout outside training."""
    del p
    return _dropout(input, train)


def _dropout(x: Any, training: Any) -> AffineConv | Refusal:
    if training is not False or not isinstance(x, AffineConv):
        return Refusal("dropout in training mode")
    return x
