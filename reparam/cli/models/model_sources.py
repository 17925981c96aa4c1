"""From the MODEL of a command to a module: one function for each place that models come from."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.export import ExportedProgram

from reparam.cli.models.input_shapes import shape_of
from reparam.cli.models.program_loading import load_program
from reparam.cli.printing import error_line
from reparam.cli.words import FORMS, InputShape, source_of
from reparam.errors import ReparamError, install_command

Arguments = Mapping[str, Any]


@dataclass(frozen=True)
class Built:
    """A model, as its library or its author builds it.

    Args:
        model: The model.
        inputs: Shapes that it is known to take; None if nothing says so.
    """

    model: nn.Module | ExportedProgram
    inputs: tuple[InputShape, ...] | None = None


def build_model(name: str, arguments: Arguments) -> Built:
    """Builds a model, without downloading anything.

    Args:
        name: The MODEL of a command; see `FORMS`.
        arguments: What is passed to the function that builds it.

    Returns:
        The model, not in eval mode yet, and the inputs that it is known to take.

    Raises:
        ReparamError: If there is no such model, or what is needed for it is missing.
    """
    source = source_of(name)
    if source is None:
        raise ReparamError(f"{name!r} is no model: write {FORMS}")
    kind, rest = source
    return _SOURCES[kind](rest, arguments)


def near_models(name: str) -> list[str]:
    """The models, as a command takes them, that are called like a word without their library."""
    lists: dict[str, Callable[[], Iterable[str]]] = {
        "timm": lambda: importlib.import_module("timm").list_models(),
        "torchvision": lambda: importlib.import_module("torchvision.models").list_models(),
        "hf": lambda: list(importlib.import_module("transformers").CONFIG_MAPPING),
    }
    near: list[str] = []
    for library, listed in lists.items():
        try:
            known = list(listed())
        except (ImportError, RuntimeError, OSError):  # it is not installed, or not for this PyTorch
            continue
        exact = [name] if name in known else difflib.get_close_matches(name, known, 1, 0.8)
        near += [f"{library}/{each}" for each in exact]
    return near


# -- Model libraries ------------------------------------------------------------------------------


def _timm(name: str, arguments: Arguments) -> Built:
    timm = _import("timm")
    _refuse_weights(arguments, "pretrained", "checkpoint_path", "pretrained_cfg")
    # names with a colon are places to download from
    if ":" in name or "/" in name or not timm.is_model(name):
        raise ReparamError(_unknown("timm", name, timm.list_models()))
    model = timm.create_model(name, pretrained=False, **arguments)
    channels, *sizes = getattr(model, "pretrained_cfg", {}).get("input_size") or (3, 224, 224)
    channels = arguments.get("in_chans", channels)
    if size := arguments.get("img_size"):
        sizes = [size, size] if isinstance(size, int) else list(size)
    return Built(model, (InputShape((1, channels, *sizes)),))


def _torchvision(name: str, arguments: Arguments) -> Built:
    models = _import("torchvision.models")
    _refuse_weights(arguments, "pretrained", "pretrained_backbone", "weights", "weights_backbone")
    known = models.list_models()
    if name not in known:
        raise ReparamError(_unknown("torchvision", name, known))
    builder = models.get_model_builder(name)
    kind = builder.__module__.removeprefix("torchvision.models.").partition(".")[0]
    arguments = {"weights": None, **arguments}
    if kind in ("detection", "segmentation"):  # else the backbone is downloaded
        arguments["weights_backbone"] = None
    model = models.get_model(name, **arguments)
    images = kind not in ("detection", "optical_flow", "video")
    return Built(model, (InputShape((1, 3, 224, 224)),) if images else None)


def _transformers(name: str, arguments: Arguments) -> Built:
    transformers = _import("transformers")
    known = list(transformers.CONFIG_MAPPING)
    folder = Path(name)
    if name not in known and folder.is_dir():
        return Built(_from_folder(transformers, folder, arguments))
    if name not in known:
        also = ", nor such a folder, and nothing is downloaded"
        raise ReparamError(_unknown("hf", name, known, also))
    config = transformers.AutoConfig.for_model(name, **arguments)
    return Built(transformers.AutoModel.from_config(config, trust_remote_code=False))


def _from_folder(transformers: ModuleType, folder: Path, arguments: Arguments) -> nn.Module:
    """The model of a folder, with its weights if it has any."""
    if not (folder / "config.json").is_file():
        raise ReparamError(f"there is no config.json in {folder}")
    try:
        config = transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False, **arguments
        )
    except (OSError, ValueError, KeyError) as error:
        raise ReparamError(f"{folder / 'config.json'} cannot be used: {error}") from error
    architectures = getattr(config, "architectures", None) or ["AutoModel"]
    kind = getattr(transformers, architectures[0], None)
    if not isinstance(kind, type) or not hasattr(kind, "from_pretrained"):
        raise ReparamError(
            f"transformers has no {architectures[0]}, which {folder / 'config.json'} names, and "
            "no code from the folder is run"
        )
    has_weights = any((folder / f"model.safetensors{end}").is_file() for end in ("", ".index.json"))
    if not has_weights:
        pickled = [*folder.glob("pytorch_model*.bin")]
        if pickled:
            raise ReparamError(
                f"the weights in {folder} are no .safetensors; move {pickled[0].name} elsewhere "
                "and give it as --weights"
            )
        built: nn.Module = (
            kind(config)
            if issubclass(kind, transformers.PreTrainedModel)
            else transformers.AutoModel.from_config(config, trust_remote_code=False)
        )
        return built
    model, found = kind.from_pretrained(
        folder,
        config=config,
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
        dtype="float32",
    )
    for problem in ("missing_keys", "mismatched_keys"):
        if names := sorted(map(str, found.get(problem, ()))):
            raise ReparamError(
                f"the weights in {folder} do not fit: {problem.replace('_', ' ')}: "
                f"{', '.join(names[:3])}"
            )
    loaded: nn.Module = model
    return loaded


def _ultralytics(name: str, arguments: Arguments) -> Built:
    if not name.endswith((".yaml", ".yml")):
        raise ReparamError(f"ultralytics/{name} is no description: give a .yaml file")
    local = Path(name).is_file()
    if not local and not re.fullmatch(r"[\w.-]+", name):
        raise ReparamError(f"there is no file {name}, and nothing is downloaded")
    with _environment(YOLO_OFFLINE="true", YOLO_AUTOINSTALL="false", YOLO_VERBOSE="false"):
        _import("ultralytics")
        tasks = _import("ultralytics.nn.tasks", "ultralytics")
        try:
            description = tasks.yaml_model_load(name)
        except Exception as error:  # of the reader of .yaml files, too
            reason = "describes no network of ultralytics" if local else "is not in ultralytics"
            raise ReparamError(f"{name} {reason} ({error_line(error)})") from error
        _check_description(description, name, tasks)
        kinds = {
            "classify": tasks.ClassificationModel,
            "segment": tasks.SegmentationModel,
            "pose": tasks.PoseModel,
            "obb": tasks.OBBModel,
            "detect": tasks.DetectionModel,
        }
        last = description["head"][-1][-2]
        task = tasks.guess_model_task(description)
        if last == "RTDETRDecoder":
            kind = tasks.RTDETRDetectionModel
        elif task in kinds:
            kind = kinds[task]
        else:
            raise ReparamError(f"{name} describes a network for {task}, which is not known here")
        model: nn.Module = kind(description, **{"verbose": False, **arguments})
    return Built(model)


def _check_description(description: Any, name: str, tasks: ModuleType) -> None:
    """Lets a description name layers only: the library calls whatever it names."""
    if not isinstance(description, dict) or not description.get("head"):
        raise ReparamError(f"{name} describes no network of ultralytics")
    activation = description.get("activation")  # this one is evaluated
    if activation and not re.fullmatch(r"(torch\.)?nn\.\w+\([\w\s=.,-]*\)", str(activation)):
        raise ReparamError(f"{name} names {activation!r}, which is no activation of torch.nn")
    for layer in [*description.get("backbone", ()), *description["head"]]:
        word = str(layer[-2])
        home, _, inner = word.rpartition(".")
        holder = {"": tasks, "nn": nn, "torchvision.ops": sys.modules.get("torchvision.ops")}
        kind = getattr(holder.get(home), inner, None)
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ReparamError(f"{name} names {word!r}, which is no layer")


# -- Files and functions of the user --------------------------------------------------------------


def _program(name: str, arguments: Arguments) -> Built:
    if arguments:
        raise ReparamError(f"{name} is a program, which takes no --arg")
    program = load_program(Path(name))
    positional, keywords = program.example_inputs or ((), {})
    given = [*(("", value) for value in positional), *keywords.items()]
    if not given or not all(isinstance(value, Tensor) for _, value in given):
        return Built(program)
    return Built(program, tuple(shape_of(value, name) for name, value in given))


def _factory(name: str, arguments: Arguments) -> Built:
    """Calls a function of the user's, found as `python -m` would find its module."""
    module_name, _, path = name.partition(":")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        target: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise ReparamError(
            f"there is no module {error.name}, neither here nor installed"
        ) from error
    for part in path.split("."):
        if not hasattr(target, part):
            close = difflib.get_close_matches(part, [*vars(target)], 3)
            advice = f"; did you mean {' or '.join(close)}?" if close else ""
            raise ReparamError(f"{module_name} has no {path}{advice}")
        target = getattr(target, part)
    if isinstance(target, nn.Module | ExportedProgram):
        if arguments:
            raise ReparamError(f"{name} is a model, not a function: it takes no --arg")
        return Built(target)
    if not callable(target):
        raise ReparamError(f"{name} is of type {type(target).__name__}, no function and no model")
    try:
        model = target(**arguments)
    except SystemExit as error:  # else the exit code would be its own
        raise ReparamError(f"{name} ended the program instead of returning a model") from error
    if not isinstance(model, nn.Module | ExportedProgram):
        raise ReparamError(
            f"{name} returned {type(model).__name__}, not a torch.nn.Module or an ExportedProgram"
        )
    return Built(model)


