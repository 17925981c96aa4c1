"""Models as folders, on disk or on the Hugging Face Hub: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from reparam import ReparamError
from reparam.deployment import read_state_dict, weights_writer, write_files
from repvgg.models import VARIANTS, RepVGG, RepVGGConfig, build_classifier, find_variant
from repvgg.weights.checkpoints import load_fresh

_CONFIG = "config.json"
_WEIGHTS = "model.safetensors"


def save_pretrained(model: RepVGG, folder: str | os.PathLike[str]) -> None:
    """Saves a model, as trained or fused, so that `from_pretrained` builds it again.

    Args:
        model: The model.
        folder: Made if it is missing. `huggingface_hub.upload_folder` publishes it.

    Raises:
        ReparamError: If the folder cannot be written to.
    """
    names = [name for name, config in VARIANTS.items() if config == model.config]
    config = {
        "architecture": names[0] if names else "repvgg",
        "config": asdict(model.config),
        "num_classes": model.num_classes,
        "in_chans": model.in_chans,
    }
    weights = weights_writer(_WEIGHTS, model.state_dict())
    text = json.dumps(config, indent=2) + "\n"
    write_files(Path(folder), {_CONFIG: text.encode(), _WEIGHTS: weights})


def from_pretrained(source: str | os.PathLike[str], **download: Any) -> RepVGG:
    """Builds a model with its weights from a folder or from the Hugging Face Hub.

    The weights may have any layout, so timm's repositories of RepVGG, such as
    "timm/repvgg_a0.rvgg_in1k", can be read too.

    Args:
        source: A folder, or the name of a repository on the Hub. A folder of that name is
            preferred.
        download: Options of `huggingface_hub.snapshot_download`, such as `revision`, `token`,
            `cache_dir` or `local_files_only`.

    Returns:
        The model in evaluation mode; a fused one if the weights are fused.

    Raises:
        ReparamError: If there is no such folder or repository, it is not reachable, or it holds no
            RepVGG.

    Examples:
        >>> from repvgg import create_model
        >>> save_pretrained(create_model("repvgg_a0", num_classes=10), "digits")
        >>> from_pretrained("digits").num_classes
        10
    """
    folder = Path(source)
    if not folder.is_dir():
        folder = _download(str(source), download)
    elif download:
        raise ReparamError(f"{source} is a folder, and nothing is downloaded: leave {download} out")
    model = _build(folder / _CONFIG)
    state = read_state_dict(folder / _WEIGHTS)
    return load_fresh(model, state, folder / _WEIGHTS)


def _download(source: str, options: Mapping[str, Any]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise ReparamError(
            f"there is no folder {source}, and huggingface_hub, which downloads, is not installed: "
            "pip install huggingface_hub"
        ) from error
    try:
        return Path(snapshot_download(source, allow_patterns=[_CONFIG, _WEIGHTS], **options))
    except (OSError, ValueError) as error:
        raise ReparamError(
            f"{source} is no folder, and could not be downloaded from the Hugging Face Hub: {error}"
        ) from error


def _build(path: Path) -> RepVGG:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        classes, channels = description["num_classes"], description.get("in_chans", 3)
        shape = description.get("config")
        config = _config(shape) if shape else find_variant(description["architecture"])
    except OSError as error:
        raise ReparamError(f"cannot read {path}: {error.strerror or error}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ReparamError(
            f"{path} does not describe a RepVGG: {error!r}; it needs num_classes, and the name of "
            "a variant as architecture"
        ) from error
    return build_classifier(config, num_classes=classes, in_chans=channels)


def _config(shape: Mapping[str, Any]) -> RepVGGConfig:
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()
    }
    return RepVGGConfig(**values)
