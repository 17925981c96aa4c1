"""The rooms other than the command line take no package that only some people install."""

import subprocess
import sys

import pytest

OPTIONAL = (
    "click",
    "huggingface_hub",
    "matplotlib",
    "onnx",
    "PIL",
    "safetensors",
    "sklearn",
    "tensorboard",
    "timm",
    "torchvision",
)


@pytest.mark.parametrize("room", ["models", "weights", "data", "training"])
def test_the_face_of_a_room_needs_no_optional_package(room: str) -> None:
    program = f"""
import sys
for name in {OPTIONAL}:
    sys.modules[name] = None
import repvgg.{room}
print(len(repvgg.{room}.__all__))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert int(result.stdout) > 5
