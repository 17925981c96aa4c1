"""Weights of every origin load into the model, which then computes what their network computes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.byobnet import ByoBlockCfg
from torch import Tensor, nn

import reparam
import repvgg
from reparam import ReparamError
from repvgg import RepVGG, RepVGGFeatures
from repvgg.weights.layouts import find_layout
from tests.support.errors import relative_error, run
from tests.support.images import random_images
from tests.support.official import fuse_by_hand
from tests.support.small_repvgg import (
    CLASSES,
    CONFIGS,
    OFFICIAL,
    build,
    build_official,
    randomise,
)

BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}


def fresh(name: str) -> RepVGG:
    torch.manual_seed(99)
    return RepVGG(CONFIGS[name], num_classes=CLASSES).eval()


def logits(network: nn.Module, images: Tensor) -> Any:
    output = run(network, [images])
    return output["main"] if isinstance(output, dict) else output


def assert_same(model: nn.Module, network: nn.Module, size: int = 32) -> None:
    """Both compute the same, in float64 and in float32."""
    images = random_images(2, size, seed=5)
    expected = logits(deepcopy(network).double(), images.double())
    for dtype, bound in BOUND.items():
        actual = logits(deepcopy(model).to(dtype), images.to(dtype))
        assert relative_error(actual, expected) < bound


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_official_weights_load(tmp_path: Path, name: str, suffix: str) -> None:
    network = build_official(name)
    path = tmp_path / f"a{suffix}"
    if suffix == ".pth":
        torch.save(network.state_dict(), path)
    else:
        from safetensors.torch import save_file

        save_file(network.state_dict(), path)
    model = fresh(name)
    assert repvgg.load_checkpoint(model, path) is model
    assert_same(model, network)
    assert_same(reparam.fuse(model.double()), network)


def test_official_weights_give_the_auxiliary_logits_too(tmp_path: Path) -> None:
    network, model = build_official("plus"), fresh("plus")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    repvgg.load_checkpoint(model, tmp_path / "a.pth")
    images = random_images(4, 64, seed=5).double()
    expected = run(network.double().train(), [images])
    actual = run(model.double().train(), [images])
    assert list(actual) == list(expected)
    assert relative_error(actual, expected) < BOUND[torch.float64]


@pytest.mark.parametrize("name", CONFIGS)
def test_official_fused_weights_load_into_what_fusing_makes(tmp_path: Path, name: str) -> None:
    network = build_official(name)
    deployed = OFFICIAL[name].build(deploy=True).eval()
    deployed.load_state_dict(fuse_by_hand(network.state_dict()))
    torch.save(deployed.state_dict(), tmp_path / "a.pth")

    model = fresh(name).train()
    before = deepcopy(model.state_dict())
    fused = repvgg.load_checkpoint(model, tmp_path / "a.pth")
    assert type(fused) is RepVGG
    assert not fused.training
    assert_same(fused, deployed)

    itself = fresh(name)
    itself.load_state_dict(network.state_dict())
    itself.remove_auxiliary_heads()
    assert str(fused) == str(reparam.fuse(itself))
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()

    assert repvgg.load_checkpoint(fused, tmp_path / "a.pth") is fused


SMALLER: dict[str, dict[str, Any]] = {
    "repvgg_a0": {},
    "repvgg_b1g4": {"width_factor": 0.125},
    "repvgg_d2se": {
        "stem_chs": 16,
        "blocks": [
            ByoBlockCfg(type="rep", d=d, c=c) for d, c in ((1, 16), (2, 32), (1, 32), (1, 64))
        ],
    },
}


@pytest.mark.parametrize("name", SMALLER)
def test_timms_weights_load(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=CLASSES, **SMALLER[name]).eval()
    randomise(network, 0)
    network.double()
    stages = [list(stage) for stage in network.stages]
    config = repvgg.RepVGGConfig(
        blocks=tuple(len(blocks) for blocks in stages),
        channels=tuple(info["num_chs"] for info in network.feature_info),
        groups=stages[1][1].groups,
        squeeze_excitation=name == "repvgg_d2se",
    )
    model = RepVGG(config, num_classes=CLASSES).double().eval()
    torch.save(network.state_dict(), tmp_path / "a.pth")
    repvgg.load_checkpoint(model, tmp_path / "a.pth")
    assert_same(model, network, size=64)
    assert_same(reparam.fuse(model), network, size=64)

    by_timm = timm.utils.reparameterize_model(network)
    torch.save(by_timm.state_dict(), tmp_path / "fused.pth")
    fused = repvgg.load_checkpoint(model, tmp_path / "fused.pth")
    assert_same(fused, by_timm, size=64)


def test_averaged_weights_of_a_distributed_run_load(tmp_path: Path) -> None:
    plain, averaged = build_official("plain"), build_official("plain", seed=1)
    content = {
        "state_dict": plain.state_dict(),
        "model_ema": {f"module.{n}": t for n, t in averaged.state_dict().items()},
    }
    torch.save(content, tmp_path / "a.pth")
    assert_same(repvgg.load_checkpoint(fresh("plain"), tmp_path / "a.pth"), plain)
    ema = repvgg.load_checkpoint(fresh("plain"), tmp_path / "a.pth", entry="model_ema")
    assert_same(ema, averaged)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("form", ["trained", "fused"])
def test_a_backbone_takes_its_part_of_a_classifiers_file(
    tmp_path: Path, name: str, form: str
) -> None:
    model = build(name).double()
    layout: repvgg.Layout = "official" if form == "trained" else "official_fused"
    repvgg.save_checkpoint(model, tmp_path / "a.pth", layout=layout)
    backbone = RepVGGFeatures(CONFIGS[name], out_indices=(1, 3)).double().eval()
    loaded = repvgg.load_checkpoint(backbone, tmp_path / "a.pth")

    images = random_images(2, 32, seed=5).double()
    taps: dict[str, Tensor] = {}
    for stage in ("stage1", CONFIGS[name].level_ends[3]):
        hook = lambda module, args, out, stage=stage: taps.__setitem__(stage, out)  # noqa: E731
        model.get_submodule(stage).register_forward_hook(hook)
    run(model, [images])
    assert relative_error(run(loaded, [images]), list(taps.values())) < BOUND[torch.float64]


def test_a_repvggplus_without_heads_takes_a_file_with_them(tmp_path: Path) -> None:
    network, model = build_official("plus"), fresh("plus")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    model.remove_auxiliary_heads()
    assert_same(repvgg.load_checkpoint(model, tmp_path / "a.pth"), network)


@pytest.mark.parametrize("fused", [False, True])
def test_heads_that_the_file_does_not_have_must_go_first(tmp_path: Path, fused: bool) -> None:
    model = fresh("plus")
    state: Any = {n: t for n, t in build_official("plus").state_dict().items() if "_aux." not in n}
    if fused:
        model, state = reparam.fuse(model), fuse_by_hand(state)
    assert refused(model, state, tmp_path).endswith(
        "the file has no auxiliary heads: call the model's remove_auxiliary_heads() before"
    )
    model.remove_auxiliary_heads()
    repvgg.load_checkpoint(model, tmp_path / "a.pth")


def test_a_model_without_a_classifier_takes_a_file_with_one(tmp_path: Path) -> None:
    network, model = build_official("plain"), fresh("plain")
    torch.save(network.state_dict(), tmp_path / "a.pth")
    model.reset_classifier(0)
    repvgg.load_checkpoint(model, tmp_path / "a.pth")
    model.linear = deepcopy(network.get_submodule("linear"))
    assert_same(model, network)


LAYOUTS: list[repvgg.Layout] = [
    "official",
    "official_fused",
    "timm",
    "timm_fused",
    "reparam_fused",
]


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".pth.tar", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_saved_loads(tmp_path: Path, layout: repvgg.Layout, suffix: str) -> None:
    model = build("groups").double()
    before = deepcopy(model.state_dict())
    path = tmp_path / "new" / f"a{suffix}"
    repvgg.save_checkpoint(model, path, layout=layout)
    assert find_layout(repvgg.read_state_dict(path)) == layout
    assert_same(repvgg.load_checkpoint(fresh("groups").double(), path), model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", CONFIGS)
def test_by_default_the_authors_names_are_saved(tmp_path: Path, name: str) -> None:
    model = build(name)
    repvgg.save_checkpoint(model, tmp_path / "trained.pth")
    OFFICIAL[name].build(deploy=False).load_state_dict(torch.load(tmp_path / "trained.pth"))
    repvgg.save_checkpoint(reparam.fuse(model), tmp_path / "fused.pth")
    OFFICIAL[name].build(deploy=True).load_state_dict(torch.load(tmp_path / "fused.pth"))


def test_batch_norms_of_another_eps_are_fused_as_they_are(tmp_path: Path) -> None:
    models = [build("plain").double(), fresh("plain").double()]
    for module in (module for model in models for module in model.modules()):
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    repvgg.save_checkpoint(models[0], tmp_path / "a.pth", layout="timm_fused")
    assert_same(repvgg.load_checkpoint(models[1], tmp_path / "a.pth"), models[0])


def test_a_model_in_another_memory_format_is_saved(tmp_path: Path) -> None:
    model = build("plain")
    model.to(memory_format=torch.channels_last)
    repvgg.save_checkpoint(model, tmp_path / "a.safetensors")
    assert_same(repvgg.load_checkpoint(fresh("plain"), tmp_path / "a.safetensors"), model)


def test_half_precision_is_kept_in_the_file_and_the_model_keeps_its_own(tmp_path: Path) -> None:
    model = build("plain").half()
    repvgg.save_checkpoint(model, tmp_path / "a.pth")
    assert torch.load(tmp_path / "a.pth")["linear.weight"].dtype == torch.float16
    loaded = repvgg.load_checkpoint(fresh("plain"), tmp_path / "a.pth")
    assert loaded.linear.weight.dtype == torch.float32
    assert_same(loaded, model.float())


def test_a_fused_model_is_not_saved_as_trained(tmp_path: Path) -> None:
    with pytest.raises(ReparamError, match="cannot become timm"):
        repvgg.save_checkpoint(reparam.fuse(build("plain")), tmp_path / "a.pth", layout="timm")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ReparamError, match=r"suffix of 'a\.onnx'; use \.safetensors or \.pth"):
        repvgg.save_checkpoint(build("plain"), tmp_path / "a.onnx")


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_leaves_the_file_that_was_there(tmp_path: Path, suffix: str) -> None:
    resource = pytest.importorskip("resource")  # POSIX only
    signal = pytest.importorskip("signal")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ReparamError, match=f"cannot write {path}: "):
            repvgg.save_checkpoint(build("plain"), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def refused(model: RepVGG, state: dict[str, Tensor], tmp_path: Path) -> str:
    """The error of loading weights that do not fit, which leave the model as it was."""
    torch.save(state, tmp_path / "a.pth")
    before = deepcopy(model.state_dict())
    with pytest.raises(ReparamError) as caught:
        repvgg.load_checkpoint(model, tmp_path / "a.pth")
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return str(caught.value).removeprefix(f"{tmp_path / 'a.pth'} does not fit: ")


@pytest.mark.parametrize("fused", [False, True])
def test_weights_of_another_number_of_classes_are_refused(tmp_path: Path, fused: bool) -> None:
    state: Any = build("plain").state_dict()
    if fused:
        state = fuse_by_hand(state)
    model = RepVGG(CONFIGS["plain"], num_classes=3)
    assert refused(model, state, tmp_path) == (
        "2 of another shape: linear.weight is (7, 64) instead of (3, 64), "
        "linear.bias is (7,) instead of (3,); the file has 7 classes: create the model with "
        "num_classes=7, and call reset_classifier after loading to get others"
    )


def test_weights_that_do_not_fit_are_refused_by_their_names(tmp_path: Path) -> None:
    state = dict(build("plain").state_dict())
    for value in ("weight", "bias", "running_mean", "running_var"):
        del state[f"stage2.1.rbr_identity.{value}"]
    state["stage4.0.rbr_dense.conv.weight"] = torch.zeros(64, 32, 5, 5)
    state["stage4.7.rbr_dense.conv.weight"] = torch.zeros(64, 32, 3, 3)
    assert refused(fresh("plain"), state, tmp_path) == (
        "4 missing: stage2.1.rbr_identity.weight, stage2.1.rbr_identity.bias, "
        "stage2.1.rbr_identity.running_mean, …; 1 unexpected: stage4.7.rbr_dense.conv.weight; "
        "1 of another shape: stage4.0.rbr_dense.conv.weight is (64, 32, 5, 5) instead of "
        "(64, 32, 3, 3); create the variant that the file holds, with its num_classes and in_chans"
    )


@pytest.mark.parametrize("name", ["groups", "squeeze", "plus"])
def test_weights_of_another_variant_are_refused(tmp_path: Path, name: str) -> None:
    state = dict(build_official(name).state_dict())
    message = refused(fresh("plain"), state, tmp_path)
    assert message.endswith(
        "create the variant that the file holds, with its num_classes and in_chans"
    )


def test_a_classifier_needs_the_weights_of_its_head(tmp_path: Path) -> None:
    state = {n: t for n, t in build("plain").state_dict().items() if not n.startswith("linear")}
    assert refused(fresh("plain"), state, tmp_path).startswith("2 missing: linear.weight, linear.")


def test_a_head_that_there_is_not_is_unexpected(tmp_path: Path) -> None:
    state = dict(build("plain").state_dict(), **{"head.weight": torch.ones(2)})
    assert refused(fresh("plain"), state, tmp_path).startswith("1 unexpected: head.weight; ")


def test_trained_weights_do_not_go_into_a_fused_model(tmp_path: Path) -> None:
    fused: Any = reparam.fuse(fresh("plain"))
    message = refused(fused, dict(build("plain").state_dict()), tmp_path)
    assert message.endswith("load them into the model before it is fused")


def test_weights_of_something_else_are_refused(tmp_path: Path) -> None:
    message = refused(fresh("plain"), nn.Linear(2, 3).state_dict(), tmp_path)
    assert message.startswith("of the 2 names (weight, bias) the layout cannot be told")
