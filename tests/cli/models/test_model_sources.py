"""What MODEL may be, and what it may not do."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from reparam.cli.models.model_sources import build_model
from reparam.cli.words import InputShape, read_argument, source_of
from reparam.errors import ReparamError
from tests.corpora.ultralytics_networks import import_ultralytics

NETWORKS = "tests.cli.networks"
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 8, 8], "depths": [1, 1, 1, 1]}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(name: str, **arguments: object) -> str:
    with pytest.raises(ReparamError) as caught:
        build_model(name, arguments)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("timm/repvgg_a0", True),
        ("hf/some/folder", True),
        ("nets:make", True),
        ("package.nets:Holder.make", True),
        ("a folder/with spaces.pt2", True),
        ("timm/", False),
        ("other/repvgg_a0", False),
        ("nets.py:make", True),  # a module py in a package nets, as far as one can see
        ("nets/make.py:make", False),
        ("nets:make()", False),
        ("", False),
    ],
)
def test_forms(name: str, known: bool) -> None:
    assert (source_of(name) is not None) == known


@pytest.mark.parametrize(
    ("word", "value"),
    [
        ("a=3", 3),
        ("a=[1, 2]", [1, 2]),
        ("a=relu", "relu"),
        ("a=", ""),
        ("a=b=c", "b=c"),
        ("a=__import__('os')", "__import__('os')"),
        ("a='3'", "3"),
        ("a=None", None),
    ],
)
def test_arguments_are_literals_or_strings(word: str, value: object) -> None:
    assert read_argument(word) == ("a", value)


def test_a_network_of_timm_knows_its_inputs() -> None:
    assert build_model("timm/test_byobnet", {}).inputs == (InputShape((1, 3, 160, 160)),)
    built = build_model("timm/test_byobnet", {"in_chans": 1, "num_classes": 7})
    assert built.inputs == (InputShape((1, 1, 160, 160)),)
    assert isinstance(built.model, nn.Module)


def test_a_network_of_torchvision_knows_its_inputs() -> None:
    built = build_model("torchvision/shufflenet_v2_x0_5", {"num_classes": 3})
    assert built.inputs == (InputShape((1, 3, 224, 224)),)


def test_a_segmenter_of_torchvision_downloads_no_backbone() -> None:
    assert isinstance(build_model("torchvision/lraspp_mobilenet_v3_large", {}).model, nn.Module)


@pytest.mark.corpus
def test_a_type_of_transformers_has_its_default_configuration() -> None:
    built = build_model("hf/resnet", RESNET)
    assert type(built.model).__name__ == "ResNetModel"
    assert built.inputs is None


def saved_resnet(folder: Path) -> nn.Module:
    import transformers

    model = transformers.ResNetForImageClassification(transformers.ResNetConfig(**RESNET))
    model.save_pretrained(folder)
    return model


@pytest.mark.corpus
def test_a_folder_has_its_weights(tmp_path: Path) -> None:
    expected = saved_resnet(tmp_path / "mine").state_dict()
    built = build_model("hf/mine", {})
    assert type(built.model).__name__ == "ResNetForImageClassification"
    assert isinstance(built.model, nn.Module)
    found = built.model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.corpus
def test_a_folder_without_weights_gets_random_ones(tmp_path: Path) -> None:
    saved_resnet(tmp_path / "mine")
    (tmp_path / "mine" / "model.safetensors").unlink()
    assert type(build_model("hf/mine", {}).model).__name__ == "ResNetForImageClassification"
    (tmp_path / "mine" / "pytorch_model.bin").write_bytes(b"no matter")
    assert "give it as --weights" in refused("hf/mine")


@pytest.mark.corpus
def test_weights_in_a_folder_must_fit(tmp_path: Path) -> None:
    saved_resnet(tmp_path / "mine")
    path = tmp_path / "mine" / "model.safetensors"
    state = safetensors.torch.load_file(path)
    state.pop("classifier.1.weight")
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    assert "missing keys: classifier.1.weight" in refused("hf/mine")


@pytest.mark.corpus
def test_code_in_a_folder_is_never_run(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.json").write_text(
        '{"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.M"}}'
    )
    (folder / "code.py").write_text("open('executed', 'w')\n")
    assert "config.json cannot be used" in refused("hf/mine")
    (folder / "config.json").write_text(
        '{"model_type": "resnet", "architectures": ["M"], "auto_map": {"AutoModel": "code.M"}}'
    )
    assert "no code from the folder is run" in refused("hf/mine")
    assert not (tmp_path / "executed").exists()


@pytest.mark.corpus
def test_a_description_of_ultralytics() -> None:
    import_ultralytics()
    built = build_model("ultralytics/yolov8n-cls.yaml", {"nc": 5})
    assert type(built.model).__name__ == "ClassificationModel"


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("activation: open('executed', 'w')\n{}", "which is no activation"),
        ("activation: nn.ReLU(inplace=open)\n{}", None),
        ("{}  - [-1, 1, torch_safe_load, [evil.pt]]", "which is no layer"),
        ("{}  - [-1, 1, nn.functional.relu, []]", "which is no layer"),
        ("a: 1\n", "describes no network"),
        ("- 1\n", "describes no network"),
    ],
)
def test_a_description_can_only_name_layers(
    tmp_path: Path, lines: str, message: str | None
) -> None:
    import_ultralytics()
    network = (
        "nc: 2\nbackbone:\n  - [-1, 1, Conv, [8, 3, 2]]\nhead:\n"
        "  - [-1, 1, Conv, [8, 1]]\n  - [-1, 1, Classify, [nc]]\n"
    )
    (tmp_path / "mine.yaml").write_text(lines.replace("{}", network, 1))
    if message is None:  # the value of an argument may only be a name, which calls nothing
        build_model("ultralytics/mine.yaml", {})
    else:
        assert message in refused("ultralytics/mine.yaml")
    assert not (tmp_path / "executed").exists()


def test_factories() -> None:
    assert isinstance(build_model(f"{NETWORKS}:small", {"width": 4}).model, nn.Sequential)
    assert build_model(f"{NETWORKS}:instance", {}).model is not None
    assert isinstance(build_model(f"{NETWORKS}:Tied", {}).model, nn.Module)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/repvgg_a00", "there is no model timm/repvgg_a00; did you mean timm/repvgg_a0"),
        ("timm/hf-hub:someone/net", "there is no model"),
        ("timm/local-dir:there", "there is no model"),
        ("torchvision/resnet19", "did you mean torchvision/resnet18"),
        ("ultralytics/yolov8n.pt", "give a .yaml file"),
        ("ultralytics/https://a.net/b.yaml", "nothing is downloaded"),
        (f"{NETWORKS}:nothing", f"{NETWORKS} has no nothing"),
        (f"{NETWORKS}:number", "is of type int, no function and no model"),
        (f"{NETWORKS}:no_module", "returned dict, not a torch.nn.Module or an ExportedProgram"),
        (f"{NETWORKS}:ending", "ended the program"),
        ("nowhere:f", "there is no module nowhere"),
        ("nowhere.pt2", "there is no file nowhere.pt2"),
    ],
)
def test_what_is_no_model_is_said(name: str, message: str) -> None:
    assert message in refused(name)


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf/resnett", "nor such a folder, and nothing is downloaded; did you mean hf/resnet"),
        ("hf/someone/net", "nothing is downloaded"),
        ("ultralytics/yolov99.yaml", "yolov99.yaml is not in ultralytics"),
    ],
)
def test_what_is_no_model_of_larger_libraries_is_said(name: str, message: str) -> None:
    import_ultralytics()
    assert message in refused(name)


@pytest.mark.corpus
def test_a_folder_without_a_configuration_is_said(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert "there is no config.json in mine" in refused("hf/mine")


@pytest.mark.parametrize(
    ("name", "argument"),
    [
        ("timm/repvgg_a0", "pretrained"),
        ("timm/repvgg_a0", "checkpoint_path"),
        ("torchvision/resnet18", "weights"),
    ],
)
def test_nothing_is_downloaded_by_an_argument(name: str, argument: str) -> None:
    assert "use --weights" in refused(name, **{argument: True})


def test_an_instance_takes_no_arguments() -> None:
    assert "takes no --arg" in refused(f"{NETWORKS}:instance", width=3)


@pytest.mark.parametrize("library", ["timm", "torchvision.models", "transformers", "ultralytics"])
def test_a_missing_library_is_named(library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    package = library.partition(".")[0]
    name = {"transformers": "hf/resnet", "ultralytics": "ultralytics/yolov8n.yaml"}
    monkeypatch.setitem(sys.modules, library, None)
    assert f"pip install {package}" in refused(name.get(package, f"{package}/resnet18"))
