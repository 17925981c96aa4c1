"""Quantise a fused model as torchao does it, and prune it."""

import pytest
import torch
import torch_pruning
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils._pytree import tree_leaves
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)

import reparam
from tests.support.errors import median_error, run
from tests.uses.networks import fused_network


# torchao's quantiser refuses the in-place activations of some networks, fused or not
@pytest.mark.parametrize("name", ["repvgg", "byobnet"])
@pytest.mark.parametrize("order", ["model", "program"])
def test_pt2e_quantisation(name: str, order: str) -> None:
    case = fused_network(name)
    model = case.fused if order == "model" else case.model
    program = torch.export.export(model, (case.x,))
    if order == "program":
        program = reparam.fuse(program)
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    run(prepared, (case.x,))
    quantised = convert_pt2e(prepared)
    names = {str(node.target) for node in quantised.graph.nodes}
    assert any("quantize_per_tensor" in name for name in names)
    assert median_error(run(quantised, (case.x,)), run(case.model, (case.x,))) < 0.5


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.wide(x) + self.narrow(x) + x).relu()


def quantised_values(program: ExportedProgram, x: Tensor) -> int:
    """How many nodes quantise or dequantise once torchao has quantised a program."""
    quantizer = X86InductorQuantizer()
    quantizer.set_global(get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(program.module(), quantizer)
    prepared(x)
    return sum("quantize" in str(node.target) for node in convert_pt2e(prepared).graph.nodes)


def test_a_fused_program_is_quantised_like_the_program_of_a_fused_model() -> None:
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), Branches()
    head = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    model, x = nn.Sequential(*layers, *head).eval(), torch.randn(4, 3, 12, 12)
    fused = reparam.fuse(torch.export.export(model, (x,)))
    wanted = quantised_values(torch.export.export(reparam.fuse(model), (x,)), x)
    assert quantised_values(fused, x) == wanted > 8


@pytest.mark.parametrize("name", ["repvgg", "resnet"])
def test_torch_pruning(name: str) -> None:
    case = fused_network(name)
    last = [module for module in case.fused.modules() if isinstance(module, torch.nn.Linear)][-1]
    before = sum(p.numel() for p in case.fused.parameters())
    pruner = torch_pruning.pruner.MagnitudePruner(
        case.fused,
        case.x,
        importance=torch_pruning.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        ignored_layers=[last],
    )
    pruner.step()
    assert sum(p.numel() for p in case.fused.parameters()) < 0.6 * before
    output = run(case.fused, (case.x,))
    assert output.shape == (2, 10)
    assert all(leaf.isfinite().all() for leaf in tree_leaves(output))
