"""The weight and the bias of a norm go into all that reads it, if somebody wishes it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, Network, assert_reported, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run

Forward = Callable[[Any, Tensor], Any]
C = 4


def randomised(model: nn.Module) -> nn.Module:
    """In float64, with weights and biases of which none is the identity."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=generator) * 1.2 - 0.3)
    return ready(model)


class OwnNorm(nn.LayerNorm):
    """A norm of somebody's own, over the channels of images."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def network(forward: Forward) -> nn.Module:
    parts: dict[str, Any] = {
        "layer": nn.LayerNorm(C),
        "unbiased": nn.LayerNorm(C, bias=False),
        "bare": nn.LayerNorm(C, elementwise_affine=False),
        "rms": nn.RMSNorm(C),
        "groups": nn.GroupNorm(2, C),
        "instances": nn.InstanceNorm2d(C, affine=True),
        "own": OwnNorm(C),
        "positions": nn.LayerNorm((6, C)),
        "q": nn.Linear(C, C, bias=False),
        "k": nn.Linear(C, C),
        "v": nn.Linear(C, 3 * C),
        "point": nn.Conv2d(C, 6, 1),
        "patches": nn.Conv2d(C, 6, 2, stride=2, bias=False),
        "padded": nn.Conv2d(C, 6, 3, padding=1),
        "depthwise": nn.Conv2d(C, C, 3, groups=C),
        "norm": nn.BatchNorm2d(6),
        "drop": nn.Dropout(0.5),
        "attention": nn.MultiheadAttention(C, 2, batch_first=True),
        "g": torch.rand(C) + 0.5,
        "b": torch.rand(C) + 0.5,
    }
    return randomised(Network(forward, **parts))


def tokens() -> Tensor:
    return torch.randn(2, 6, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def folded(report: Any) -> int:
    """How many norms have left their weights to what reads them."""
    return sum("without a weight" in row.result for row in report.fused)


def assert_folds(forward: Forward, x: Tensor, norms: int, *, examples: bool = False) -> Any:
    """So many norms have no weight any more, exactly; nothing is dearer, or left to do."""
    model = network(forward)
    fused = reparam.fuse(model, x if examples else None, fold_norms=True)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert folded(fused.reparam_report) == norms, fused.reparam_report
    before, after = count_operators(model, (x,)), count_operators(fused, (x,))
    assert after.total <= before.total
    assert after.macs <= before.macs
    again = reparam.fuse(fused, x if examples else None, fold_norms=True)
    assert not again.reparam_report.fused
    return fused


def chunks(m: Any, x: Tensor) -> Tensor:
    q, k, v = m.v(m.layer(x)).chunk(3, -1)
    return F.scaled_dot_product_attention(q, k, v)


def in_place(m: Any, x: Tensor) -> Tensor:
    y = m.layer(x)
    y.mul_(m.g)
    y += m.b
    return m.k(y).relu()


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.k(m.layer(x)).relu(),
        lambda m, x: m.q(m.unbiased(x)).relu(),
        lambda m, x: (y := m.rms(x), m.q(y) @ m.k(y).mT @ m.v(y))[1],
        lambda m, x: m.k(m.drop(m.layer(x).contiguous())).relu(),
        lambda m, x: F.linear(F.layer_norm(x, (C,), m.g, m.b), m.k.weight).relu(),
        lambda m, x: F.linear(F.rms_norm(x, (C,), m.g), m.k.weight).relu(),
        lambda m, x: m.k(m.layer(x) * m.g + m.b).relu(),
        lambda m, x: (y := m.layer(x) * m.g, m.k(y).relu() * m.q(y))[1],
        lambda m, x: ((y := m.layer(x)) + m.k(y)).relu(),
        lambda m, x: m.k(y := m.layer(x)).relu() * y.shape[-1],
        chunks,
        in_place,
    ],
)
def test_norms_of_rows(forward: Forward) -> None:
    assert_folds(forward, tokens(), 1)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.point(m.groups(x)).relu(),
        lambda m, x: m.patches(m.groups(x)).relu(),
        lambda m, x: m.depthwise(m.groups(x)).relu(),
        lambda m, x: m.point(m.instances(x)).relu(),
        lambda m, x: m.norm(m.point(m.groups(x))).relu(),
        lambda m, x: m.point(F.adaptive_avg_pool2d(m.groups(x), 1)).relu(),
        lambda m, x: m.patches(m.own(x)).relu(),
        lambda m, x: m.padded(m.rms(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)).relu(),
    ],
)
def test_norms_of_images(forward: Forward) -> None:
    assert_folds(forward, images(C), 1)


@pytest.mark.parametrize(
    ("forward", "x"),
    [
        (lambda m, x: m.k(m.layer(x)[:, 0]).relu(), tokens()),
        (lambda m, x: m.k(m.layer(x).mean(1)).relu(), tokens()),
        (lambda m, x: m.k(m.groups(x).flatten(2).transpose(1, 2)).relu(), images(C)),
    ],
)
def test_views_of_a_norm_whose_axes_are_known(forward: Forward, x: Tensor) -> None:
    assert_folds(forward, x, 1, examples=True)


def test_what_is_taken_for_granted_of_a_view_is_checked() -> None:
    fused = assert_folds(lambda m, x: m.k(m.layer(x)[:, 0]).relu(), tokens(), 1, examples=True)
    with pytest.raises(reparam.ReparamError, match="axes"):
        fused(torch.randn(C, C, dtype=torch.float64))


@pytest.mark.parametrize(
    ("forward", "x", "reason"),
    [
        (lambda m, x: (y := m.layer(x)) + m.k(y).relu(), tokens(), "read by add"),
        (lambda m, x: (m.k(y := m.layer(x)).relu(), y)[0] + y, tokens(), "read by add"),
        (lambda m, x: (m.k(y := m.layer(x)), y), tokens(), "it is returned"),
        (lambda m, x: m.attention(y := m.layer(x), y, y)[0], tokens(), "read by attention"),
        (lambda m, x: m.k(y := m.layer(x)) + y.relu_(), tokens(), "read by relu_"),
        (lambda m, x: m.k(m.layer(x).relu()), tokens(), "read by relu"),
        (lambda m, x: m.k(m.layer(x)).relu() + m.k(x), tokens(), "is used elsewhere, too"),
        (
            lambda m, x: m.k(m.layer(x)).relu() * m.k.weight.norm(),
            tokens(),
            "is used elsewhere, too",
        ),
        (
            lambda m, x: m.k(m.layer(x)).relu() + m.k(m.rms(x.sin())),
            tokens(),
            "is used elsewhere, too",
        ),
        (
            lambda m, x: (
                y := m.layer(x).chunk(2, -1),
                y[0].relu() * F.linear(y[1], m.q.weight[:2, :2]),
            )[1],
            tokens(),
            "read by chunk",
        ),
        (lambda m, x: F.linear(m.layer(x).flatten(1), x.flatten(1)), tokens(), "no linear layer"),
    ],
)
def test_what_cannot_take_a_weight_in(forward: Forward, x: Tensor, reason: str) -> None:
    fused = assert_folds(forward, x, 0)
    assert_reported(fused.reparam_report, "layer", reason)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda m, x: m.padded(m.groups(x)), "zero padding after a bias"),
        (lambda m, x: m.point(F.avg_pool2d(m.groups(x), 3, 1, 1)).relu(), "a bias does not pass"),
        (lambda m, x: m.point(F.max_pool2d(m.groups(x), 2)).relu(), "read by max_pool2d"),
    ],
)
def test_what_lies_between_a_norm_and_a_convolution(forward: Forward, reason: str) -> None:
    assert_reported(assert_folds(forward, images(C), 0).reparam_report, "groups", reason)


@pytest.mark.parametrize(
    ("forward", "x", "place", "reason"),
    [
        (lambda m, x: m.k(m.positions(x)), tokens(), "positions", "more axes than that of the"),
        (lambda m, x: m.k(F.layer_norm(x, (C,), x[0, 0])), tokens(), "layer_norm", "is computed"),
        (lambda m, x: m.q(F.group_norm(x, 2, m.g)), images(C), "group_norm", "axes of its input"),
    ],
)
def test_a_norm_whose_weight_stays_says_why(
    forward: Forward, x: Tensor, place: str, reason: str
) -> None:
    model = network(forward)
    assert_reported(reparam.plan(model, fold_norms=True), place, reason)
    assert not reparam.plan(model).refused


def test_channels_must_stay_what_they_are() -> None:
    """A linear layer over positions reads no channel of the norm."""
    x = tokens()[:, :C]
    fused = assert_folds(lambda m, x: m.k(m.layer(x).transpose(1, 2)).relu(), x, 0, examples=True)
    assert_reported(fused.reparam_report, "layer", "along another axis")


def test_it_is_done_only_where_somebody_wishes_it() -> None:
    model = network(lambda m, x: m.k(m.layer(x)).relu())
    assert not reparam.plan(model).fused
    assert not reparam.fuse(model).reparam_report.refused
    plan = reparam.plan(model, fold_norms=True)
    assert [row.counts for row in plan.fused] == [(1, 1), (1, 1)]
    assert [row.result for row in plan.fused] == [
        "layer norm without a weight, 4",
        "linear 4 -> 4, with the weight of a norm",
    ]
    with torch.no_grad():
        model.layer.weight.mul_(2)
    assert folded(plan.apply().reparam_report) == 1  # planned again, as it was asked for


def test_a_layer_that_always_reads_the_same_norm_has_one_new_weight() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        for _ in range(3):
            x = x + m.k(m.layer(x)).relu()
        return x

    fused = assert_folds(forward, tokens(), 3)
    assert (fused.k, fused.layer) == (None, None)
    new = [name for name, _ in fused.named_parameters() if name.startswith("fused")]
    assert new == ["fused_linear.weight", "fused_linear.bias"]


def test_a_norm_that_is_needed_elsewhere_too_keeps_its_weight_there() -> None:
    fused = assert_folds(lambda m, x: m.k(m.layer(x)).relu() + m.layer(x.sin()).cos(), tokens(), 1)
    assert fused.layer.weight is not None


class Attention(nn.Module):
    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=bias) for _ in range(3))
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))


class Gated(nn.Module):
    def __init__(self, width: int, *, bias: bool) -> None:
        super().__init__()
        self.gate, self.up = (nn.Linear(width, 2 * width, bias=bias) for _ in range(2))
        self.down = nn.Linear(2 * width, width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    def __init__(self, norm: type[nn.Module], width: int = 8, *, bias: bool = False) -> None:
        super().__init__()
        self.first, self.second = norm(width), norm(width)
        self.attention = Attention(width, bias=bias)
        self.gated = Gated(width, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.first(x))
        return x + self.gated(self.second(x))


class Language(nn.Module):
    """A language model, its head tied to the embedding or not."""

    def __init__(self, norm: type[nn.Module] = nn.RMSNorm, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.blocks = nn.Sequential(Block(norm), Block(norm))
        self.norm, self.head = norm(8), nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(words))))
        return logits


class WrittenOut(nn.Module):
    """A norm by the root mean square as language models write it: arithmetic, with a weight."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * x.to(dtype)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_block_of_a_transformer(norm: type[nn.Module]) -> None:
    model = randomised(Block(norm))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    fused = reparam.fuse(model, fold_norms=True)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    assert folded(fused.reparam_report) == 2
    assert len(fused.reparam_report.fused) == 2 + 3 + 2
    assert count_operators(fused, (x,)).total <= count_operators(model, (x,)).total
    # All stay where they were; only a norm with a bias gives its readers one.
    shifts = norm is nn.LayerNorm
    taking = [fused.attention.q, fused.attention.k, fused.attention.v, fused.gated.gate]
    assert all((layer.bias is not None) == shifts for layer in (*taking, fused.gated.up))
    assert fused.attention.out.bias is None
    assert type(fused.first) is type(fused.second) is norm
    assert not list(fused.first.parameters())
    assert not any("fused" in name for name, _ in fused.named_modules())


