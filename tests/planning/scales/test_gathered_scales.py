"""Scales of parts of a concatenation move into what alone reads it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import (
    EXACT,
    Network,
    assert_gradients_and_states_agree,
    assert_reported,
    fused_no_dearer,
    images,
    ready,
)
from tests.support.counting import OperatorCounts, count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Any]


def network(forward: Forward) -> nn.Module:
    """Scales of four channels, and what may read them side by side with others."""
    return ready(
        Network(
            forward,
            a=nn.Conv2d(4, 4, 1),
            b=nn.Conv2d(4, 4, 1),
            norm=nn.BatchNorm2d(4),
            other=nn.BatchNorm2d(4),
            wide=nn.BatchNorm2d(8),
            gamma=torch.linspace(0.5, 2, 4)[:, None, None],
            depthwise=nn.Conv2d(4, 4, 1, groups=4),
            dropout=nn.Dropout(),
            point=nn.Conv2d(8, 6, 1),
            second=nn.Conv2d(8, 5, 1, bias=False),
            three=nn.Conv2d(12, 6, 1),
            square=nn.Conv2d(8, 8, 1),
            grouped=nn.Conv2d(8, 6, 1, groups=2),
            kernel=nn.Conv2d(8, 6, 3),
            padded=nn.Conv2d(8, 6, 3, padding=1),
            reflected=nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"),
            up=nn.ConvTranspose2d(8, 6, 2, stride=2),
            linear=nn.Linear(8, 6),
            last=nn.BatchNorm2d(6),
            pool=nn.AvgPool2d(2),
            zeros=nn.AvgPool2d(3, padding=1),
        )
    )


def fused(forward: Forward, **options: Any) -> tuple[nn.Module, OperatorCounts]:
    return fused_no_dearer(network(forward), **options)


def pair(m: Any, x: Tensor) -> Tensor:
    return torch.cat([m.a(x).relu(), m.norm(m.b(x).sigmoid())], 1)


GATHERED: dict[str, Forward] = {
    "a norm of the last part": lambda m, x: m.point(pair(m, x)),
    "a norm of the first part": lambda m, x: m.point(
        torch.cat([m.norm(m.a(x).relu()), m.b(x).sigmoid()], 1)
    ),
    "norms of both parts": lambda m, x: m.point(
        torch.cat([m.norm(m.a(x).relu()), m.other(m.b(x).sigmoid())], 1)
    ),
    "norms of two of three parts": lambda m, x: m.three(
        torch.cat([m.norm(m.a(x).relu()), m.a(x).tanh(), m.other(m.b(x).sigmoid())], 1)
    ),
    "a norm and a factor in a row": lambda m, x: m.point(
        torch.cat([m.a(x).relu(), m.norm(m.b(x).sigmoid()) * m.gamma], 1)
    ),
    "a factor": lambda m, x: m.point(torch.cat([m.a(x).relu(), m.b(x).sigmoid() * m.gamma], 1)),
    "a number": lambda m, x: m.point(
        torch.cat([m.norm(m.a(x).relu()), m.b(x).sigmoid() / 2 + 1], 1)
    ),
    "a depthwise convolution": lambda m, x: m.point(
        torch.cat([m.a(x).relu(), m.depthwise(m.b(x).sigmoid())], 1)
    ),
    "a scale that is a sum": lambda m, x: m.point(
        torch.cat([m.a(x).relu(), m.norm(y := m.b(x).sigmoid()) + 2 * y], 1)
    ),
    "the same value twice": lambda m, x: m.point(torch.cat([y := m.norm(m.a(x).relu()), y], 1)),
    "the value without its norm, too": lambda m, x: m.point(
        torch.cat([y := m.a(x).relu(), m.norm(y)], 1)
    ),
    "one concatenation in another": lambda m, x: m.three(
        torch.cat(
            [torch.cat([m.a(x).relu(), m.norm(m.b(x).sigmoid())], 1), m.other(m.a(x).tanh())], 1
        )
    ),
    "an identity in between": lambda m, x: m.point(
        m.dropout(torch.cat([m.a(x).relu(), m.dropout(m.norm(m.b(x).sigmoid()))], 1))
    ),
    "a sum of what reads it": lambda m, x: m.square(y := pair(m, x)) + y,
    "groups": lambda m, x: m.grouped(pair(m, x)),
    "a kernel without padding": lambda m, x: m.kernel(pair(m, x)),
    "padding by reflection": lambda m, x: m.reflected(pair(m, x)),
    "a factor before padding with zeros": lambda m, x: m.padded(
        torch.cat([m.gamma * m.a(x).relu(), m.b(x).sigmoid()], 1)
    ),
    "a factor before a transposed convolution": lambda m, x: m.up(
        torch.cat([3 * m.a(x).relu(), m.b(x).sigmoid()], 1)
    ),
    "a norm after the convolution": lambda m, x: m.last(m.point(pair(m, x))),
    "a norm before the convolution": lambda m, x: m.point(m.wide(pair(m, x))),
    "an axis moved in between": lambda m, x: m.linear(pair(m, x).permute(0, 2, 3, 1)),
    "a pool in between": lambda m, x: m.point(m.pool(pair(m, x))),
    "a factor before a pool that counts zeros": lambda m, x: m.point(
        m.zeros(torch.cat([3 * m.a(x).relu(), m.b(x).sigmoid()], 1))
    ),
    "two convolutions": lambda m, x: (m.point(y := pair(m, x)), m.second(y)),
    "two convolutions behind one pool": lambda m, x: (
        m.point(y := m.pool(pair(m, x))),
        m.second(y),
    ),
    "a shape that is read": lambda m, x: m.point(y := pair(m, x)).flatten(y.ndim - 2),
    "a norm in place": lambda m, x: m.point(
        torch.cat([m.a(x).relu(), m.b(x).sigmoid().mul_(m.gamma)], 1)
    ),
}


@pytest.mark.parametrize("case", GATHERED)
def test_what_reads_them_all_takes_the_scale_of_one_in(case: str) -> None:
    result, counts = fused(GATHERED[case])
    assert counts.batch_norms == counts.additions == counts.multiplications == 0
    before = count_operators(network(GATHERED[case]), (images(),))
    depthwise = case == "a depthwise convolution"
    assert counts.convolutions == before.convolutions - depthwise, result.reparam_report


def test_a_norm_of_all_takes_the_norm_of_a_part_in() -> None:
    _, counts = fused(lambda m, x: m.wide(pair(m, x)).relu())
    assert counts.batch_norms == 1


def test_an_inner_concatenation_that_became_one_operator_stays_that() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x.relu()
        inner = torch.cat([m.a(y), m.norm(m.b(y))], 1)
        both: Tensor = m.three(torch.cat([inner, m.other(x.sigmoid())], 1))
        return both

    _, counts = fused(forward, example_inputs=images())
    assert (counts.convolutions, counts.batch_norms) == (2, 0)


def test_a_scaled_concatenation_of_few_values_in_one_of_many() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = m.a(x).relu()
        inner = torch.cat([y * 2, y * 3], 1)
        both: Tensor = m.three(torch.cat([inner, m.other(x.sigmoid())], 1))
        return both

    _, counts = fused(forward, example_inputs=images())
    assert (counts.batch_norms, counts.multiplications) == (0, 0)


def test_a_thousand_concatenations_in_each_other() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.norm(m.a(x).relu()), m.b(x).relu()], 1)
        z = x[:, :1].sigmoid()
        for _ in range(1200):
            y = torch.cat([y, z], 1)
        both: Tensor = m.point(y[:, :8])
        return both

    reparam.plan(network(forward))


def test_with_example_inputs() -> None:
    _, counts = fused(lambda m, x: m.point(pair(m, x)), example_inputs=images())
    assert counts.batch_norms == 0


STAYS: dict[str, Forward] = {
    "zero padding after a shift": lambda m, x: m.padded(pair(m, x)),
    "a transposed convolution after a shift": lambda m, x: m.up(pair(m, x)),
    "a shift before a pool that counts zeros": lambda m, x: m.point(m.zeros(pair(m, x))),
    "the concatenation is read elsewhere": lambda m, x: (m.point(y := pair(m, x)), y),
    "the concatenation is read elsewhere, too": lambda m, x: (
        m.point(y := pair(m, x)),
        y.relu().sum(),
    ),
    "the norm is read elsewhere": lambda m, x: (
        m.point(torch.cat([m.a(x).relu(), y := m.norm(m.b(x).sigmoid())], 1)),
        y,
    ),
    "one of two readers cannot": lambda m, x: (m.point(y := pair(m, x)), m.padded(y)),
    "what lies in between is read elsewhere": lambda m, x: (
        m.point(y := m.pool(pair(m, x))),
        y.relu(),
    ),
    "a term of a sum of what reads it is read elsewhere": lambda m, x: (
        (z := m.square(y := pair(m, x))) + y,
        z.relu(),
    ),
    "no operator that takes it in": lambda m, x: pair(m, x).relu(),
    "along the height": lambda m, x: m.point(
        torch.cat([torch.cat([m.norm(m.a(x).relu()), m.b(x).sigmoid()], 2)] * 2, 1)
    ),
    "an inner concatenation that is read elsewhere": lambda m, x: (
        m.three(torch.cat([y := pair(m, x), m.a(x).tanh()], 1)),
        y.relu(),
    ),
}


@pytest.mark.parametrize("case", STAYS)
def test_otherwise_it_stays(case: str) -> None:
    _, counts = fused(STAYS[case])
    assert counts.batch_norms == 1


def test_what_was_scaled_is_not_written_to_before_it_is_read() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x.sigmoid()
        scaled = m.norm(y)
        y.relu_()
        both: Tensor = m.point(torch.cat([y, scaled], 1))
        return both

    _, counts = fused(forward)
    assert counts.batch_norms == 1


def test_a_write_to_what_was_scaled_after_the_concatenation_does_not_matter() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        y = x.sigmoid()
        both = torch.cat([x.relu(), m.norm(y)], 1)
        y.relu_()
        return m.point(both), y

    with torch.no_grad():
        _, counts = fused(forward)
    assert counts.batch_norms == 0


def test_a_write_to_the_concatenation_keeps_it() -> None:
    def forward(m: Any, x: Tensor) -> Any:
        both = pair(m, x)
        both[:, 2:6].relu_()
        return m.point(both)

    _, counts = fused(forward)
    assert counts.batch_norms == 1


def test_a_hook_sees_what_it_saw() -> None:
    model = network(lambda m, x: m.point(pair(m, x)))
    seen: list[Tensor] = []
    model.norm.register_forward_hook(lambda module, args, result: seen.append(result))
    result = reparam.fuse(model)
    assert count_operators(result, (images(),)).batch_norms == 1


def test_a_shared_norm_that_others_run_stays_there() -> None:
    _, counts = fused(lambda m, x: m.norm(m.point(pair(m, x))[:, :4].sigmoid()).relu())
    assert counts.batch_norms == 1


def test_what_no_float_may_be_is_not_read_unscaled() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        counted = (x > 0).long()
        result: Tensor = m.point(torch.cat([counted * 0.5, counted * 0.25], 1).to(x.dtype))
        return result

    fused(forward)


def test_parameters_of_another_type_stay() -> None:
    model = network(lambda m, x: m.point(torch.cat([x.relu(), x.sigmoid() * m.gamma], 1)))
    model.gamma = nn.Parameter(model.gamma.detach().float())
    result = reparam.fuse(model)
    x = images()
    assert relative_error(run(result, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(result, (x,)).multiplications == 1


class Neck(nn.Module):
    """A module that gives a concatenation, of which a part is normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x.relu(), self.norm(x.sigmoid())], 1)


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.neck, self.conv = Neck(), nn.Conv2d(8, 6, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.neck(x)).relu()
        return result


