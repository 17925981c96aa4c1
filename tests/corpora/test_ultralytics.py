"""Fuses networks of `ultralytics`.

`pytest -m corpus` takes a selection, `pytest -m "corpus or heavy"` all of them.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.corpora.checking import Fusion, NetworkTests, each
from tests.corpora.ultralytics_networks import (
    ULTRALYTICS_NETWORKS,
    UltralyticsNetwork,
    import_ultralytics,
    use_suppression_in_python,
)
from tests.support.errors import relative_error


@pytest.fixture(scope="module", params=each(ULTRALYTICS_NETWORKS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    return Fusion(request.param)


class TestUltralytics(NetworkTests):
    pass


def predicted(network: UltralyticsNetwork, model: nn.Module) -> Any:
    """What the library's own loop makes of a picture with a model inside its wrapper."""
    wrapper = import_ultralytics().YOLO(f"{network.name}.yaml", verbose=False)
    wrapper.model = model
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    options = {"imgsz": 64, "conf": 1e-9, "max_det": 20, "device": "cpu"}
    (result,) = wrapper.predict(picture, verbose=False, save=False, **options)
    return result


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["yolov8n", "yolov10n", "yolo11n-seg", "yolo11n-cls"])
def test_predictions_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = next(network for network in ULTRALYTICS_NETWORKS if network.name == name)
    use_suppression_in_python(monkeypatch)
    monkeypatch.chdir(tmp_path)
    fusion = Fusion(network, dtype=torch.float32)
    ours, own = predicted(network, fusion.fused), predicted(network, fusion.model)
    if own.probs is not None:
        assert relative_error(ours.probs.data, own.probs.data) <= 1e-5
        return
    assert len(own.boxes) == 20
    # the order of boxes that are equally sure is a matter of rounding
    assert relative_error(ours.boxes.conf, own.boxes.conf) <= 1e-4
    for box in own.boxes.xyxy:
        assert (ours.boxes.xyxy - box).abs().amax(1).min() <= 1e-2
