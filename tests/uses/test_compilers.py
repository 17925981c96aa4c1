"""Compile, trace, script, export and convert a fused model."""

import io
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.support.counting import count_operators
from tests.support.errors import run
from tests.support.thinning import thinned
from tests.uses.networks import TRACED, fused_network, same


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compile_in_one_graph(name: str, backend: str) -> None:
    case = fused_network(name)
    compiled = torch.compile(case.fused, fullgraph=True, backend=backend)
    assert same(run_compiled(compiled, case.x), run(case.model, (case.x,)))


def test_compile_breaks_the_graph_only_where_the_model_does() -> None:
    case = fused_network("eager")
    compiled = torch.compile(case.fused, backend="eager")
    assert same(run_compiled(compiled, case.x), run(case.model, (case.x,)))


def run_compiled(model: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


@pytest.mark.parametrize(
    ("name", "strict", "dynamic"), thinned(product(TRACED, (False, True), (False, True)), 3)
)
def test_export(name: str, strict: bool, dynamic: bool) -> None:
    case = fused_network(name)
    shapes = ({0: torch.export.Dim("batch", min=2, max=64)},) if dynamic else None
    program = torch.export.export(case.fused, (case.x,), strict=strict, dynamic_shapes=shapes)
    x = torch.cat((case.x, case.x + 1)) if dynamic else case.x
    assert same(run(program.module(), (x,)), run(case.model, (x,)))
    assert count_operators(program.module(), (x,)) == count_operators(case.fused, (x,))


@pytest.mark.parametrize("name", TRACED)
def test_jit_trace(name: str) -> None:
    case = fused_network(name)
    traced = torch.jit.trace(case.fused, case.x)
    assert same(run(traced, (case.x,)), run(case.model, (case.x,)))
    assert same(run(traced, (case.x[:1],)), run(case.model, (case.x[:1],)))


def test_jit_script() -> None:
    case = fused_network("resnet")
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(case.fused), buffer)
    buffer.seek(0)
    assert same(run(torch.jit.load(buffer), (case.x,)), run(case.model, (case.x,)))


@pytest.mark.parametrize("name", ["repvgg", "byobnet", "eager"])
def test_jit_script_of_new_code_says_what_to_do(name: str) -> None:
    with pytest.raises(reparam.ReparamError, match=r"fused code of its own; use torch\.jit\.trace"):
        torch.jit.script(fused_network(name).fused)


@pytest.mark.parametrize("name", TRACED)
@pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning")
@pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])
def test_onnx(name: str, dynamo: bool) -> None:
    case = fused_network(name)
    buffer = io.BytesIO()
    if dynamo:
        program = torch.onnx.export(case.fused, (case.x,), dynamo=True, verbose=False)
        program.save(buffer)
    else:
        torch.onnx.export(case.fused, (case.x,), buffer, dynamo=False)
    session = onnxruntime.InferenceSession(buffer.getvalue(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {session.get_inputs()[0].name: case.x.numpy()})
    assert same(torch.from_numpy(np.asarray(result)), run(case.model, (case.x,)))


@pytest.mark.parametrize("name", TRACED)
def test_scripted_parts_stay(name: str) -> None:
    """A scripted module has no code to look into: it is left alone, and runs."""
    case = fused_network(name)
    example: Callable[..., nn.Module] = torch.jit.trace
    holder = nn.Sequential(example(case.model, case.x, check_trace=False), nn.Linear(10, 3)).eval()
    fused = reparam.fuse(holder)
    assert torch.equal(run(fused, (case.x,)), run(holder, (case.x,)))
