"""A block that is called several times gets one fused operator for all calls."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn

import reparam
from tests.refusals.checking import EXACT, images, ready
from tests.support.counting import count_operators
from tests.support.errors import relative_error, run


class Block(nn.Module):
    """Two branches and their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1, bias=False)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.norm(self.conv(x) + self.point(x))
        return result.relu()


class Recurrent(nn.Module):
    """The same block again and again."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.block, self.times = Block(), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            x = self.block(x)
        return x


def convolutions(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


def assert_same(fused: nn.Module, model: nn.Module, bound: float = EXACT) -> None:
    assert relative_error(run(fused, (images(),)), run(model, (images(),))) <= bound


def test_one_operator_for_all_calls() -> None:
    model = ready(Recurrent(4))
    fused = reparam.fuse(model)
    assert_same(fused, model)
    assert len(convolutions(fused)) == 1
    assert count_operators(fused, (images(),)).total == 8
    assert sum(parameter.numel() for parameter in fused.parameters()) == 4 * 4 * 9 + 4


def assert_same_alone(fused: nn.Module, model: nn.Module) -> None:
    """A part is still there, and returns what it did when it is called by itself."""
    with torch.no_grad():
        assert relative_error(fused(images()), model(images())) <= EXACT


def test_a_block_is_fused_where_it_is() -> None:
    model = ready(Recurrent(4))
    fused = reparam.fuse(model)
    assert "forward" not in vars(fused)
    assert type(fused.block) is Block
    assert_same_alone(fused.block, model.block)


def test_blocks_within_blocks_are_fused_where_they_are() -> None:
    model = ready(nn.Sequential(Recurrent(2), nn.Sigmoid(), Recurrent(3)))
    model[2].block = model[0].block
    fused = reparam.fuse(model)
    assert len(convolutions(fused)) == 1
    assert_same(fused, model)
    for index in (0, 2):
        assert_same_alone(fused[index], model[index])
        assert_same_alone(fused[index].block, model[index].block)


class Siamese(nn.Module):
    """Two inputs through one sequence."""

    def __init__(self, end: nn.Module) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), end)
        self.head = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.encoder(x)) + self.encoder(x.flip(-1))
        return result


def test_a_sequence_keeps_its_code() -> None:
    model = ready(Siamese(nn.ReLU()))
    fused = reparam.fuse(model)
    assert not any("forward" in vars(module) for module in fused.modules())
    assert count_operators(fused, (images(),)).batch_norms == 0
    assert_same(fused, model)
    assert_same_alone(fused.encoder, model.encoder)


def test_what_joins_the_code_outside_at_one_call_leaves_the_block_as_it_was() -> None:
    model = ready(Siamese(nn.BatchNorm2d(4)))
    fused = reparam.fuse(model)
    assert count_operators(fused, (images(),)).batch_norms < 4
    assert_same(fused, model)
    assert_same_alone(fused.encoder, model.encoder)


def test_a_block_under_two_names_is_fused_where_it_is() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = self.second = Block()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.second(self.first(x).sigmoid())
            return result

    model = ready(Named())
    fused = reparam.fuse(model)
    assert fused.first is fused.second
    assert len(convolutions(fused)) == 1
    assert_same(fused, model)
    assert_same_alone(fused.first, model.first)


def test_outputs_of_which_only_one_call_is_read() -> None:
    class Two(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            conv = self.conv(x)
            return self.norm(conv + self.point(x)), conv.relu()

    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Two()

        def forward(self, x: Tensor) -> Tensor:
            x, feature = self.block(x)
            result: Tensor = self.block(x.sigmoid())[0] + feature
            return result

    model = ready(Last())
    fused = reparam.fuse(model)
    assert_same(fused, model)


def test_calls_that_need_different_code_after_all() -> None:
    class Two(Block):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.conv(x) + self.point(x), x

    class Reads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Two()

        def forward(self, x: Tensor) -> Tensor:
            first, _ = self.block(x.sin())
            _, second = self.block(first.sin())
            return first.relu() + second

    model = ready(Reads())
    fused = reparam.fuse(model)
    assert_same(fused, model)
    with torch.no_grad():
        pairs = zip(fused.block(images()), model.block(images()), strict=True)
        assert all(relative_error(ours, theirs) <= EXACT for ours, theirs in pairs)


def test_a_block_in_a_list_twice() -> None:
    block = Block()
    model = ready(nn.Sequential(block, nn.Sigmoid(), block))
    fused = reparam.fuse(model)
    assert_same(fused, model)
    assert len(convolutions(fused)) == 1


def test_calls_from_two_places_share_the_weights() -> None:
    class Caller(nn.Module):
        def __init__(self, block: nn.Module) -> None:
            super().__init__()
            self.block = block

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.block(x).sigmoid()
            return result

    block = Block()
    model = ready(nn.Sequential(Caller(block), Caller(block)))
    fused = reparam.fuse(model)
    assert_same(fused, model)
    assert len(convolutions(fused)) == 1


def test_other_arguments_make_another_operator() -> None:
    class Scaled(Block):
        def forward(self, x: Tensor, factor: float) -> Tensor:
            result: Tensor = self.norm(self.conv(x) + self.point(x)) * factor
            return result.relu()

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = Scaled()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.block(self.block(x, 1.0), 2.0)
            return result

    model = ready(Twice())
    fused = reparam.fuse(model)
    assert_same(fused, model)
    assert count_operators(fused, (images(),)).convolutions == 2
    with torch.no_grad():  # a user may call it with any factor
        assert relative_error(fused.block(images(), 3.0), model.block(images(), 3.0)) <= EXACT


class Second(Block):
    """Needs only one of the values that it is given."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(y)


class GivesBoth(nn.Module):
    """Once a value and its norm, which becomes that value, and once two others."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.norm, self.head = Second(), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = x.sin()
        z = self.norm(y)
        result: Tensor = self.block(x, self.block(z, y)) * self.head(z)
        return result


def test_a_call_in_which_two_arguments_became_one() -> None:
    """Its code reads the one that it reads in the other call: there is no second operator."""
    model = ready(GivesBoth())
    fused = reparam.fuse(model)
    assert_same(fused, model)
    assert len(convolutions(fused)) == 2


def test_equal_blocks_stay_apart() -> None:
    first = Block()
    model = ready(nn.Sequential(first, deepcopy(first)))
    fused = reparam.fuse(model)
    assert_same(fused, model)
    assert len(convolutions(fused)) == 2


def test_calls_stay_tied_under_training() -> None:
    fused = reparam.fuse(ready(Recurrent(3)))
    (conv,) = convolutions(fused)
    fused(images()).square().sum().backward()
    weight = conv.weight.detach().clone().requires_grad_()
    x = images()
    for _ in range(3):
        x = torch.nn.functional.conv2d(x, weight, conv.bias, padding=1).relu()
    x.square().sum().backward()
    assert relative_error(conv.weight.grad, weight.grad) <= EXACT


def test_round_trips() -> None:
    model = ready(Recurrent(3))
    fused = reparam.fuse(model)
    copied = deepcopy(fused)
    copied.load_state_dict(fused.state_dict())
    assert len(convolutions(copied)) == 1
    assert_same(copied, model)
    assert_same(reparam.fuse(fused), model)
