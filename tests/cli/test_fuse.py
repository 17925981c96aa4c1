"""What `reparam fuse` and `reparam plan` write is read back and compared with the model."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import onnxruntime
import pytest
import safetensors.torch
import torch
from torch import nn

import reparam
import reparam.deployment.recording
from reparam.cli.models.input_shapes import make_inputs
from reparam.cli.models.randomising import is_untrained, randomise_batch_norm
from reparam.cli.words import InputShape
from tests.cli.networks import small, tied, words

NETWORKS = "tests.cli.networks"
SMALL = f"{NETWORKS}:small"
SHAPE = "--input 2,3,8,8"
FLOAT32 = {"rtol": 1e-4, "atol": 1e-6}


def model_as_built() -> nn.Module:
    torch.manual_seed(5)
    model = small().eval()
    (x,) = make_inputs([InputShape((2, 3, 8, 8))], 5).args
    return randomise_batch_norm(model, 5, [torch.cat([x, x.flip(-1)])])


RANDOM = "--seed 5 --randomise-batch-norm"
INPUTS = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def expected() -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model_as_built()(INPUTS)
    return result


def test_an_exported_program_computes_the_same(run, tmp_path: Path) -> None:
    result = run(f"fuse {SMALL} {RANDOM} {SHAPE} -o out/fused.pt2")
    assert "Sequential: 4 operators become 2" in result.out
    assert "Wrote out/fused.pt2; run once, it differs from the fused model by" in result.out
    program = torch.export.load(tmp_path / "out" / "fused.pt2")
    torch.testing.assert_close(program.module()(INPUTS), expected(), **FLOAT32)
    assert not [node for node in program.graph.nodes if "batch_norm" in str(node.target)]


def test_onnxruntime_computes_the_same(run, tmp_path: Path) -> None:
    values = run(f"fuse {SMALL} {RANDOM} {SHAPE} -o fused.onnx --json").values
    assert values["output"] == "fused.onnx"
    assert values["difference"] < 1e-5
    session = onnxruntime.InferenceSession(str(tmp_path / "fused.onnx"))
    (name,) = (node.name for node in session.get_inputs())
    (found,) = session.run(None, {name: INPUTS.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), expected(), **FLOAT32)


def test_weights_fit_the_fused_model_in_float64(run, tmp_path: Path) -> None:
    run(f"fuse {SMALL} {RANDOM} -o fused.safetensors {SHAPE}")
    state = safetensors.torch.load_file(tmp_path / "fused.safetensors")
    model = model_as_built()
    fused = reparam.fuse(model)
    for parameter in fused.parameters():
        parameter.data.zero_()
    fused.load_state_dict(state, strict=True)
    with torch.no_grad():
        found, exact = fused.double()(INPUTS.double()), model.double()(INPUTS.double())
    torch.testing.assert_close(found, exact, rtol=1e-5, atol=1e-7)


def test_shared_weights_are_written_by_all_names(run, tmp_path: Path) -> None:
    run(f"fuse {NETWORKS}:tied -o fused.safetensors")
    state = safetensors.torch.load_file(tmp_path / "fused.safetensors")
    fused = reparam.fuse(tied().eval())
    assert state.keys() == fused.state_dict().keys()
    fused.load_state_dict(state, strict=True)
    assert torch.equal(state["first.weight"], state["second.weight"])


@pytest.mark.parametrize("name", ["words.pt2", "words.onnx"])
def test_several_inputs_and_outputs(run, tmp_path: Path, name: str) -> None:
    shapes = "--input 2,5:int64 --input 2,5"
    assert run(f"fuse {NETWORKS}:words {shapes} -o {name} --json").values["difference"] < 1e-5
    torch.manual_seed(0)
    model = words().eval()
    first, second = make_inputs([InputShape((2, 5), "int64"), InputShape((2, 5))], 1).args
    with torch.no_grad():
        exact = list(model(first, second).values())
    if name.endswith(".pt2"):
        found = list(torch.export.load(tmp_path / name).module()(first, second).values())
    else:
        session = onnxruntime.InferenceSession(str(tmp_path / name))
        names = [node.name for node in session.get_inputs()]
        outputs = session.run(None, dict(zip(names, (first.numpy(), second.numpy()), strict=True)))
        found = [torch.from_numpy(output) for output in outputs]
    assert len(found) == 2
    torch.testing.assert_close(found, exact, **FLOAT32)


@pytest.mark.parametrize("name", ["a.pt2", "a.onnx"])
def test_any_number_of_samples(run, tmp_path: Path, name: str) -> None:
    run(f"fuse {SMALL} {RANDOM} --input 1,3,8,8 -o {name} --any-batch")
    for count in (1, 2, 5):
        x = torch.randn(count, 3, 8, 8)
        if name.endswith(".pt2"):
            assert torch.export.load(tmp_path / name).module()(x).shape == (count, 4, 6, 6)
        else:
            session = onnxruntime.InferenceSession(str(tmp_path / name))
            (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
            assert found.shape == (count, 4, 6, 6)


def test_a_number_of_samples_that_is_fixed(run) -> None:
    shapes = "--input 2,5:int64 --input 3,5"
    run(f"fuse {NETWORKS}:words {shapes} -o a.pt2 --any-batch", code=1)
    run(f"fuse {SMALL} {SHAPE} -o a.pt2")
    error = run("fuse a.pt2 -o b.pt2 --any-batch", code=1).err
    assert "leave --any-batch out" in error


def test_a_network_of_a_library_becomes_onnx(run, tmp_path: Path) -> None:
    values = run("fuse timm/test_byobnet --input 1,3,64,64 -o a.onnx --json").values
    assert values["operators"] == {"before": 28, "after": 14}
    assert values["difference"] < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"a.onnx"}


def test_the_same_command_writes_the_same_weights(run, tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        run(f"fuse {SMALL} {RANDOM} -o {name}")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_fused_model_needs_no_output(run, tmp_path: Path) -> None:
    values = run(f"fuse {SMALL} --json").values
    assert values["fused"][0]["float64_error"] < 1e-9
    assert (values["output"], values["difference"]) == (None, None)
    assert list(tmp_path.iterdir()) == []


def test_nothing_fused(run, tmp_path: Path) -> None:
    network = f"{NETWORKS}:nothing_to_fuse"
    run(f"plan {network}")
    run(f"plan {network} --require-fused", code=3)
    run(f"fuse {network} -o a.safetensors --require-fused", code=3)
    assert list(tmp_path.iterdir()) == []
    run(f"fuse {network} -o a.safetensors")
    assert (tmp_path / "a.safetensors").exists()


def test_keys_of_a_plan(run) -> None:
    values = run(f"plan {SMALL} --json").values
    keys = "reparam command model class operators fused refused frozen dropped notes cost"
    assert " ".join(values) == keys
    assert values["reparam"] == reparam.__version__
    assert values["operators"] == {"before": 4, "after": 2}
    assert values["fused"][0] == {
        "place": "1",
        "was": "Conv2d + BatchNorm2d",
        "becomes": "conv 3x3, 3 -> 8",
        "operators": {"before": 2, "after": 1},
        "multiply_adds": {"before": 216, "after": 216},
        "cost": {"before": 216, "after": 216},
        "sized": False,
        "basis": "",
        "float64_error": None,
        "name": "",
    }
    whole = run(f"plan {SMALL} --json {SHAPE}").values
    assert whole["fused"][0]["multiply_adds"] == {"before": 15552, "after": 15552}


def test_refusals_are_in_the_result(run) -> None:
    refused = run("plan timm/test_byobnet --json").values["refused"]
    assert refused
    assert all(set(row) == {"place", "operator", "reason"} for row in refused)


def test_a_page_is_written_whole(run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for command in ("plan", "fuse"):
        run(f"{command} {SMALL} --html out/{command}.html")
        text = (tmp_path / "out" / f"{command}.html").read_text(encoding="utf-8")
        assert text.startswith("<!DOCTYPE html>")
        assert "4 operators become 2" in text
    whole = (tmp_path / "out" / "plan.html").read_bytes()

    def fail(plan: reparam.Plan, path: Path) -> None:
        Path(path).write_text("<p>ha")
        raise OSError("no more")

    monkeypatch.setattr(reparam.Plan, "to_html", fail)
    error = run(f"plan {SMALL} --html out/plan.html", code=1).err
    assert "cannot write out/plan.html: no more" in error
    assert (tmp_path / "out" / "plan.html").read_bytes() == whole
    assert len(list((tmp_path / "out").iterdir())) == 2


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
def test_a_failure_half_way_leaves_what_was_there(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    if suffix == ".safetensors":
        monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    else:
        monkeypatch.setattr(reparam.deployment.recording, "_BOUND", -1.0)
    error = run(f"fuse {SMALL} {SHAPE} -o {path.name}", code=1).err
    assert ("full" if suffix == ".safetensors" else "nothing was written") in error
    assert [one.read_bytes() for one in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("option", ["-o file/fused.pt2", "--html file/page.html"])
def test_a_folder_that_cannot_be_written_to_is_found_before_the_work(
    run, tmp_path: Path, option: str
) -> None:
    (tmp_path / "file").touch()
    error = run(f"fuse {NETWORKS}:failing {option}", code=1).err
    assert error.startswith("Error: cannot write to file: ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (f"fuse {SMALL} -o a.pt2", "nothing says which inputs"),
        (f"fuse {SMALL} -o a.pt2 --input 1,4,8,8", "cannot be run on inputs of the shape (1, 4,"),
        (f"plan {SMALL} --input 1,3,8,8 --input 1,3,8,8", "cannot be run on inputs of the shape"),
    ],
)
def test_inputs_that_do_not_fit(run, tmp_path: Path, words: str, message: str) -> None:
    error = run(words, code=1).err
    assert message in error
    assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "module", "extra"),
    [("a.onnx", "onnxscript", "interop"), ("a.safetensors", "safetensors.torch", "cli")],
)
def test_a_missing_package_is_named(
    run, monkeypatch: pytest.MonkeyPatch, name: str, module: str, extra: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    error = run(f"fuse {SMALL} {SHAPE} -o {name}", code=1).err
    assert f"pip install 'reparam[{extra}]'" in error


def test_fresh_batch_norms_are_told_from_trained_ones() -> None:
    model = small().eval()
    assert is_untrained(model)
    model[4].running_mean[2] = 1
    assert not is_untrained(model)
    assert not is_untrained(nn.ReLU())


def test_numbers_that_are_none_are_null(run, monkeypatch: pytest.MonkeyPatch) -> None:
    found = reparam.Verification((float("nan"),), (0.0,), (float("inf"),))
    monkeypatch.setattr(reparam, "verify", lambda *_: found)
    result = run(f"verify {SMALL} {SHAPE} --json", code=3)
    assert json.loads(result.out)["outputs"][0]["fused"] is None


def test_what_must_not_rise(run) -> None:
    pooled = f"{NETWORKS}:pooled"
    assert len(run(f"plan {pooled} --json").values["fused"]) == 1
    assert not run(f"plan {pooled} --json --cost memory").values["fused"]
    assert "microseconds" in run(f"plan {SMALL} {SHAPE} --cost latency").out
    assert "nothing says which inputs" in run(f"fuse {SMALL} --cost latency", code=1).err
    run(f"plan {SMALL} --cost flops", code=2)


def test_norms_are_folded_on_request(run) -> None:
    normed = f"{NETWORKS}:normed"
    assert not run(f"plan {normed} --json").values["fused"]
    for command in ("plan", "fuse"):
        rows = run(f"{command} {normed} --json --fold-norms").values["fused"]
        assert [row["becomes"] for row in rows] == [
            "layer norm without a weight, 6",
            "linear 6 -> 6, with the weight of a norm",
        ]
