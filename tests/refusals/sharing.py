"""Weights and values that somebody else reads too: right, or left alone."""

from __future__ import annotations

import types
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import (
    EXACT,
    VISIBLE,
    Network,
    assert_refused,
    assert_reported,
    differs,
    fold_in_place,
    images,
    ready,
)
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


def assert_right(model: nn.Module, naive: Callable[..., Any], x: Tensor) -> nn.Module:
    """The fused network is right where a naive fusion is not; returns it."""
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert differs(naive, model, x)
    return fused


def folded_in_place(model: nn.Module, norm: str = "norm", conv: str = "conv") -> nn.Module:
    naive = deepcopy(model)
    fold_in_place(naive.get_submodule(norm), naive.get_submodule(conv))
    return naive


def conv_and_norm(forward: Callable[..., Any], **more: Any) -> nn.Module:
    return ready(Network(forward, conv=nn.Conv2d(4, 4, 3), norm=nn.BatchNorm2d(4), **more))


def test_a_convolution_called_twice_and_normalised_once() -> None:
    model = conv_and_norm(lambda self, x: self.norm(self.conv(x)) + self.conv(x).relu())
    assert_right(model, folded_in_place(model), images())


def test_a_convolution_called_twice_on_different_inputs() -> None:
    model = conv_and_norm(lambda self, x: self.norm(self.conv(x)) + self.conv(x.relu()))
    assert_right(model, folded_in_place(model), images())


def test_a_weight_that_forward_reads() -> None:
    model = conv_and_norm(lambda self, x: self.norm(self.conv(x)) + self.conv.weight.sum())
    assert_right(model, folded_in_place(model), images())


def test_a_weight_that_forward_reads_in_a_branch() -> None:
    model = conv_and_norm(
        lambda self, x: self.norm(self.conv(x)) + F.conv2d(x.relu(), self.conv.weight)
    )
    assert_right(model, folded_in_place(model), images())


def test_a_batch_norm_shared_by_two_convolutions() -> None:
    model = conv_and_norm(
        lambda self, x: self.norm(self.conv(x)).relu() + self.norm(self.other(x.relu())),
        other=nn.Conv2d(4, 4, 3),
    )
    assert_right(model, folded_in_place(model), images())


def test_tied_weights() -> None:
    model = conv_and_norm(
        lambda self, x: self.norm(self.conv(x)).relu() + self.other(x), other=nn.Conv2d(4, 4, 3)
    )
    model.other.weight = model.conv.weight
    naive = folded_in_place(model)
    assert naive.other.weight is naive.conv.weight
    fused = assert_right(model, naive, images())
    assert fused.other.weight is not model.other.weight


def test_one_module_under_two_names() -> None:
    model = conv_and_norm(lambda self, x: self.norm(self.conv(x)).relu() + self.alias(x))
    model.alias = model.conv
    assert_right(model, folded_in_place(model), images())


