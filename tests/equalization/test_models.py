"""Every kind of model comes back as what it was, and in one piece."""

import copy
from unittest import mock

import pytest
import torch
from torch import fx, nn

import reparam
from reparam.capture.operator_traits import Trait
from reparam.equalization import homogeneous
from reparam.verification.model_check import Judge
from tests.equalization.spreading import equalized, image, scaled, spread
from tests.support.errors import run
from tests.support.snapshot import Snapshot


def chain() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(inplace=True), nn.Conv2d(6, 4, 3))


def test_training_mode() -> None:
    with pytest.raises(reparam.ReparamError, match=r"call model.eval\(\)"):
        reparam.equalize(chain())


def test_no_module() -> None:
    with pytest.raises(reparam.ReparamError, match="found str"):
        reparam.equalize("model")


def test_in_place_keeps_the_parameters() -> None:
    model = spread(chain()).double()
    x = image(2, 3, 8, 8)
    before, parameters = run(model, (x,)), list(map(id, model.parameters()))
    memory = [parameter.data_ptr() for parameter in model.parameters()]
    weight = model[0].weight.detach().clone()
    assert reparam.equalize(model, inplace=True, powers_of_two=True) is model
    assert list(map(id, model.parameters())) == parameters
    assert [parameter.data_ptr() for parameter in model.parameters()] == memory
    assert torch.equal(run(model, (x,)), before)
    assert not torch.equal(model[0].weight, weight)


@pytest.mark.parametrize("inplace", [True, False])
def test_failure_half_way_leaves_the_model(inplace: bool) -> None:
    model = spread(chain())
    x = image(2, 3, 8, 8).float()
    before = Snapshot(model)
    with (
        mock.patch.object(Judge, "compare", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        reparam.equalize(model, x, inplace=inplace)
    before.assert_unchanged()


def everything_lets_scales_pass(node: fx.Node, root: nn.Module) -> Trait:
    """A table that is wrong."""
    return Trait.POSITIVELY_HOMOGENEOUS


def test_wrong_scales_are_noticed() -> None:
    """The check of every value is the last line: a law that is wrong changes nothing."""
    model = spread(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)))
    with (
        mock.patch.object(homogeneous, "traits", everything_lets_scales_pass),
        pytest.warns(UserWarning, match="Sigmoid .* differs"),
    ):
        equal = reparam.equalize(model)
    assert not scaled(equal)
    assert "verification failed" in str(equal.reparam_report)
    for one, two in zip(equal.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_wrong_outputs_are_noticed() -> None:
    model = spread(nn.Sequential(nn.Linear(4, 5), nn.Sigmoid(), nn.Linear(5, 2)))
    before = Snapshot(model)
    with (
        mock.patch.object(homogeneous, "traits", everything_lets_scales_pass),
        mock.patch("reparam.equalization.driver.check_scales", return_value=True),
        pytest.warns(UserWarning, match="left as it is"),
    ):
        equal = reparam.equalize(model, image(3, 4).float(), inplace=True)
    assert not equal.reparam_report.equalized
    assert equal is model
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before.values[name])


def test_graph_module() -> None:
    model = fx.symbolic_trace(spread(chain()))
    equal = equalized(model, image(2, 3, 8, 8))
    assert isinstance(equal, fx.GraphModule)
    assert scaled(equal) == {"0"}


@pytest.mark.parametrize("decomposed", [True, False])
def test_exported_program(decomposed: bool) -> None:
    model = spread(nn.Sequential(*chain(), nn.Flatten(), nn.ReLU(), nn.Linear(4 * 4 * 4, 3)))
    x = image(2, 3, 8, 8).float()
    program = torch.export.export(model, (x,))
    if decomposed:
        program = program.run_decompositions({})
    state = {name: tensor.clone() for name, tensor in program.state_dict.items()}
    equal = reparam.equalize(program, powers_of_two=True)
    assert isinstance(equal, torch.export.ExportedProgram)
    assert len(scaled(equal)) >= 2 - decomposed
    for name, tensor in state.items():
        assert torch.equal(program.state_dict[name], tensor)
    assert not torch.equal(equal.state_dict["0.weight"], state["0.weight"])
    assert torch.equal(equal.module()(x), program.module()(x))
    with pytest.raises(reparam.ReparamError, match="cannot be changed in place"):
        reparam.equalize(program, inplace=True)


def test_fused_and_fused_again() -> None:
    model = spread(nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                                 nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)))  # fmt: skip
    x = image(2, 3, 8, 8)
    equal = equalized(reparam.fuse(model), x)
    assert scaled(equal) == {"0"}
    assert torch.equal(run(copy.deepcopy(equal), (x,)), run(equal, (x,)))
    state = equal.state_dict()
    other = reparam.fuse(model).double()
    other.load_state_dict(state)
    assert torch.equal(run(other, (x,)), run(equal, (x,)))
    assert not reparam.fuse(equal).reparam_report.fused


def test_inference_tensors() -> None:
    with torch.inference_mode():
        model = spread(chain())
    weight = model[0].weight.clone()
    reparam.equalize(model, inplace=True)
    assert not torch.equal(model[0].weight, weight)


def test_meta_device() -> None:
    with torch.device("meta"):
        model = chain().eval()
    assert "meta device" in str(reparam.equalize(model).reparam_report)


def test_another_default_device() -> None:
    model, x = spread(chain()), image(2, 3, 8, 8).float()
    with torch.device("meta"):
        equal = reparam.equalize(model, powers_of_two=True)
    assert scaled(equal) == {"0"}
    assert torch.equal(run(equal, (x,)), run(model, (x,)))


def test_example_inputs_that_do_not_fit() -> None:
    with pytest.raises(reparam.ReparamError, match="does not run on example_inputs"):
        reparam.equalize(spread(chain()), torch.zeros(2, 4, 8, 8))


def test_the_report_is_a_table() -> None:
    x = image(2, 3, 8, 8).float()
    equal = reparam.equalize(spread(chain()), x, powers_of_two=True)
    text = str(equal.reparam_report)
    assert "largest / smallest range" in text
    assert "returned" in text
    assert "the outputs differ by at most 0.0e+00" in text
    assert "<table>" in equal.reparam_report._repr_html_()