class HeadWithFeatures(Head):
    def forward_features(self, x: Tensor) -> Any:
        return self.neck(x)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.conv(self.forward_features(x)).relu()
        return result


def test_modules_keep_their_places() -> None:
    model = ready(Head())
    result = reparam.fuse(model)
    x = images()
    assert relative_error(run(result, (x,)), run(model, (x,))) <= EXACT
    assert not any("forward" in vars(module) for module in result.modules())
    assert isinstance(result.neck.norm, nn.Identity)


def test_a_method_that_gives_the_concatenation_gives_what_it_gave() -> None:
    model = ready(HeadWithFeatures())
    result = reparam.fuse(model)
    x = images()
    assert relative_error(run(result, (x,)), run(model, (x,))) <= EXACT
    with torch.no_grad():
        assert torch.allclose(result.forward_features(x), model.forward_features(x))


class Twice(nn.Module):
    """One block, called twice, and one whose parts meet in its caller."""

    def __init__(self) -> None:
        super().__init__()
        self.neck, self.conv, self.other = Neck(), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.neck(x)).relu()
        result: Tensor = self.other(self.neck(y)).relu()
        return result


def test_a_block_whose_other_call_wants_its_norm_keeps_it_there() -> None:
    model = ready(Twice())
    result = reparam.fuse(model)
    x = images()
    assert relative_error(run(result, (x,)), run(model, (x,))) <= EXACT
    assert count_operators(result, (x,)).batch_norms == 1


def test_a_fused_model_trains_as_the_composition_does() -> None:
    """Its state is that of an ordinary model, and gradients reach what is in front."""
    assert_gradients_and_states_agree(ready(Head()))


def test_an_exported_program() -> None:
    model = network(lambda m, x: m.point(pair(m, x)))
    program = torch.export.export(model, (images(),))
    result = reparam.fuse(program)
    assert relative_error(run(result.module(), (images(),)), run(model, (images(),))) <= EXACT
    assert not [node for node in result.graph.nodes if "batch_norm" in str(node.target)]


def test_the_page_of_a_plan_draws_it(tmp_path: Any) -> None:
    pytest.importorskip("jinja2")
    plan = reparam.plan(network(lambda m, x: m.point(pair(m, x))))
    plan.to_html(tmp_path / "plan.html")
    assert "BatchNorm2d" in (tmp_path / "plan.html").read_text(encoding="utf-8")


def test_the_report_says_why_a_norm_of_a_part_stays() -> None:
    result, _ = fused(lambda m, x: m.padded(pair(m, x)))
    assert_reported(result.reparam_report, "norm", "zero padding after a bias")
