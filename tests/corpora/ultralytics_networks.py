"""The networks that `ultralytics` describes, at their smallest scale."""

import os
import tempfile
from copy import deepcopy
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from tests.corpora.network import Network, images

_SETTINGS = tempfile.TemporaryDirectory(prefix="ultralytics-")


def import_ultralytics() -> ModuleType:
    """Imports the library so that it writes to a temporary folder and asks no network."""
    os.environ.setdefault("YOLO_CONFIG_DIR", _SETTINGS.name)
    os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
    import ultralytics

    return ultralytics


def use_suppression_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replaces an operator of torchvision, which is compiled, and so not everywhere there."""
    import_ultralytics()
    import torchvision
    from ultralytics.utils.nms import TorchNMS

    monkeypatch.setattr(torchvision.ops, "nms", TorchNMS.nms)


@dataclass(frozen=True)
class UltralyticsNetwork(Network):
    """A network by its description, which the library holds."""

    name: str
    """The file of the description, without its ending."""
    size: int = 64
    selected: bool = False
    library = "ultralytics"
    calibrating = 4

    def construct(self) -> nn.Module:
        import_ultralytics()
        from ultralytics.nn import tasks

        description = f"{self.name}.yaml"
        kinds = {
            "classify": tasks.ClassificationModel,
            "segment": tasks.SegmentationModel,
            "pose": tasks.PoseModel,
            "obb": tasks.OBBModel,
            "detect": tasks.DetectionModel,
        }
        if "rtdetr" in self.name:
            kind = tasks.RTDETRDetectionModel
        else:
            kind = kinds[tasks.guess_model_task(tasks.yaml_model_load(description))]
        model: nn.Module = kind(description, verbose=False)
        return model

    def inputs(self, count: int, seed: int) -> tuple[Any, ...]:
        return images(self.size)(count, seed)

    def by_hand(self, model: nn.Module) -> nn.Module:
        copy: Any = deepcopy(model)
        head = copy.model[-1]
        if getattr(head, "one2one_cv2", None) is not None:
            # it would drop one of two branches, whose values are a part of the output
            head.fuse = lambda: None
        fused: nn.Module = copy.fuse(verbose=False)
        return fused


ULTRALYTICS_NETWORKS = [
    UltralyticsNetwork("yolov3-tiny"),
    UltralyticsNetwork("yolov3"),
    UltralyticsNetwork("yolov3-spp"),
    UltralyticsNetwork("yolov5n", selected=True),
    UltralyticsNetwork("yolov5n-p6"),
    UltralyticsNetwork("yolov6n", selected=True),
    UltralyticsNetwork("yolov8n", selected=True),
    UltralyticsNetwork("yolov8n-cls"),
    UltralyticsNetwork("yolov8n-seg"),
    UltralyticsNetwork("yolov8n-pose"),
    UltralyticsNetwork("yolov8n-obb"),
    UltralyticsNetwork("yolov8n-ghost"),
    UltralyticsNetwork("yolov8n-p2"),
    UltralyticsNetwork("yolov8n-rtdetr"),
    UltralyticsNetwork("yolov9t", selected=True),
    UltralyticsNetwork("yolov9c-seg"),
    UltralyticsNetwork("yolov10n", selected=True),
    UltralyticsNetwork("yolo11n", selected=True),
    UltralyticsNetwork("yolo11n-cls", selected=True),
    UltralyticsNetwork("yolo11n-seg", selected=True),
    UltralyticsNetwork("yolo11n-pose", selected=True),
    UltralyticsNetwork("yolo11n-obb", selected=True),
    UltralyticsNetwork("yolo12n", selected=True),
    UltralyticsNetwork("yolo12n-seg"),
    UltralyticsNetwork("yolo26n"),
    UltralyticsNetwork("rtdetr-resnet50"),
    UltralyticsNetwork("rtdetr-l"),
]
"""Versions 3 to 12 and 26, and every task."""
