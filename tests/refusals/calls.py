"""What the public calls refuse, and what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

Error = reparam.ReparamError


def conv_and_norm() -> nn.Module:
    return ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))


class Doubling(nn.Module):
    """A module that needs a rule, since its forward cannot be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((4,), 2.0))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("no images")
        return x * self.gamma.view(-1, 1, 1)


def doubled() -> nn.Module:
    return ready(nn.Sequential(nn.Conv2d(4, 4, 3), Doubling()))


# -- The model and its arguments ------------------------------------------------------------------


@pytest.mark.parametrize("call", [reparam.fuse, reparam.plan])
def test_the_first_module_in_training_mode_is_named(call: Any) -> None:
    model = conv_and_norm()
    model[1].train()
    with pytest.raises(Error, match=r"^1 \(BatchNorm2d\) is in training mode.*model\.eval\(\)"):
        call(model)


def test_a_model_in_training_mode_is_named() -> None:
    with pytest.raises(Error, match=r"^the model \(Sequential\) is in training mode"):
        reparam.fuse(conv_and_norm().train())


def test_what_is_around_a_model_is_named_with_what_to_give(tmp_path: Path) -> None:
    """A wrapper would be fused as code that cannot be traced, or its parameters be taken apart."""
    model = conv_and_norm()
    with pytest.raises(Error, match=r"OptimizedModule, compiled code.*compiled\._orig_mod"):
        reparam.fuse(torch.compile(model, backend="eager"))
    dist.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        for fusing in (reparam.fuse, reparam.plan):
            with pytest.raises(Error, match=r"DistributedDataParallel.*wrapped\.module"):
                fusing(wrapped)
    finally:
        dist.destroy_process_group()


def test_a_fusion_in_training_mode_would_be_wrong() -> None:
    model, x = conv_and_norm(), images()
    trained = run(model.train(), (x,))
    assert relative_error(run(reparam.fuse(model.eval()), (x,)), trained) > 1e-2


def test_a_lazy_module_must_have_run() -> None:
    model = nn.Sequential(nn.LazyConv2d(4, 3), nn.BatchNorm2d(4)).eval()
    with pytest.raises(Error, match=r"^0 \(LazyConv2d\) is lazy and was never run"):
        reparam.fuse(model)
    model(torch.randn(1, 3, 5, 5))
    assert len(reparam.fuse(model).reparam_report.fused) == 1


@pytest.mark.parametrize("model", [None, F.relu, "resnet50", {"weight": 1}, nn.ReLU])
def test_something_that_is_no_module(model: Any) -> None:
    with pytest.raises(Error, match=r"^expected a torch\.nn\.Module or .*, found \w+"):
        reparam.fuse(model)


@pytest.mark.parametrize("cost", ["flops", None, 3])
def test_an_unknown_cost(cost: Any) -> None:
    with pytest.raises(Error, match=r"^cost=.* is not known; .*'macs', .* or a function$"):
        reparam.fuse(conv_and_norm(), cost=cost)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((images(), images()), "do not fit the model's forward"),
        (images(3), "does not run on example_inputs"),
        (images()[0, 0, 0], "does not run on example_inputs"),
        ((), "do not fit the model's forward"),
    ],
    ids=["too many", "channels", "axes", "none"],
)
def test_example_inputs_that_do_not_fit(inputs: Any, message: str) -> None:
    with pytest.raises(Error, match=message):
        reparam.fuse(conv_and_norm(), inputs)


def test_verify_refuses_outputs_that_differ_in_shape() -> None:
    model = conv_and_norm()
    with pytest.raises(Error, match="return different outputs"):
        reparam.verify(model, nn.Sequential(model, nn.Flatten()), images())


def test_a_model_that_cannot_be_copied() -> None:
    model = conv_and_norm()
    model.generator = (value for value in ())
    with pytest.raises(Error, match=r"cannot be copied.*inplace=True"):
        reparam.fuse(model)
    assert count_operators_of(reparam.fuse(model, inplace=True)) == 1


def count_operators_of(model: nn.Module) -> int:
    model.__dict__.pop("generator", None)
    return count_operators(model, (images(),)).total


def test_a_module_may_copy_itself_in_a_way_of_its_own() -> None:
    class Copying(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) + self[1](x)

        def __deepcopy__(self, memo: dict[int, Any]) -> Copying:
            twin = ready(type(self)(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
            twin.load_state_dict(self.state_dict())
            return twin

    model = ready(Copying(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)))
    fused, x = reparam.fuse(model), images()
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


@pytest.mark.parametrize("example_inputs", [None, images()], ids=["no inputs", "inputs"])
def test_counters_of_the_model_do_not_run(example_inputs: Any) -> None:
    class Counting(nn.Sequential):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            self.steps += 1
            return super().forward(x)

    model, x = ready(Counting(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))), images()
    model.register_buffer("steps", torch.zeros(()))
    fused = reparam.fuse(model, example_inputs)
    assert (model.calls, float(model.steps)) == (0, 0)
    assert (fused.calls, float(fused.steps)) == (0, 0)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert (fused.calls, float(fused.steps)) == (1, 1)


# -- Nothing to fuse ------------------------------------------------------------------------------


def test_where_nothing_fuses_the_result_is_an_equal_copy() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU()))
    fused, x = reparam.fuse(model), images()
    assert fused is not model
    assert repr(fused) == repr(model)
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    before, after = model.state_dict(), fused.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert not {t.data_ptr() for t in before.values()} & {t.data_ptr() for t in after.values()}


