"""`reparam verify`, `reparam bench` and `reparam rules`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import reparam
from reparam.rules import spelled

NETWORKS = "tests.cli.networks"
SMALL = f"{NETWORKS}:small"
SHAPE = "--input 2,3,8,8"


def test_equal(run) -> None:
    result = run(f"verify {SMALL} {SHAPE}")
    assert result.out.startswith(f"{SMALL}: equal within 1.0e-04; fused in 2 places\n")
    assert "output 0: original " in result.out


def test_equal_in_float64(run) -> None:
    values = run("verify timm/test_byobnet --input 1,3,64,64 --float64 --json").values
    keys = "reparam command model places equal outputs"
    assert " ".join(values) == keys
    assert (values["places"], values["equal"]) == (14, True)
    (output,) = values["outputs"]
    assert output["fused"] < 1e-12
    assert output["bound"] == 1e-9
    assert set(output) == {"original", "fused", "rounding", "bound"}


def test_the_inputs_of_a_library_are_known(run) -> None:
    assert run("verify torchvision/shufflenet_v2_x0_5 --json").values["equal"]


def forgetting_the_mean(model: nn.Module) -> nn.Module:
    """A fusion that is right for a fresh network only."""
    fused = reparam.plan(model).apply()
    for parameter in fused.parameters():
        if parameter.dim() == 1:
            parameter.data.zero_()
    return fused


def test_different(run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reparam, "fuse", forgetting_the_mean)
    assert "DIFFERENT" in run(f"verify {SMALL} {SHAPE}", code=3).out
    assert not run(f"verify {SMALL} {SHAPE} --json", code=3).values["equal"]


def test_a_bound_of_ones_own(run) -> None:
    run(f"verify {SMALL} {SHAPE} --bound 0", code=3)
    run(f"verify {SMALL} {SHAPE} --bound 1e-5")


def test_batch_norms_are_randomised_unless_told_otherwise(
    run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[nn.Module] = []
    fuse = reparam.fuse
    monkeypatch.setattr(reparam, "fuse", lambda model: seen.append(model) or fuse(model))
    run(f"verify {SMALL} {SHAPE}")
    run(f"verify {SMALL} {SHAPE} --no-randomise-batch-norm")
    run(f"bench {SMALL} {SHAPE} --rounds 2")
    run(f"verify {SMALL} {SHAPE} --seed 1")
    variances = [model[1].running_var for model in seen]
    assert variances[0].unique().numel() > 1
    assert bool((variances[1] == 1).all())
    assert bool((variances[2] == 1).all())
    assert not torch.equal(variances[0], variances[3])


def test_nothing_fused(run) -> None:
    network = f"{NETWORKS}:nothing_to_fuse {SHAPE}"
    assert "fused in 0 places" in run(f"verify {network}").out
    run(f"verify {network} --require-fused", code=3)


def test_the_random_state_is_left_alone(run) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    run(f"verify {SMALL} {SHAPE}")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.corpus
def test_a_type_of_transformers_needs_inputs(run) -> None:
    small = "--arg embedding_size=8 --arg hidden_sizes=[8,8,8,8] --arg depths=[1,1,1,1]"
    assert "nothing says which inputs hf/resnet takes" in run(f"verify hf/resnet {small}", 1).err
    assert run(f"verify hf/resnet {small} --input 1,3,64,64 --json").values["equal"]


def test_latencies_come_with_the_ratio_first(run) -> None:
    threads = torch.get_num_threads()
    result = run(f"bench {SMALL} {SHAPE} --rounds 3 --threads 2")
    assert result.out.startswith(f"{SMALL}, 2×3×8×8: fused ")
    assert "medians (quartiles) of 3 alternating rounds" in result.out
    assert ", 2 threads, " in result.out
    assert torch.get_num_threads() == threads


def test_keys_of_latencies(run) -> None:
    values = run(f"bench {SMALL} {SHAPE} --rounds 3 --json").values
    keys = "reparam command model speedup original fused rounds inputs machine"
    assert " ".join(values) == keys
    assert values["speedup"] == values["original"]["median"] / values["fused"]["median"]
    assert set(values["fused"]) == {"median", "low", "high"}
    assert values["inputs"] == [[2, 3, 8, 8]]


def test_all_rules_are_listed(run) -> None:
    values = run("rules --json").values
    listed = {row["target"]: row for row in values["rules"]}
    targets = [spelled(target) for target in reparam.rules.registered_rules()]
    assert [row["target"] for row in values["rules"]] == targets
    assert listed["nn.Conv2d"]["built_in"]
    assert listed["nn.Conv2d"]["does"]
    assert "nn.Conv2d" in run("rules").out


def test_rules_of_others_are_told_apart(run) -> None:
    class Mine(nn.Module):
        pass

    before = reparam.rules.registered_rules()
    try:

        @reparam.register_rule(Mine)
        def mine(module: nn.Module, x: object) -> object:
            """Does what it does."""
            return x

        row = run("rules --json").values["rules"][-1]
    finally:
        reparam.rules.registry.forget_rules_but(before)
    assert row["target"].endswith(".Mine")
    assert (row["does"], row["built_in"]) == ("Does what it does.", False)
