"""Models as folders: what is saved is built again, and what is not there is said."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch

import reparam
import repvgg
from reparam import ReparamError
from repvgg import RepVGG
from tests.support.errors import relative_error, run
from tests.support.images import random_images
from tests.support.small_repvgg import CLASSES, CONFIGS, build, randomise


def assert_same(first: torch.nn.Module, second: torch.nn.Module) -> None:
    images = [random_images(2, 32, seed=5)]
    assert torch.equal(run(first, images), run(second, images))


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_built_again(tmp_path: Path, name: str) -> None:
    model = build(name)
    repvgg.save_pretrained(model, tmp_path / "new" / "folder")
    again = repvgg.from_pretrained(tmp_path / "new" / "folder")
    assert (again.config, again.num_classes, again.in_chans) == (model.config, CLASSES, 3)
    assert not again.training
    assert_same(again, model)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_fused_model_is_built_again(tmp_path: Path, name: str) -> None:
    model = build(name)
    model.remove_auxiliary_heads()
    fused = reparam.fuse(model)
    repvgg.save_pretrained(fused, tmp_path)
    again = repvgg.from_pretrained(tmp_path)
    assert str(again) == str(fused)
    assert_same(again, fused)


def test_a_fused_model_loses_the_heads_that_only_training_uses(tmp_path: Path) -> None:
    fused = reparam.fuse(build("plus"))
    repvgg.save_pretrained(fused, tmp_path)
    assert_same(repvgg.from_pretrained(tmp_path), fused)


def test_a_repvggplus_whose_heads_were_removed_is_built_again(tmp_path: Path) -> None:
    model = build("plus")
    model.remove_auxiliary_heads()
    repvgg.save_pretrained(model, tmp_path)
    again = repvgg.from_pretrained(tmp_path)
    assert again.state_dict().keys() == model.state_dict().keys()
    assert_same(again, model)


def test_a_model_without_a_classifier_is_built_again(tmp_path: Path) -> None:
    model = build("plain")
    model.reset_classifier(0)
    repvgg.save_pretrained(model, tmp_path)
    assert_same(repvgg.from_pretrained(tmp_path), model)


def test_a_variant_is_saved_by_its_name(tmp_path: Path) -> None:
    model = repvgg.create_model("repvgg_a0", num_classes=3, in_chans=1)
    repvgg.save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["architecture"], config["num_classes"], config["in_chans"]) == (
        "repvgg_a0",
        3,
        1,
    )
    del config["config"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert repvgg.from_pretrained(tmp_path).config == model.config


def test_timms_folder_is_read(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = timm.create_model("repvgg_a0", num_classes=5).eval()
    randomise(network, 0)
    timm.models.save_for_hf(network, str(tmp_path), safe_serialization=True)
    model = repvgg.from_pretrained(tmp_path)
    images = random_images(2, 64, seed=5)
    assert relative_error(run(model, [images]), run(network, [images])) < 1e-5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, r"cannot read .*config\.json: No such file"),
        ("{", "does not describe a RepVGG: JSONDecodeError"),
        ("[]", "does not describe a RepVGG: TypeError"),
        ('{"architecture": "repvgg_a0"}', "does not describe a RepVGG: KeyError"),
        ('{"num_classes": 3}', "does not describe a RepVGG: KeyError"),
        ('{"num_classes": 3, "architecture": []}', "does not describe a RepVGG: TypeError"),
        ('{"num_classes": 3, "config": {"depth": 3}}', "does not describe a RepVGG: TypeError"),
        ('{"num_classes": 3, "architecture": "resnet18"}', "unknown model 'resnet18'"),
        ('{"num_classes": "3", "architecture": "repvgg_a0"}', "must be a positive integer"),
        ('{"num_classes": null, "architecture": "repvgg_a0"}', "must be a positive integer"),
        ('{"num_classes": 3, "architecture": "repvgg_a0"}', r"no file .*model\.safetensors"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    tmp_path: Path, config: str | None, message: str
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    with pytest.raises(ReparamError, match=message):
        repvgg.from_pretrained(tmp_path)


def test_options_of_a_download_are_refused_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ReparamError, match="nothing is downloaded: leave "):
        repvgg.from_pretrained(tmp_path, revision="main")


def test_a_repository_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("plain")
    repvgg.save_pretrained(model, tmp_path / "snapshot")
    asked: list[Any] = []

    def download(repository: str, **options: Any) -> str:
        asked.append((repository, options))
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert_same(repvgg.from_pretrained("someone/repvgg", revision="v1"), model)
    patterns = ["config.json", "model.safetensors"]
    assert asked == [("someone/repvgg", {"allow_patterns": patterns, "revision": "v1"})]


def test_a_repository_that_is_out_of_reach_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReparamError, match="someone/repvgg is no folder, and could not be downl"):
        repvgg.from_pretrained("someone/repvgg", local_files_only=True, cache_dir=tmp_path)


@pytest.mark.parametrize("name", ["no/such/folder", "no such name"])
def test_what_cannot_be_a_repository_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReparamError, match=f"{name} is no folder, and could not be downloaded"):
        repvgg.from_pretrained(name)


def test_without_huggingface_hub_only_folders_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ReparamError, match="pip install huggingface_hub"):
        repvgg.from_pretrained("someone/repvgg")
    repvgg.save_pretrained(build("plain"), tmp_path)
    assert type(repvgg.from_pretrained(tmp_path)) is RepVGG


@pytest.mark.parametrize("existing", ["config.json", "model.safetensors"])
def test_both_files_are_written_or_none(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).mkdir()
    with pytest.raises(ReparamError, match="cannot write"):
        repvgg.save_pretrained(build("plain"), tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] in ([], ["config.json"])
