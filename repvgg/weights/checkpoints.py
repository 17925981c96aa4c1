"""Loads weights into a RepVGG from the files that users have, and saves them as such."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TypeVar

from torch import Tensor

import reparam
from reparam import ReparamError
from reparam.deployment import read_state_dict, weights_writer, write_files
from repvgg.models import Backbone, RepVGG
from repvgg.weights.layouts import FUSED, Layout, convert_state_dict, is_auxiliary, is_fused

ModelT = TypeVar("ModelT", bound=Backbone)

_Shapes = tuple[tuple[int, ...], tuple[int, ...]]

_SHOWN = 3

_PARTS = re.compile(r"linear|stage\d(_first|_second)?(_aux)?")


def load_checkpoint(
    model: ModelT, path: str | os.PathLike[str], *, entry: str | None = None
) -> ModelT:
    """Loads weights from a file in any layout; use what it returns.

    Weights as trained go into `model` itself. Fused weights need a fused model: unless `model` is
    one, they go into a copy that `reparam.fuse` fuses, in evaluation mode. Where a feature
    extractor has no classifier or no later stages, or a RepVGGplus no auxiliary heads, those of the
    file are passed over. A failed load changes nothing.

    Args:
        model: A model of the variant that the file holds.
        path: A `.safetensors` file, or one that `torch.save` wrote. It is read without running
            code that it brings.
        entry: Under which key the weights are, in a file that holds more. By default the file
            itself, or its "state_dict", "model" or "model_state"; averaged weights, say
            "model_ema" or "state_dict_ema", only if named.

    Returns:
        `model`, or its fused copy.

    Raises:
        ReparamError: If the file cannot be read, or its weights do not fit the model.

    Examples:
        >>> from repvgg import create_model
        >>> model = create_model("repvgg_a0", num_classes=10)
        >>> save_checkpoint(model, "repvgg_a0.safetensors", layout="official_fused")
        >>> fused = load_checkpoint(model, "repvgg_a0.safetensors")
        >>> fused.stage0.fused_conv
        Conv2d(3, 48, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1))
    """
    return _load_weights(model, read_state_dict(path, entry=entry), path)


def _load_weights(
    model: ModelT, state: Mapping[str, Tensor], path: str | os.PathLike[str]
) -> ModelT:
    try:
        fused, model_fused = is_fused(state), is_fused(model.state_dict())
        if model_fused and not fused:
            raise ReparamError(
                "the weights are those of the training form and the model is fused; load them "
                "into the model before it is fused"
            )
        named = convert_state_dict(state, to="reparam_fused" if fused else "official")
        target = model
        if fused and not model_fused:
            target = _fused_copy(model, verify=False)  # these weights will be replaced
        _load_strictly(target, named)
    except ReparamError as error:
        raise ReparamError(f"{path} does not fit: {error}") from error
    return target


def load_fresh(model: RepVGG, state: Mapping[str, Tensor], path: str | os.PathLike[str]) -> RepVGG:
    """Loads weights into a model that was built for them, and takes from it what they do not have.

    Args:
        model: The model.
        state: The weights by their names, in any layout.
        path: Where they were read, for messages.

    Returns:
        The model, or its fused copy, in evaluation mode.

    Raises:
        ReparamError: If the weights do not fit the model.
    """
    if not any(is_auxiliary(name) for name in state):
        model.remove_auxiliary_heads()
    return _load_weights(model, state, path).eval()


def save_checkpoint(
    model: Backbone, path: str | os.PathLike[str], *, layout: Layout | None = None
) -> None:
    """Saves the weights of a model; the file is there as a whole or not at all.

    Args:
        model: The model, as trained or fused.
        path: A name that ends in `.safetensors`, or in `.pth`, `.pt` or `.tar` for a file as
            `torch.save` writes it.
        layout: The names and the form: "official", "official_fused", "timm", "timm_fused" or
            "reparam_fused". By default the authors' names for the form that the model has. A
            model as trained is fused for a fused layout, and not changed.

    Raises:
        ReparamError: If the suffix or the layout is unknown, a fused model is to be saved as
            trained, or the file cannot be written.
    """
    path = Path(path)
    state = model.state_dict()
    fused = is_fused(state)
    if layout is None:
        layout = "official_fused" if fused else "official"
    elif layout in FUSED and not fused:
        state = _fused_copy(model, verify=True).state_dict()
    converted = convert_state_dict(state, to=layout)
    write_files(path.parent, {path.name: weights_writer(path.name, converted)})


def _fused_copy(model: ModelT, *, verify: bool) -> ModelT:
    copy = deepcopy(model).eval()
    if isinstance(copy, RepVGG):
        copy.remove_auxiliary_heads()
    return reparam.fuse(copy, inplace=True, verify=verify)


def _load_strictly(model: Backbone, state: Mapping[str, Tensor]) -> None:
    expected = model.state_dict()
    parts = {name.partition(".")[0] for name in expected}
    weights = {name: tensor for name, tensor in state.items() if not _passed_over(name, parts)}
    missing = [name for name in expected if name not in weights]
    unexpected = [name for name in weights if name not in expected]
    shapes = {
        name: (tuple(tensor.shape), tuple(expected[name].shape))
        for name, tensor in weights.items()
        if name in expected and tensor.shape != expected[name].shape
    }
    if not (missing or unexpected or shapes):
        model.load_state_dict(weights)
        return
    names_by_problem = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": [f"{name} is {a} instead of {b}" for name, (a, b) in shapes.items()],
    }
    problems = [
        f"{len(names)} {what}: {_some(names)}" for what, names in names_by_problem.items() if names
    ]
    raise ReparamError(f"{'; '.join(problems)}; {_advice(missing, unexpected, shapes)}")


def _passed_over(name: str, parts: set[str]) -> bool:
    """Whether a weight belongs to a part of RepVGG that this model does without."""
    part = name.partition(".")[0]
    return part not in parts and _PARTS.fullmatch(part) is not None


def _some(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")


def _advice(missing: list[str], unexpected: list[str], shapes: Mapping[str, _Shapes]) -> str:
    if not (unexpected or shapes) and all(is_auxiliary(name) for name in missing):
        return "the file has no auxiliary heads: call the model's remove_auxiliary_heads() before"
    head = shapes.get("linear.weight")
    if head and not (missing or unexpected) and all(_is_of_a_head(name) for name in shapes):
        return (
            f"the file has {head[0][0]} classes: create the model with num_classes={head[0][0]}, "
            "and call reset_classifier after loading to get others"
        )
    return "create the variant that the file holds, with its num_classes and in_chans"


def _is_of_a_head(name: str) -> bool:
    return name.startswith("linear.") or "_aux.3." in name  # the last module of an auxiliary head
