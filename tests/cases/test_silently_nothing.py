"""Networks that other libraries leave as they are, without a word.

| case | test |
| --- | --- |
| batch norm through a subclass or as `F.batch_norm` | `test_batch_norm_in_other_clothes` |
| `bn(input=conv(x))` | `test_keyword_arguments` |
| the root is itself a block | `test_the_root_is_a_block` |
| a backbone inside someone else's network | `test_a_backbone_inside_...` |
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.cases.checking import assert_exact
from tests.refusals.checking import Network, images, ready
from tests.support.blocks import ThreeBranches
from tests.support.counting import count_operators

C = 4


class Plain(nn.BatchNorm2d):
    """A subclass that changes nothing."""


class Activated(nn.BatchNorm2d):
    """A batch norm that is written out, with an activation."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
        )
        return y.relu()


class Inherited(nn.BatchNorm2d):
    """A subclass with a factor after the parent's forward."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 0.5


class Frozen(nn.Module):
    """Buffers instead of parameters, as detectors freeze them."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(C) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        bias = self.bias - self.running_mean * scale
        return x * scale.reshape(1, -1, 1, 1) + bias.reshape(1, -1, 1, 1)


class Written(nn.Module):
    """A wrapper that holds a batch norm and calls the function."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(C)

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        return torch.batch_norm(
            x, norm.weight, norm.bias, norm.running_mean, norm.running_var, norm.training, 0.1,
            norm.eps, torch.backends.cudnn.enabled,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("norm", "total"),
    [(Plain(C), 1), (Activated(C), 2), (Frozen(), 1), (Written(), 1), (nn.SyncBatchNorm(C), 1),
     (nn.BatchNorm2d(C, affine=False), 1), (nn.LazyBatchNorm2d(), 1)],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else None,
)  # fmt: skip
def test_batch_norm_in_other_clothes(norm: nn.Module, total: int) -> None:
    """torch.fx's fuser folds none of them (measured: timm's repvgg, mobileone, fastvit)."""
    model = nn.Sequential(nn.Conv2d(C, C, 3), norm).double().eval()
    model(images())  # a lazy module must have run
    assert_exact(ready(model), images(), total=total)


def test_a_batch_norm_that_calls_its_parent() -> None:
    """`super().forward(x)` asks for the rank of its input: exact, whether fused or reported."""
    fused = assert_exact(ready(nn.Sequential(nn.Conv2d(C, C, 3), Inherited(C))), images())
    report = fused.reparam_report
    assert report.fused or [row.place for row in report.refused] == ["1"]


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.norm(input=m.conv(x)),
        lambda m, x: m.norm(input=m.conv(input=x)),
        lambda m, x: F.relu(input=m.norm(m.conv(input=x)), inplace=False),
        lambda m, x: m.norm(**{"input": m.conv(*[x])}),
    ],
    ids=["norm", "both", "function", "unpacked"],
)
def test_keyword_arguments(forward: Callable[..., Any]) -> None:
    """torch.fx's fuser changes nothing where a batch norm is called by keyword (measured)."""
    model = ready(Network(forward, conv=nn.Conv2d(C, C, 3), norm=nn.BatchNorm2d(C)))
    fused = assert_exact(model, images())
    assert count_operators(fused, (images(),)).batch_norms == 0


class Backbone(nn.Module):
    """Blocks, and features from several depths."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([ThreeBranches(C), ThreeBranches(C), ThreeBranches(C)])

    def forward(self, x: Tensor) -> list[Tensor]:
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def test_the_root_is_a_block() -> None:
    """timm's `reparameterize_model` skips the root (measured)."""
    assert_exact(ready(ThreeBranches(C)), images(), total=2)


@pytest.mark.parametrize("wrap", [nn.Sequential, lambda b: nn.ModuleDict({"b": b})["b"]])
def test_the_root_holds_nothing_but_a_block(wrap: Callable[[nn.Module], nn.Module]) -> None:
    """timm's `reparameterize_model`, one level up."""
    assert_exact(ready(wrap(ThreeBranches(C))), images(), total=2)


class Detector(nn.Module):
    """Somebody's network: it checks its input, keeps what it saw, and decides on data."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.lateral = nn.ModuleList([nn.Conv2d(C, C, 1) for _ in range(3)])
        self.head = nn.ModuleDict(
            {"boxes": nn.Conv2d(C, 4, 1), "scores": nn.Sequential(nn.Conv2d(C, 2, 1), nn.Sigmoid())}
        )

    def forward(self, x: Tensor, threshold: float = 0.5, **options: Any) -> dict[str, Any]:
        if x.dim() != 4:
            raise ValueError("no images")
        size = torch.tensor(x.shape[-2:])
        features = [self.lateral[i](f) for i, f in enumerate(self.backbone(x))]
        boxes = torch.cat([self.head["boxes"](f).flatten(2) for f in features], 2)
        scores = torch.cat([self.head["scores"](f).flatten(2) for f in features], 2)
        kept = [score[score > threshold] for score in scores]
        return {"boxes": boxes, "kept": kept, "size": size, "options": options}


class Segmenter(nn.Module):
    """Somebody's segmenter: a decoder that takes a list, and an interpolation to the input."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.encoder = backbone
        self.decoder = Decoder()

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        height, width = x.shape[-2:]
        if height % 1 != 0:
            raise RuntimeError(f"{height} rows")
        mask = self.decoder(*self.encoder(x)[::-1])
        return OrderedDict(out=F.interpolate(mask, size=(int(height), int(width))))


class Decoder(nn.Module):
    """A decoder over any number of features."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([ThreeBranches(C), ThreeBranches(C)])

    def forward(self, *features: Tensor) -> Tensor:
        x, *skips = features
        for block, skip in zip(self.blocks, skips):  # noqa: B905
            x = block(x + skip)
        return x


WRAPPED: dict[str, Callable[[], nn.Module]] = {
    "detector": lambda: Detector(Backbone()),
    "segmenter": lambda: Segmenter(Backbone()),
    "detector of a segmenter's features": lambda: Detector(
        nn.Sequential(Backbone(), Network(lambda self, x: x[::-1]))
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_backbone_inside_somebody_elses_network(name: str) -> None:
    """A backbone nobody converted.

    qubvel-org/segmentation_models.pytorch#834, THU-MIG/RepViT#73, mindee/doctr#1494,
    WongKinYiu/yolov7#452, WongKinYiu/yolov9#63.
    """
    model = ready(WRAPPED[name]())
    fused = assert_exact(model, images())
    counts = count_operators(fused, (images(),))
    assert counts.batch_norms == 0
    blocks = sum(isinstance(module, ThreeBranches) for module in model.modules())
    # Boxes and scores of three features; the lateral convolutions go into those.
    others = 6 if name != "segmenter" else 0
    assert counts.convolutions == blocks + others
    assert [type(module) for module in fused.modules() if type(module) in (Detector, Backbone)]