def test_a_norm_that_is_written_out_needs_no_wish() -> None:
    """Its weight is a scale like any other: one operator less for each norm."""
    model, words = randomised(Language(WrittenOut)), torch.randint(0, 11, (2, 5))
    fused = reparam.fuse(model)
    assert relative_error(run(fused, (words,)), run(model, (words,))) <= EXACT
    before, after = count_operators(model, (words,)), count_operators(fused, (words,))
    assert before.total - after.total == 5


@pytest.mark.parametrize("tied", [False, True])
def test_tied_weights_stay_tied(tied: bool) -> None:
    model, words = randomised(Language(tied=tied)), torch.randint(0, 11, (2, 5))
    fused = reparam.fuse(model, fold_norms=True)
    assert relative_error(run(fused, (words,)), run(model, (words,))) <= EXACT
    assert folded(fused.reparam_report) == 4 + (not tied)
    assert (fused.head.weight is fused.embedding.weight) == tied
    if tied:
        assert_reported(fused.reparam_report, "norm", "the weight of head")


def test_it_trains() -> None:
    """All that is left of the weights gets a gradient, and what was folded trains on."""
    model, x = randomised(Block(nn.LayerNorm)), torch.randn(2, 5, 8, dtype=torch.float64)
    fused = reparam.fuse(model, fold_norms=True).train()
    before = fused(x).detach()
    fused(x).square().sum().backward()
    assert all(parameter.grad is not None for parameter in fused.parameters())
    torch.optim.SGD(fused.parameters(), 0.01).step()
    assert relative_error(fused(x).detach(), before) > EXACT
    fresh = reparam.fuse(model, fold_norms=True)
    fresh.load_state_dict(fused.state_dict())
    assert torch.equal(fresh(x), fused.eval()(x))
    assert not reparam.fuse(fused, fold_norms=True).reparam_report.fused


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_types(dtype: torch.dtype) -> None:
    model = randomised(Block(nn.LayerNorm)).to(dtype)
    fused = reparam.fuse(model, fold_norms=True)
    assert folded(fused.reparam_report) == 2
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    error = relative_error(run(fused.double(), (x,)), run(model.double(), (x,)))
    assert error <= 32 * torch.finfo(dtype).eps