def test_where_nothing_fuses_the_report_says_why() -> None:
    model = ready(
        nn.Sequential(
            nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
        )
    )
    report = reparam.fuse(model).reparam_report
    assert report.fused == []
    assert [row.place for row in sorted(report.refused, key=lambda row: row.place)] == [
        "0",
        "2",
        "3",
    ]
    assert_reported(report, "0", "it follows the input")
    assert_reported(report, "2", "not affine")
    assert_reported(report, "3", "zero padding after a bias")
    assert "zero padding after a bias" in str(report)


def test_a_model_without_operators() -> None:
    report = reparam.fuse(nn.Identity().eval()).reparam_report
    assert (report.fused, report.refused) == ([], [])
    assert "nothing is fused" in str(report)


def test_a_cheaper_bottleneck_stays() -> None:
    """144 to 24 to 144 channels by two kernels is a third of the one that does both."""
    model = ready(nn.Sequential(nn.Conv2d(36, 6, 1, bias=False), nn.Conv2d(6, 36, 1, bias=False)))
    x = images(36)
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)) == count_operators(model, (x,))
    assert_reported(fused.reparam_report, "1", "3.0 x the multiply-adds")


# -- Rules ----------------------------------------------------------------------------------------


def test_registering_twice_shows_both() -> None:
    class Mine(Doubling):
        pass

    @reparam.register_rule(Mine)
    def first(module: Any, x: Any) -> Any:
        return x

    with pytest.raises(Error, match=r"Mine already has a rule, .*first.*rules=\{target: rule\}"):
        reparam.register_rule(Mine)
    with pytest.raises(Error, match="Conv2d already has a rule"):
        reparam.register_rule(nn.Conv2d)


def test_a_refused_registration_registers_nothing() -> None:
    class Mine(Doubling):
        pass

    with pytest.raises(Error, match="already has a rule"):
        reparam.register_rule(Mine, nn.Conv2d)
    reparam.register_rule(Mine)(lambda module, x: x)


@pytest.mark.parametrize("target", ["conv2d", 3, None, nn.Conv2d(1, 1, 1), int, Tensor])
def test_registering_for_something_that_is_no_target(target: Any) -> None:
    with pytest.raises(Error, match="cannot have a rule"):
        reparam.register_rule(target)
    with pytest.raises(Error, match="cannot have a rule"):
        reparam.fuse(conv_and_norm(), rules={target: None})


def test_registering_for_nothing() -> None:
    with pytest.raises(Error, match="at least one target"):
        reparam.register_rule()


@pytest.mark.parametrize("rule", [3, "scale"])
def test_a_rule_is_a_function(rule: Any) -> None:
    class Mine(Doubling):
        pass

    with pytest.raises(Error, match="must be a function"):
        reparam.register_rule(Mine)(rule)
    with pytest.raises(Error, match="must be a function"):
        reparam.fuse(conv_and_norm(), rules={Mine: rule})


@pytest.mark.parametrize("result", [None, 3, torch.ones(4)], ids=["None", "int", "Tensor"])
def test_a_rule_that_returns_no_form_is_named(result: Any) -> None:
    def mistaken(module: Any, x: Any) -> Any:
        return result

    with pytest.raises(
        Error, match=r"mistaken of Doubling, at 1, returned .*; a rule must return a form"
    ):
        reparam.fuse(doubled(), rules={Doubling: mistaken})


def test_a_rule_that_disagrees_with_forward_is_found_out() -> None:
    def wrong(module: Any, x: reparam.AffineConv) -> Any:
        return x.scale(module.gamma).shift(1e-3)

    model, x = doubled(), images()
    with pytest.warns(UserWarning, match=r"^1: .* was left alone\. It rests on the rule .*wrong"):
        fused = reparam.fuse(model, rules={Doubling: wrong})
    assert torch.equal(run(fused, (x,)), run(model, (x,)))
    assert_reported(fused.reparam_report, "1", "verification failed")
    unverified = reparam.fuse(model, rules={Doubling: wrong}, verify=False)
    assert relative_error(run(unverified, (x,)), run(model, (x,))) > 1e-4


def test_one_wrong_rule_does_not_spoil_the_rest() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), Doubling(), nn.ReLU(),
                                nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))  # fmt: skip
    x = images()
    with pytest.warns(UserWarning, match="rests on the rule .*<lambda> of Doubling"):
        fused = reparam.fuse(model, rules={Doubling: lambda module, x: x.scale(3.0)})
    assert count_operators(fused, (x,)).batch_norms == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_a_rule_with_other_parameters_than_the_call() -> None:
    fused = reparam.fuse(doubled(), rules={Doubling: lambda module: module})
    assert_reported(fused.reparam_report, "1", "its rule does not know how it is called")


def test_a_rule_that_raises_is_refused_and_fusing_goes_on() -> None:
    def broken(module: Any, x: Any) -> Any:
        return x.scale(module.no_such_attribute)

    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), Doubling(), nn.ReLU(),
                                nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))  # fmt: skip
    x = images()
    fused = reparam.fuse(model, rules={Doubling: broken})
    (row,) = (row for row in fused.reparam_report.refused if row.place == "2")
    assert "broken of Doubling, at 2, raised AttributeError: " in row.reason
    assert "no_such_attribute" in row.reason
    assert count_operators(fused, (x,)).batch_norms == 0
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def test_a_network_that_is_not_traced_says_so() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if float(x.sum()) > 0 else self.conv(x)

    model = ready(Network(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4)))
    fused, x = reparam.fuse(model), images()
    for sign in (1, -1):
        assert torch.equal(run(fused, (sign * x,)), run(model, (sign * x,)))
    assert_reported(fused.reparam_report, "the model", "cannot be traced")