_SOURCES: Mapping[str, Callable[[str, Arguments], Built]] = {
    "timm": _timm,
    "torchvision": _torchvision,
    "hf": _transformers,
    "ultralytics": _ultralytics,
    "program": _program,
    "factory": _factory,
}


# -- What they share ------------------------------------------------------------------------------


def _import(name: str, package: str | None = None) -> ModuleType:
    package = package or name.partition(".")[0]
    try:
        return importlib.import_module(name)
    # built for another PyTorch, one of them fails to declare its operators: a RuntimeError
    except (ImportError, RuntimeError, OSError) as error:
        raise ReparamError(
            f"{package} cannot be imported ({error}); install it, and the torchvision that was "
            f"built for your PyTorch: {install_command(package)}"
        ) from error


def _refuse_weights(arguments: Arguments, *names: str) -> None:
    for name in names:
        if arguments.get(name):
            raise ReparamError(f"--arg {name} would download or unpickle weights; use --weights")


def _unknown(source: str, name: str, known: Iterable[str], also: str = "") -> str:
    close = difflib.get_close_matches(name, list(known), 3)
    advice = f"; did you mean {', '.join(f'{source}/{one}' for one in close)}?" if close else ""
    return f"there is no model {source}/{name}{also}{advice}"


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Sets variables of the environment meanwhile, except those that the user has set."""
    mine = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)