def test_what_overflows_stays() -> None:
    model = randomised(Block(nn.LayerNorm)).half()
    with torch.no_grad():
        model.attention.q.weight.fill_(3e4)
        model.first.weight.fill_(4)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fused = reparam.fuse(model, fold_norms=True)
    assert "overflow" in str(caught[0].message)
    assert folded(fused.reparam_report) == 1
    assert_reported(fused.reparam_report, "first", "q cannot take its weight in: the fused weights")
    assert torch.equal(fused.first.weight, model.first.weight)


def test_a_norm_of_another_type_than_its_readers_stays() -> None:
    model = randomised(Block(nn.LayerNorm)).bfloat16()
    model.first.float()
    fused = reparam.fuse(model, fold_norms=True)
    assert folded(fused.reparam_report) == 1
    assert_reported(fused.reparam_report, "first", "different dtypes")


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("core", [False, True])
def test_an_exported_program(norm: type[nn.Module], core: bool) -> None:
    model, x = randomised(Block(norm, bias=True)), torch.randn(2, 5, 8, dtype=torch.float64)
    program = torch.export.export(model, (x,))
    program = program.run_decompositions() if core else program
    fused = reparam.fuse(program, fold_norms=True)
    assert relative_error(run(fused.module(), (x,)), run(model, (x,))) <= EXACT
    assert not any("first" in name or "second" in name for name in fused.state_dict)


