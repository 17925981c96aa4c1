"""New operators say what was said of those that they replace: metadata of nodes, and attributes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.ao.quantization import default_dynamic_qconfig, default_qconfig

import reparam
from reparam.rewriting.copied_metadata import (
    describe_operator,
    replaced_operator,
    take_attributes,
)
from tests.support.randomise import randomise_batch_norm


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.narrow = nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.wide(x) + self.narrow(x) + x).relu()


def network() -> nn.Module:
    layers = (
        nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        Branches(),
        nn.ReLU(),
        nn.Sequential(nn.Conv2d(8, 8, 3, padding_mode="reflect", padding=1), nn.BatchNorm2d(8)),
        nn.ReLU(),
        nn.Sequential(nn.ConvTranspose2d(8, 8, 2), nn.BatchNorm2d(8), nn.ReLU()),
        nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4), nn.BatchNorm1d(4)),
    )
    return randomise_batch_norm(nn.Sequential(*layers), 0).eval()


X = torch.randn(2, 3, 12, 12)


def stack(node: fx.Node) -> str:
    """The innermost module that a node says it was made in."""
    return str([*node.meta["nn_module_stack"].values()][-1][0])


def test_an_operator_of_a_program_says_what_the_one_that_it_replaces_said() -> None:
    model = network()
    fused = reparam.fuse(torch.export.export(model, (X,)))
    computing = [node for node in fused.graph.nodes if node.op == "call_function"]
    said = {
        stack(node): node.meta["torch_fn"][1].rpartition(".")[2]
        for node in computing
        if "conv" in str(node.target) or "linear" in str(node.target)
    }
    assert said == {
        "0.0": "conv2d",
        "1.wide": "conv2d",
        "3.0": "conv2d",
        "5.0": "conv_transpose2d",
        "6.2": "linear",
    }
    assert all("stack_trace" in node.meta for node in computing)
    origins = {node.meta["torch_fn"][0] for node in computing if "conv" in str(node.target)}
    assert len(origins) == 4


@pytest.mark.parametrize("core", [False, True])
def test_a_fused_program_unflattens(core: bool) -> None:
    model = network()
    program = torch.export.export(model, (X,))
    fused = reparam.fuse(program.run_decompositions() if core else program)
    torch.testing.assert_close(torch.export.unflatten(fused)(X), model(X))


def test_an_operator_of_a_graph_module_says_what_the_one_that_it_replaces_said() -> None:
    graph = fx.symbolic_trace(network())
    for node in graph.graph.nodes:
        node.meta["custom"] = {"stage": node.name}
    fused = reparam.fuse(graph)
    said = {str(node.target): node.meta for node in fused.graph.nodes if node.op == "call_module"}
    assert said["fused_conv"]["custom"] == {"stage": "_1_wide"}
    assert [*said["fused_conv"]["nn_module_stack"]][-1] == "1.wide"
    assert said["0.0"]["custom"] == {"stage": "_0_0"}


class FromWeights(nn.Module):
    """A kernel, a scale and a shift that are parameters of the module itself."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.shift = nn.Parameter(torch.rand(8, 1, 1))
        self.pool = nn.Parameter(torch.rand(8, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = F.conv2d(x, self.pool)
        return (y * self.scale + self.shift).relu()


def test_the_value_of_a_graph_module_is_described() -> None:
    graph = torch.export.export(FromWeights().eval(), (torch.randn(1, 8, 4, 4),)).module()
    fused: Any = reparam.fuse(graph)
    (new,) = fused.graph.find_nodes(op="call_module", target="fused_conv")
    assert new.meta["val"].shape == (1, 8, 4, 4)
    assert new.meta["torch_fn"][1] == "builtin_function_or_method.conv2d"


class Subclass(nn.Conv2d):
    """A class whose constructor sets attributes of its own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made = "by the constructor"


def test_modules_keep_what_users_set_on_those_that_they_replace() -> None:
    model = network()
    for path, module in model.named_modules():
        module.tag = path
    model[0][0].qconfig = default_qconfig
    model[1].wide.qconfig = default_qconfig
    model[1].narrow.qconfig = default_dynamic_qconfig
    model[1].norm.names = ["statistics"]
    fused: Any = reparam.fuse(model)
    assert fused[0][0].qconfig == default_qconfig
    assert fused[1].fused_conv.qconfig == default_qconfig
    assert fused[1].fused_conv.tag == "1.wide"
    assert fused[1].norm.names == ["statistics"]
    assert fused[1].norm.names is not model[1].norm.names
    assert isinstance(fused[0][1], nn.Identity)
    assert fused[0][1].tag == "0.1"
    assert fused[6][2].tag == "6.2"


def test_modules_take_nothing_that_classes_set() -> None:
    new, old = nn.Conv2d(3, 8, 3), Subclass(3, 8, 3)
    plain = set(vars(new))
    old.tag = "stem"
    take_attributes(new, [old, nn.BatchNorm2d(8), nn.ConvTranspose1d(3, 8, 3)])
    assert vars(new).keys() - plain == {"tag"}


def test_a_convolution_that_replaces_none_says_that_it_is_one() -> None:
    graph = fx.Graph()
    pool, new = (graph.call_function(F.avg_pool2d, (graph.placeholder(n), 3)) for n in "ab")
    pool.meta["torch_fn"] = "avg_pool2d_1", "builtin_function_or_method.avg_pool2d"
    pool.meta["source_fn_stack"] = [("pool", nn.AvgPool2d), ("avg_pool2d", F.avg_pool2d)]
    conv = nn.Conv2d(8, 8, 3, groups=8)
    assert replaced_operator(conv, nn.Module(), [pool]) is None
    describe_operator(new, conv, None, pool)
    assert new.meta["torch_fn"] == (new.name, "builtin_function_or_method.conv2d")
    assert new.meta["source_fn_stack"] == [("pool", nn.AvgPool2d), (new.name, nn.Conv2d)]