def test_an_intermediate_value_that_is_an_output() -> None:
    def both(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y, self.norm(y)

    model = conv_and_norm(both)
    naive = folded_in_place(model)
    assert_refused(model, images(), "norm", "conv is also read by output", naive=naive)


def test_an_intermediate_value_in_a_dictionary() -> None:
    def both(self: Any, x: Tensor) -> dict[str, Tensor]:
        features = {"stem": self.conv(x)}
        features["out"] = self.norm(features["stem"])
        return features

    model = conv_and_norm(both)
    assert_refused(model, images(), "norm", "also read by output", naive=folded_in_place(model))


def test_a_value_with_a_second_reader() -> None:
    model = conv_and_norm(lambda self, x: (y := self.conv(x)).relu() + self.norm(y))
    assert_refused(model, images(), "norm", "also read by", naive=folded_in_place(model))


def test_writing_in_place_to_a_value_of_which_a_view_is_read_later() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        view = y.flatten(2)
        z = y.mul_(2.0)
        return z + view.view_as(z).relu()

    model = conv_and_norm(forward)

    def naive(x: Tensor) -> Tensor:  # the factor moved into a convolution for the first reader
        y = model.conv(x)
        return y * 2.0 + y.relu()

    reason = "writes in place to a value that is read later"
    assert_refused(model, images(), "mul_", reason, naive=naive)


def test_writing_in_place_to_a_value_that_a_callee_was_given() -> None:
    """The caller's code cannot name what its part made in place, and reads the old value."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.part(y)
        return y.relu()

    part = Network(lambda self, y: y.mul_(2.0) + 1)
    model = conv_and_norm(forward, part=part)

    def naive(x: Tensor) -> Tensor:
        return model.conv(x).relu()

    reason = "it writes in place, and nobody reads the result"
    assert_refused(model, images(), "part (mul_)", reason, naive=naive)


def test_a_value_is_read_under_its_old_name_after_a_write() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.mul_(2.0)
        torch.relu_(y)
        y.add_(1.0)
        return self.other(y) + self.norm(y)

    model, x = conv_and_norm(forward, other=nn.Conv2d(4, 4, 1)), images()
    fused = assert_right(model, lambda x: model.norm(model.other(model.conv(x).relu())), x)
    assert count_operators(fused, (x,)).affine == 2


def test_writing_to_a_part_of_a_value() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        y[:, :2].relu_()
        return self.norm(y)

    model = conv_and_norm(forward)
    naive = folded_in_place(model)
    naive.function = lambda self, x: self.norm(self.conv(x))
    assert_refused(model, images(), "norm", "conv is also read by", naive=naive)


def assert_two_reads(write: Callable[[Tensor], Any]) -> None:
    """Two branches that read a value before and after it is written to stay apart."""

    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.sigmoid()
        y = self.conv(x)
        write(x)
        return y + self.other(x)

    model = conv_and_norm(forward, other=nn.Conv2d(4, 4, 3))

    def naive(x: Tensor) -> Tensor:
        x = x.sigmoid()
        return model.conv(x) + model.other(x)

    fused = assert_right(model, naive, images())
    assert count_operators(fused, (images(),)).convolutions == 2


def test_writing_between_the_reads_of_two_branches() -> None:
    assert_two_reads(lambda x: x.sub_(0.5).relu_())


def test_writing_to_a_value_on_the_way_between_its_reads() -> None:
    """Nobody writes to what one operator instead would read."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = x * self.factor
        z = self.conv(x) + self.other(y)
        y.relu_()
        return z + y

    parts = {name: nn.Conv2d(4, 4, 3, padding=1) for name in ("conv", "other")}
    factor = torch.linspace(0.5, 2, 4).view(4, 1, 1)
    model, x = ready(Network(forward, **parts, factor=factor)), images()

    def naive(x: Tensor) -> Tensor:
        y = x * model.factor
        return model.conv(x) + model.other(y) + y

    fused = assert_right(model, naive, x)
    assert count_operators(fused, (x,)).convolutions == 1


def test_writing_through_a_view_between_the_reads_of_two_branches() -> None:
    assert_two_reads(lambda x: x.flatten(1).sub_(0.5))


def test_writing_to_the_input_in_place() -> None:
    """The caller sees it."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.conv(x.mul_(2.0))

    model, x = conv_and_norm(forward), images()
    fused, given = reparam.fuse(model), x.clone()
    with torch.no_grad():
        assert relative_error(fused(given), model(x.clone())) <= EXACT
    assert torch.equal(given, x * 2)
    assert_reported(fused.reparam_report, "mul_", "writes to the model's input")


def test_an_in_place_operator_that_nobody_sees_is_fused() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).mul_(2.0).mul_(self.gamma)).add_(1.0)

    model, x = conv_and_norm(forward, gamma=torch.randn(4, 1, 1)), images()
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).total == 1
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT


def without_activation(model: nn.Module) -> nn.Module:
    naive = folded_in_place(model, "1", "0")
    naive[1] = nn.Identity()
    return naive


def test_a_batch_norm_with_an_activation_inside() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return F.relu(super().forward(x))

    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), Activated(4), nn.Conv2d(4, 4, 1)))
    fused = assert_right(model, without_activation(model), images())
    assert count_operators(fused, (images(),)).batch_norms == 0


def test_a_batch_norm_with_an_activation_and_the_formula_inside() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            mean, variance = self.running_mean, self.running_var
            return F.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps).relu()

    model, x = ready(nn.Sequential(nn.Conv2d(4, 4, 3), Activated(4), nn.Conv2d(4, 4, 1))), images()
    fused = assert_right(model, without_activation(model), x)
    assert count_operators(fused, (x,)).total == 3


def test_a_subclass_with_a_forward_of_its_own_is_no_convolution() -> None:
    class Standardised(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias)

    model = ready(nn.Sequential(Standardised(4, 4, 3), nn.BatchNorm2d(4)))
    plain = nn.Conv2d(4, 4, 3).double()
    plain.load_state_dict(model[0].state_dict())
    fused = assert_right(model, nn.Sequential(plain, model[1]), images())
    assert count_operators(fused, (images(),)).total == 1


def test_a_forward_on_the_instance_is_the_forward() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    naive = folded_in_place(model, "1", "0")
    conv = model[0]
    conv.forward = types.MethodType(lambda self, x: F.conv2d(x, self.weight.abs(), self.bias), conv)
    fused = assert_right(model, naive, images())
    assert count_operators(fused, (images(),)).total == 1


def test_a_forward_on_the_instance_that_cannot_be_traced() -> None:
    def forward(self: nn.Conv2d, x: Tensor) -> Tensor:
        weight = self.weight.abs() if x.isfinite().all() else self.weight
        return F.conv2d(x, weight, self.bias)

    model = ready(nn.Sequential(nn.Tanh(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    naive = folded_in_place(model, "2", "1")
    model[1].forward = types.MethodType(forward, model[1])
    fused = assert_right(model, naive, images())
    assert count_operators(fused, (images(),)).batch_norms == 1


def test_batch_statistics_of_a_functional_cannot_be_folded() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        mean, var = self.norm.running_mean.clone(), self.norm.running_var.clone()
        return F.batch_norm(self.conv(x), mean, var, training=True)

    def naive(x: Tensor) -> Tensor:
        norm = model.norm
        return F.batch_norm(model.conv(x), norm.running_mean, norm.running_var)

    model = conv_and_norm(forward)
    assert_refused(model, images(), "batch_norm", "statistics of the batch", naive=naive)


def test_batch_statistics_cannot_be_folded() -> None:
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), norm))

    def naive(x: Tensor) -> Tensor:
        return model[0](x) * norm.weight[:, None, None] + norm.bias[:, None, None]

    assert_refused(model, images(), "1", "statistics of the batch", naive=naive)


def test_a_hook_keeps_its_convolution() -> None:
    seen: list[Tensor] = []
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    naive = folded_in_place(model, "1", "0")[0]
    model[0].register_forward_hook(lambda module, args, output: seen.append(output))
    fused, x = reparam.fuse(model), images()
    expected = run(model, (x,))
    assert torch.equal(run(fused, (x,)), expected)
    assert len(seen) == 2
    assert torch.equal(seen[0], seen[1])
    assert_reported(fused.reparam_report, "0", "hooks")
    with torch.no_grad():
        assert relative_error(naive(x), seen[0]) > 1e-2


def test_a_hook_that_changes_the_value() -> None:
    model = ready(nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)))
    naive = folded_in_place(model, "1", "0")
    model[1].register_forward_hook(lambda module, args, output: output.relu())
    fused = assert_right(model, naive, images())
    assert_reported(fused.reparam_report, "1", "hooks")


def test_a_part_that_eager_code_reaches_through_itself() -> None:
    """This network cannot be traced, and hands itself to a function that reaches into its block."""

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.block[0](x) if x.dim() == 4 else self.block(x)

    block = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    model = ready(Network(forward, block=block))
    fused = assert_right(model, folded_in_place(model, "block.1", "block.0"), images())
    assert_reported(fused.reparam_report, "the model", "cannot be traced")


class Inner(nn.Module):
    """A part with code of its own around one operator."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x)


class Choosing(nn.Module):
    """What lies between its convolution and its norm depends on an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = Inner(nn.Conv2d(4, 4, 3)), Inner(nn.BatchNorm2d(4))

    def forward(self, x: Tensor, activated: bool = False) -> Tensor:
        x = self.conv(x)
        return self.norm(x.relu() if activated else x)


def test_another_argument_runs_the_parts_as_they_were() -> None:
    model, x = ready(Choosing()), images()
    naive = folded_in_place(model, "norm.part", "conv.part")
    fused = reparam.fuse(model)
    assert count_operators(fused, (x,)).affine == 1
    for inputs in ((x,), (x, True), (x, False)):
        assert relative_error(run(fused, inputs), run(model, inputs)) <= EXACT
    with torch.no_grad():
        assert relative_error(naive(x, True), model(x, True)) > VISIBLE


def test_dropout_in_training_mode_of_a_functional_stays() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.norm(F.dropout(self.conv(x), 0.5, training=True))

    model, x = conv_and_norm(forward), images()
    fused = reparam.fuse(model)
    torch.manual_seed(0)
    expected = run(model, (x,))
    torch.manual_seed(0)
    assert torch.equal(run(fused, (x,)), expected)
    assert_reported(fused.reparam_report, "dropout", "training mode")
    assert differs(folded_in_place(model).eval(), model, x)