def test_in_place_and_with_hooks() -> None:
    model, x = randomised(Block(nn.LayerNorm)), torch.randn(2, 5, 8, dtype=torch.float64)
    seen: list[Tensor] = []
    model.first.register_forward_hook(lambda *args: seen.append(args[2]))
    expected = run(model, (x,))
    assert reparam.fuse(model, inplace=True, fold_norms=True) is model
    assert relative_error(run(model, (x,)), expected) <= EXACT
    assert folded(model.reparam_report) == 1
    assert len(seen) == 2
    assert torch.equal(*seen)


def test_its_page_names_the_norm(tmp_path: Any) -> None:
    plan = reparam.plan(randomised(Block(nn.LayerNorm)), fold_norms=True)
    plan.to_html(tmp_path / "plan.html")
    page = (tmp_path / "plan.html").read_text(encoding="utf-8")
    assert "K<sub>first → attention.q</sub> ⋆ x + c" in page


@pytest.mark.parametrize("cost", ["memory", "latency"])
def test_other_costs(cost: str) -> None:
    model, x = randomised(Block(nn.RMSNorm)), torch.randn(2, 5, 8, dtype=torch.float64)
    fused = reparam.fuse(model, x, fold_norms=True, cost=cost)
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    if cost == "memory":
        assert folded(fused.reparam_report) == 2


class Optional(nn.Module):
    """A norm and its reader in code that options, and other kinds of inputs, take another way."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.reader = nn.LayerNorm(C), nn.Linear(C, C)
        self.kept: Any = None

    def forward(self, x: Any, scale: bool = False, **options: Any) -> Tensor:
        if isinstance(x, dict):
            x = x["x"] if "mask" not in x else x["x"] * x["mask"]
        y = (torch.stack(x) if isinstance(x, list) else x).softmax(-1)
        if scale:
            y = y * 2
        if options.get("keep"):
            self.kept = y
        return y + self.reader(self.norm(y)).relu()


def test_code_that_stays_as_it_was_runs_all_of_a_fold_or_nothing() -> None:
    """Found by a reviewer: the norm had no weight where its reader was still the old one."""
    model, x = randomised(Optional()), tokens()
    for example_inputs in (None, x):
        fused = reparam.fuse(model, example_inputs, fold_norms=True)
        assert folded(fused.reparam_report) == 1
        for arguments, options in (
            ((x,), {}), ((x,), {"scale": True}), ((x,), {"other": 1}), ((x,), {"keep": True}),
            (([x, x],), {}), (({"x": x},), {}), (({"x": x, "mask": x},), {}),
        ):  # fmt: skip
            with torch.no_grad():
                result, expected = (m(*arguments, **options) for m in (fused, model))
            assert relative_error(result, expected) <= EXACT


def test_a_block_of_which_calls_differ_is_right_by_itself() -> None:
    class Stack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList([Optional(), Optional()])

        def forward(self, x: Tensor) -> Tensor:
            for index, block in enumerate(self.blocks):
                x = block(x, scale=index == 0)
            return x

    model, x = randomised(Stack()), tokens()
    fused = reparam.fuse(model, fold_norms=True)
    assert folded(fused.reparam_report) == 2
    assert relative_error(run(fused, (x,)), run(model, (x,))) <= EXACT
    for mine, original in zip(fused.blocks, model.blocks, strict=True):
        assert relative_error(run(mine, (x,)), run(original, (x,))) <= EXACT
