"""Fuses random networks: nothing may become wrong, dearer, unexplained or different to use.

`python -m tests.random_networks --networks 10000` tries as many. A failing network is shown as
source; `smallest_failing(seed)` makes it smaller.
"""

import re
from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import nn

import reparam
from reparam.report.tables import RefusedRow, Report
from tests.random_networks import vocabulary
from tests.random_networks.campaign import CHUNK, Result, summary, try_seeds
from tests.random_networks.checking import Passed, check
from tests.random_networks.growing import random_program
from tests.random_networks.neighbours import affine_pairs
from tests.random_networks.programs import shrink
from tests.random_networks.reasons import assert_explained, assert_reasons
from tests.support.correctness_page import random_networks_text
from tests.support.counting import OperatorCounts

SEEDS = range(100)

program_of = cache(random_program)


@pytest.fixture(scope="module")
def results() -> Iterator[list[Passed]]:
    """Collects what was seen of all networks; prints the sums at the end (`pytest -s`)."""
    passed: list[Passed] = []
    yield passed
    original = sum((one.original for one in passed), OperatorCounts())
    fused = sum((one.fused for one in passed), OperatorCounts())
    total = Result(len(passed), original, fused)
    print(f"\n{random_networks_text([summary(total, SEEDS, 0)])}")


@pytest.mark.parametrize("seed", SEEDS)
def test_fused_random_network(seed: int, results: list[Passed]) -> None:
    program = program_of(seed)
    try:
        results.append(check(program))
    except Exception as error:
        error.add_note(f"\n{program}")
        raise


SPELLINGS = r"""
    nn\.Conv1d nn\.Conv2d nn\.Conv3d nn\.ConvTranspose1d nn\.ConvTranspose2d
    nn\.AvgPool1d nn\.AvgPool2d nn\.BatchNorm1d nn\.BatchNorm2d nn\.BatchNorm3d nn\.SyncBatchNorm
    F\.conv2d torch\.conv2d aten\.convolution aten\.mul F\.batch_norm torch\.batch_norm einsum \.T\)
    padding_mode="reflect" padding_mode="replicate" padding_mode="circular" padding="same" groups=2
    mode="reflect" mode="replicate" mode="circular" nn\.ReflectionPad nn\.ConstantPad F\.pad\(.*-1
    count_include_pad=False ceil_mode=True divisor_override output_padding=1
    track_running_stats=False
    \.mul_\( \.neg_\( \.copy_\( [^=]\+=  \*= v\d+\[.*\].[*+]= torch\.relu_ inplace=True
    torch\.cat \.chunk\( \.split\( \.detach\(\) \.half\(\) \.double\(\) \.shape\[0\]
    \.size\(0\) assert
    values\['a'\] values\[0\] v1=None \[v\d+,.v\d+\] "out": Pair\(v \.item\(\) if.v\d+\.mean
    register_forward_hook register_forward_pre_hook =.self\.m\d+\n \.weight.=.self\.m\d+\.weight
    nn\.ModuleDict nn\.ModuleList nn\.Sequential nn\.Buffer nn\.DataParallel nn\.Dropout
"""


def test_the_whole_vocabulary_is_used() -> None:
    text = "\n".join(str(program_of(seed)) for seed in range(1000))
    spellings = SPELLINGS.split() + [rf"\b{name}\b" for name in vocabulary.__all__]
    assert not [spelling for spelling in spellings if not re.search(spelling, text)]


def test_a_seed_gives_one_network() -> None:
    first, second = random_program(7), random_program(7)
    assert first == second
    for a, b in zip(first.build().parameters(), second.build().parameters(), strict=True):
        assert torch.equal(a, b)


def test_shrinking_keeps_what_fails() -> None:
    program = next(p for p in map(program_of, SEEDS) if "nn.Conv2d(" in str(p))
    smallest = shrink(program, lambda p: "nn.Conv2d(" in str(p))
    assert sum(len(module.steps) for module in smallest.modules) <= 2
    assert "nn.Conv2d(" in str(smallest)


def test_results_of_parts_add_up() -> None:
    seeds = range(12)
    whole = try_seeds(seeds)
    parts = try_seeds(seeds[:3]) + try_seeds(seeds[3:])
    assert whole == parts
    assert whole.networks == len(seeds) < CHUNK
    assert whole.original.affine > whole.fused.affine > 0


class ConvNorm(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


def test_neighbours_are_found_and_have_to_be_explained() -> None:
    model, x = nn.Sequential(ConvNorm(), nn.ReLU()).eval(), torch.randn(1, 2, 3, 3)
    ((first, second),), _ = affine_pairs(model, (x,))
    assert (first.kind, first.place) == ("convolution", "0.0")
    assert (second.kind, second.place) == ("batch norm", "0.1")
    report = Report("Sequential")
    with pytest.raises(AssertionError, match=r"unexplained: batch norm in 0\.1"):
        assert_explained(model, model, report, (x,))
    report.refused.append(RefusedRow("0.1", "BatchNorm2d", "it has a reason"))
    assert_explained(model, model, report, (x,))
    assert not affine_pairs(reparam.fuse(model), (x,))[0]


@pytest.mark.parametrize(
    "row",
    [
        RefusedRow("0.1", "BatchNorm2d", ""),
        RefusedRow("0.7", "BatchNorm2d", "it has a reason"),
        RefusedRow("0.1", "", "it has a reason"),
        RefusedRow("0.1", "BatchNorm2d", "a Proxy cannot be that"),
    ],
)
def test_reasons_are_words_at_places(row: RefusedRow) -> None:
    model = nn.Sequential(ConvNorm(), nn.ReLU())
    with pytest.raises(AssertionError):
        assert_reasons(model, Report("Sequential", refused=[row]))
