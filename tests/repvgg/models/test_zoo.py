"""The published variants: their sizes, with branches and fused, and how they are created."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch

import reparam
import repvgg
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import FLOAT64_BOUND, float64_inputs, float64_twin, relative_error, run
from tests.support.images import random_images
from tests.support.randomise import randomise_batch_norm


@dataclass(frozen=True)
class Size:
    """Parameters, and 10⁹ multiply-adds for an image of 224 by 224, to three decimals."""

    parameters: int
    gmacs: str


# Measured on the authors' implementation.
TRAINED = {
    "repvgg_a0": Size(9_108_968, "1.513"),
    "repvgg_a1": Size(14_092_264, "2.626"),
    "repvgg_a2": Size(28_210_600, "5.685"),
    "repvgg_b0": Size(15_817_960, "3.397"),
    "repvgg_b1": Size(57_415_016, "13.128"),
    "repvgg_b1g2": Size(45_782_376, "9.788"),
    "repvgg_b1g4": Size(39_966_056, "8.119"),
    "repvgg_b2": Size(89_022_376, "20.418"),
    "repvgg_b2g2": Size(70_846_376, "15.200"),
    "repvgg_b2g4": Size(61_758_376, "12.591"),
    "repvgg_b3": Size(123_085_288, "29.121"),
    "repvgg_b3g2": Size(96_911_848, "21.606"),
    "repvgg_b3g4": Size(83_825_128, "17.849"),
    "repvgg_d2se": Size(133_334_836, "36.477"),
    "repvggplus_l2pse": Size(146_062_864, "36.484"),
}
FUSED = {
    "repvgg_a0": Size(8_309_384, "1.361"),
    "repvgg_a1": Size(12_789_864, "2.364"),
    "repvgg_a2": Size(25_499_944, "5.117"),
    "repvgg_b0": Size(14_339_048, "3.058"),
    "repvgg_b1": Size(51_829_480, "11.815"),
    "repvgg_b1g2": Size(41_360_104, "8.810"),
    "repvgg_b1g4": Size(36_125_416, "7.307"),
    "repvgg_b2": Size(80_315_112, "18.377"),
    "repvgg_b2g2": Size(63_956_712, "13.680"),
    "repvgg_b2g4": Size(55_777_512, "11.332"),
    "repvgg_b3": Size(110_960_872, "26.209"),
    "repvgg_b3g2": Size(87_404_776, "19.446"),
    "repvgg_b3g4": Size(75_626_728, "16.064"),
    "repvgg_d2se": Size(120_387_572, "32.830"),
    "repvggplus_l2pse": Size(127_151_960, "32.836"),
}


def on_meta(name: str) -> repvgg.RepVGG:
    with torch.device("meta"):
        return repvgg.create_model(name).eval()


def count(model: torch.nn.Module) -> OperatorCounts:
    return count_operators(model, [torch.empty(1, 3, 224, 224, device="meta")])


def size_of(model: torch.nn.Module) -> Size:
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Size(parameters, f"{count(model).macs / 1e9:.3f}")


def test_all_variants_are_listed() -> None:
    assert repvgg.list_models() == list(TRAINED)


@pytest.mark.parametrize("name", TRAINED)
def test_a_variant_has_the_published_size(name: str) -> None:
    assert size_of(on_meta(name)) == TRAINED[name]


@pytest.mark.parametrize("name", FUSED)
def test_a_variant_fuses_to_the_published_size(name: str) -> None:
    fused = reparam.fuse(on_meta(name))
    fused.remove_auxiliary_heads()
    assert size_of(fused) == FUSED[name]


def test_repvgg_a0_loses_all_but_its_convolutions() -> None:
    model = on_meta("repvgg_a0")
    before, after = count(model), count(reparam.fuse(model))
    assert (before.convolutions, before.batch_norms, before.additions) == (44, 61, 39)
    assert (after.convolutions, after.batch_norms, after.additions) == (22, 0, 0)


def test_the_fused_repvgg_a0_computes_the_same() -> None:
    torch.manual_seed(0)
    model = repvgg.create_model("repvgg_a0").eval()
    randomise_batch_norm(model, 0, [random_images(4, 96, seed=0)])
    twin = float64_twin(model)
    inputs = float64_inputs([random_images(2, 96, seed=1)])
    expected = run(twin, inputs)
    assert relative_error(run(reparam.fuse(twin), inputs), expected) < FLOAT64_BOUND


def test_classes_and_channels_are_passed_on() -> None:
    with torch.device("meta"):
        model = repvgg.create_model("repvgg_a0", num_classes=10, in_chans=1)
    assert model.linear.weight.shape == (10, 1280)
    assert model.get_parameter("stage0.rbr_dense.conv.weight").shape == (48, 1, 3, 3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("repvgg_a", "unknown model 'repvgg_a'; did you mean repvgg_a"),
        ("repvgg-b1g4", "did you mean repvgg_b1g4"),
        ("repvggplus", "did you mean repvggplus_l2pse"),
        ("resnet50", "unknown model 'resnet50'; known: repvgg_a0, repvgg_a1, .*, repvgg_d2se"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_ones(name: str, message: str) -> None:
    with pytest.raises(reparam.ReparamError, match=message):
        repvgg.create_model(name)


@pytest.mark.parametrize("argument", ["num_classes", "in_chans"])
def test_a_wrong_number_is_refused(argument: str) -> None:
    with pytest.raises(reparam.ReparamError, match=f"`{argument}` must be a positive integer"):
        repvgg.create_model("repvgg_a0", **{argument: 0})
