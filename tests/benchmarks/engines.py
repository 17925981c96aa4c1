"""What runs a network: PyTorch in several ways, onnxruntime, OpenVINO."""

import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

Runner = Callable[[], Any]
Engine = Callable[[nn.Module, tuple[Any, ...]], Runner]


def eager(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    return lambda: model(*inputs)


def channels_last(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    """Eager, the channels next to each other in memory."""
    model.to(memory_format=torch.channels_last)
    moved = tuple(value.contiguous(memory_format=torch.channels_last) for value in inputs)
    return lambda: model(*moved)


def compiled(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    return _compiled(model, inputs, freezing=False)


def frozen(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    """Compiled with weights as constants: inductor may fold and lay them out anew."""
    return _compiled(model, inputs, freezing=True)


def _compiled(model: nn.Module, inputs: tuple[Any, ...], *, freezing: bool) -> Runner:
    import torch._inductor.config

    run = torch.compile(model, dynamic=False)
    with torch._inductor.config.patch(freezing=freezing):
        run(*inputs)
    return lambda: run(*inputs)


def onnxruntime(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    import onnxruntime as runtime

    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # A thread that waits busily would disturb who runs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    with TemporaryDirectory() as folder:
        path = _onnx(model, inputs, Path(folder))
        session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_inputs()]
    given = dict(zip(names, (value.numpy() for value in inputs), strict=True))
    return lambda: session.run(None, given)


def openvino(model: nn.Module, inputs: tuple[Any, ...]) -> Runner:
    import openvino as engine

    with TemporaryDirectory() as folder:
        program = engine.convert_model(_onnx(model, inputs, Path(folder)))
        compiled_model = engine.compile_model(
            program,
            "CPU",
            {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"},
        )
    request = compiled_model.create_infer_request()
    arrays = [value.numpy() for value in inputs]
    return lambda: request.infer(arrays)


def _onnx(model: nn.Module, inputs: tuple[Any, ...], folder: Path) -> str:
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Left as they are: whether an engine fuses is a part of the question.
        torch.onnx.export(model, inputs, path, dynamo=True, optimize=False, verbose=False)
    return str(path)


ENGINES: dict[str, Engine] = {
    "eager": eager,
    "eager, channels_last": channels_last,
    "torch.compile": compiled,
    "torch.compile, freezing": frozen,
    "onnxruntime": onnxruntime,
    "OpenVINO": openvino,
}
