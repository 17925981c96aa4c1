"""The operations that the demo draws are those that the network executes."""

from __future__ import annotations

import pytest
import torch

import reparam
from repvgg.cli.operations import (
    INPUT,
    Operation,
    count_kinds,
    list_operations,
    operations_inside,
)
from repvgg.training.networks import small_repvgg


@pytest.fixture(scope="module")
def trained() -> list[Operation]:
    return list_operations(small_repvgg(seed=0).eval(), torch.zeros(2, 1, 8, 8))


@pytest.fixture(scope="module")
def fused() -> list[Operation]:
    model = reparam.fuse(small_repvgg(seed=0).eval())
    return list_operations(model, torch.zeros(2, 1, 8, 8))


def test_all_operations_of_the_trained_network_are_counted(trained: list[Operation]) -> None:
    # 8 blocks, 4 of them with the identity; pooling and flattening before the linear layer
    assert count_kinds(trained) == {
        "convolution": 16,
        "batch norm": 20,
        "addition": 12,
        "ReLU": 8,
        "other": 2,
        "linear": 1,
    }


def test_all_operations_of_the_fused_network_are_counted(fused: list[Operation]) -> None:
    assert count_kinds(fused) == {"convolution": 8, "ReLU": 8, "other": 2, "linear": 1}


def test_a_block_is_cut_out_of_the_network(trained: list[Operation]) -> None:
    block = operations_inside(trained, "stage1.1")
    assert [(operation.label, operation.inputs) for operation in block] == [
        ("conv 3×3", (INPUT,)),
        ("batch norm", (0,)),
        ("conv 1×1", (INPUT,)),
        ("batch norm", (2,)),
        ("+", (1, 3)),
        ("batch norm", (INPUT,)),
        ("+", (4, 5)),
        ("ReLU", (6,)),
    ]


def test_a_fused_block_is_a_convolution_and_a_relu(fused: list[Operation]) -> None:
    block = operations_inside(fused, "stage1.1")
    assert [(operation.label, operation.inputs) for operation in block] == [
        ("conv 3×3", (INPUT,)),
        ("ReLU", (0,)),
    ]


def test_a_module_is_not_taken_for_another_whose_name_it_begins() -> None:
    inside = Operation("ReLU", "ReLU", "stage1.1", (INPUT,))
    outside = Operation("ReLU", "ReLU", "stage1.10", (0,))
    assert operations_inside([inside, outside], "stage1.1") == [inside]
