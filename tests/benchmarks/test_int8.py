"""The int8 study runs, and its page is that of its data."""

import json

import torch
from torch import nn

import reparam
from repvgg.data import split_digits
from repvgg.training import small_repvgg
from tests.benchmarks import int8
from tests.support.randomise import randomise_batch_norm


def test_one_network() -> None:
    digits = split_digits(0)
    fused = reparam.fuse(randomise_batch_norm(small_repvgg(0).eval(), 0))
    planted = int8.badly_scaled(fused, 0)
    images = digits.held_out_images[:16]
    with torch.no_grad():
        assert torch.allclose(planted(images), fused(images), rtol=1e-3, atol=1e-3)
        for per in ("channel", "tensor"):
            model = int8.quantised(planted, digits, 8, per)
            assert model(images).shape == (16, 10)
            scales = [
                node for node in model.graph.nodes if f"dequantize_per_{per}" in str(node.target)
            ]
            assert len(scales) >= sum(isinstance(m, nn.Conv2d) for m in fused.modules())


def test_page() -> None:
    data = json.loads(int8.DATA.read_text(encoding="utf-8"))
    assert int8.PAGE.read_text(encoding="utf-8") == int8.render(data)
    assert {row["network"].partition(",")[0] for row in data["rows"]} == set(int8.NETWORKS)
