"""The benchmarks run, and their page is that of their data."""

import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

import reparam
from tests.benchmarks import busy, fusing, gpu, inference, page, planning, plots
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.forms import AGAIN, FX, LIMIT, OURS, TRAINING, BareConvolutions, forms
from tests.benchmarks.measuring import interleaved, summary
from tests.benchmarks.networks import Tiny
from tests.benchmarks.results import Kept
from tests.support.counting import count_operators

DATA = page.load()


def measured(engine: str, batches: tuple[int, ...] = (1,)) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    inference.measure(Tiny(), batches, [engine], 3, 1.0, found.append)
    return found


@pytest.mark.parametrize("engine", ["eager", "eager, channels_last", "onnxruntime"])
def test_one_network_in_an_engine(engine: str) -> None:
    one, two = measured(engine, (1, 2))
    assert (one["batch"], two["batch"]) == (1, 2)
    assert {TRAINING, OURS, AGAIN} <= one["milliseconds"].keys()
    assert (LIMIT in one["milliseconds"]) == engine.startswith("eager")
    for middle, low, high in one["milliseconds"].values():
        assert 0 < low <= middle <= high
    assert page.ratio(one, OURS, TRAINING) is not None


@pytest.mark.corpus
@pytest.mark.parametrize("engine", sorted(ENGINES.keys() - {"eager", "eager, channels_last"}))
def test_one_network_in_a_slow_engine(engine: str) -> None:
    if engine == "OpenVINO":
        pytest.importorskip("openvino")
    (one,) = measured(engine)
    assert {TRAINING, OURS} <= one["milliseconds"].keys(), one["missing"]


def test_the_forms_of_a_network() -> None:
    network = Tiny()
    inputs = network.inputs(2, 1)
    made, missing = forms(network, inputs)
    assert missing == {"by hand": "there is none"}
    with torch.no_grad():
        expected = made[TRAINING](*inputs)
        for form in (FX, OURS, AGAIN):
            assert torch.allclose(made[form](*inputs), expected, atol=1e-4, rtol=1e-3)
        bare = BareConvolutions(made[OURS], inputs, torch.contiguous_format)
        ours, limit = (count_operators(model, inputs) for model in (made[OURS], bare))
    assert (limit.convolutions, limit.linears) == (ours.convolutions, ours.linears)
    assert limit.macs == ours.macs
    assert limit.total == limit.convolutions + limit.linears


def test_all_take_their_turn() -> None:
    order: list[str] = []
    times = interleaved({name: lambda name=name: order.append(name) for name in "abc"}, 5)
    assert order[:3] == ["a", "b", "c"]  # the warm-up
    rounds = [order[start : start + 3] for start in range(3, len(order), 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(map(tuple, rounds))) > 1
    assert all(len(taken) == 5 for taken in times.values())
    for name, (middle, low, high) in summary(times).items():
        assert middle == round(1e3 * median(times[name]), 4)
        assert low <= middle <= high


def test_a_long_comparison_ends() -> None:
    assert len(interleaved({"a": lambda: None}, 1000, seconds=0)["a"]) == 3


def test_what_fusing_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    model = fusing.chain(2)
    result = fusing.compare(model, "chain", 2)
    assert result["milliseconds"].keys() == {"fuse", "fuse, verify=False", "by hand"}
    parts = fusing.profiled(model, "chain")["parts"]
    assert parts.keys() == fusing.PHASES.keys()
    assert all(0 <= part <= 1 for part in parts.values())
    ran = {"the model's code is traced", "the planner decides", "new weights are computed"}
    assert all(parts[phase] > 0 for phase in ran)
    grown = fusing.growth("length", [(1, lambda: fusing.chain(1))], repeats=1)
    assert grown["seconds"]["1"] > 0
    monkeypatch.setattr(fusing, "network", lambda name: model)
    for verify in (True, False):
        peak = fusing.memory("chain", verify=verify)
        assert peak["largest_layer"] == 8 * 4 * 4 * 9
        assert peak["extra"] >= 0


def test_what_fusing_costs_beside_a_busy_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(busy, "chain", lambda length: fusing.chain(2))
    threads = torch.get_num_threads()
    with busy.busy():
        assert busy.seconds("chain of 300", threads, repeats=1) > 0
    assert torch.get_num_threads() == threads


def test_every_phase_is_a_function_of_the_library() -> None:
    package = Path(reparam.__file__).parent
    for place in fusing.PHASES.values():
        file, _, function = place.partition(":")
        assert f"def {function}(" in (package / file).read_text(encoding="utf-8"), place


@pytest.mark.parametrize("block", planning.BLOCKS)
def test_every_plan_of_a_block_is_exact(block: str) -> None:
    make, channels, size = planning.BLOCKS[block]
    model: nn.Module = make().eval().double()
    x = torch.rand(2, channels, size, size) if channels else torch.rand(4, size)
    x = x.double()
    with torch.no_grad():
        expected = model(x)
        for cost in ("macs", "memory"):
            fused = reparam.fuse(model, x, cost=cost)
            assert torch.allclose(fused(x), expected, atol=1e-10, rtol=1e-10)


def test_one_block() -> None:
    result = planning.measure("1x1 to four times, then back", 3)
    assert result["became"].keys() == set(planning.COSTS)
    assert result["became"]["macs"]
    for cost in planning.COSTS:
        assert result["as"][cost] in result["milliseconds"]


def test_the_gpu_script_without_a_gpu() -> None:
    result = gpu.measure(Tiny(), 2, "eager", "bfloat16", ", channels_last", device="cpu", rounds=3)
    assert result["engine"] == "eager, bfloat16, channels_last"
    assert {TRAINING, OURS, LIMIT} <= result["milliseconds"].keys()
    if not torch.cuda.is_available():
        from click.testing import CliRunner

        run = CliRunner().invoke(gpu.main, [])
        assert run.exit_code == 1
        assert "no CUDA device" in run.output


@pytest.mark.device
@pytest.mark.parametrize("engine", gpu.ENGINES)
def test_one_network_on_a_gpu(engine: str) -> None:
    result = gpu.measure(Tiny(), 2, engine, "bfloat16", ", channels_last", rounds=3)
    assert {TRAINING, OURS} <= result["milliseconds"].keys(), result["missing"]


def test_results_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    kept = Kept(path, {"hardware": "here"})
    kept.add({"network": "a", "engine": "eager", "batch": 1, "value": 1})
    kept.add({"network": "b", "engine": "eager", "batch": 1, "value": 2})
    again = Kept(path, {"hardware": "there"})
    assert again.has(network="a", engine="eager")
    assert not again.has(network="a", engine="OpenVINO")
    again.add({"network": "a", "engine": "eager", "batch": 1, "value": 3})
    data = json.loads(path.read_text(encoding="utf-8"))
    assert data["hardware"] == "there"
    assert sorted(one["value"] for one in data["results"]) == [2, 3]


def test_the_page_is_that_of_its_data(tmp_path: Path) -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert text == page.render(DATA)
    readme = page.README.read_text(encoding="utf-8")
    assert readme == page.with_results(readme, DATA["inference"])
    assert "{" not in text.replace("${", "")
    plots.draw(DATA, tmp_path)
    for drawn in tmp_path.iterdir():
        kept = page.ROOT / "docs" / "benchmarks" / drawn.name
        assert kept.read_text(encoding="utf-8") == drawn.read_text(encoding="utf-8")


def test_the_data_say_where_they_are_from() -> None:
    for part in page.DATA:
        assert "thread" in DATA[part]["hardware"]
        assert DATA[part]["versions"]["torch"]
