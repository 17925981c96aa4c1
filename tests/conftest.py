"""What every test process needs: one thread, repeatable examples, an importable torchvision."""

import os
import sys

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite(
    "tests.cases",
    "tests.corpora",
    "tests.algebra.laws",
    "tests.random_networks",
    "tests.refusals",
    "tests.support",
)

os.environ["REPARAM_INVARIANTS"] = "1"  # every graph is checked against its laws

if "PYTEST_XDIST_WORKER" in os.environ:
    torch.set_num_threads(1)  # the workers share the cores already

# `pytest --hypothesis-profile thorough` searches longer, and differently each time.
_slow_is_fine = [HealthCheck.too_slow, HealthCheck.data_too_large]
settings.register_profile(
    "repeatable",
    max_examples=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=_slow_is_fine,
)
settings.register_profile(
    "thorough",
    max_examples=2000,
    deadline=None,
    suppress_health_check=_slow_is_fine,
    print_blob=True,
)
settings.load_profile("repeatable")


def _import_torchvision() -> None:
    """Imports torchvision, also where its compiled operators do not load.

    A torchvision built against another build of torch (say CUDA beside CPU) fails to import because
    it describes operators that were never declared. No test runs these operators, but timm imports
    torchvision: so declare them, which leaves them without an implementation, and import again.
    """
    try:
        import torchvision
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        _declared.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.define(
            "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height,"
            " int pooled_width, int sampling_ratio, bool aligned) -> Tensor"
        )
        import torchvision  # noqa: F401


_declared = torch.library.Library("torchvision", "FRAGMENT")  # lives as long as the process
_import_torchvision()
