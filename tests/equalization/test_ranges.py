"""The ranges become equal, in every type and for every kind of channel."""

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import reparam
from tests.equalization.spreading import equalized, image, reasons, scaled, spread
from tests.support.errors import run


def chain() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
        nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4),
    )  # fmt: skip


def rows(layer: nn.Module) -> Tensor:
    return layer.weight.detach().abs().flatten(1).amax(1)


def columns(layer: nn.Module) -> Tensor:
    return layer.weight.detach().abs().flatten(2).amax((0, 2)) if layer.weight.dim() > 2 else (
        layer.weight.detach().abs().amax(0)
    )  # fmt: skip


def test_ranges_are_equal() -> None:
    equal = equalized(spread(chain()), image(2, 3, 12, 12))
    for made, read in ((rows(equal[0]), rows(equal[2])), (rows(equal[2]), columns(equal[4])),
                       (rows(equal[4]), columns(equal[8]))):  # fmt: skip
        assert torch.allclose(made, read, rtol=1e-3)


def test_powers_of_two_are_near() -> None:
    model = spread(chain())
    rounded, exact = (
        equalized(model, image(2, 3, 12, 12), powers_of_two=choice) for choice in (True, False)
    )
    for at in (0, 2, 4):
        factors, best = (
            (one[at].bias / model[at].bias).detach().log2() for one in (rounded, exact)
        )
        assert torch.equal(factors, factors.round())
        assert factors.unique().numel() > 1
        off = best - factors  # by what all channels have in common, and half a power at most
        assert off.max() - off.min() <= 1 + 1e-12


def test_what_is_nearly_equal_stays() -> None:
    model = badly_scaled(0, width=0.4)
    equal = reparam.equalize(reparam.equalize(model), powers_of_two=True)
    assert not scaled(equal)


def test_a_second_time_changes_nothing() -> None:
    equal = equalized(spread(chain()), image(2, 3, 12, 12))
    again = reparam.equalize(equal)
    for one, two in zip(equal.parameters(), again.parameters(), strict=True):
        assert torch.allclose(one, two, rtol=1e-2)


def test_float32_is_equal_bit_for_bit() -> None:
    model = spread(chain())
    x = image(2, 3, 12, 12).float()
    equal = reparam.equalize(model, powers_of_two=True)
    assert len(scaled(equal)) == 3
    assert torch.equal(run(equal, (x,)), run(model, (x,)))


def test_bfloat16_is_equal_bit_for_bit() -> None:
    model = spread(chain()).bfloat16()
    x = image(2, 3, 12, 12).bfloat16()
    equal = reparam.equalize(model, powers_of_two=True)
    assert len(scaled(equal)) == 3
    assert {parameter.dtype for parameter in equal.parameters()} == {torch.bfloat16}
    assert torch.equal(run(equal, (x,)), run(model, (x,)))


def test_float16_has_too_little_range() -> None:
    equal = reparam.equalize(spread(chain()).half())
    assert not scaled(equal)
    assert "float16" in reasons(equal)["0"]


def test_dead_channels_keep_their_scale() -> None:
    model = spread(chain())
    with torch.no_grad():
        model[0].weight[1] = 0  # made of nothing, but for its bias
        model[4].weight[:, 2] = 0  # never read
        model[0].weight[3] *= 1e-30  # as good as dead
        model[8].weight[:, 4] = 0
    equal = equalized(model, image(2, 3, 12, 12))
    ratios = (equal[0].bias / model[0].bias).detach()
    assert ratios[1] == ratios[3] == 1
    assert (equal[2].bias / model[2].bias)[2] == 1
    assert (equal[4].bias / model[4].bias)[4] == 1
    assert len(scaled(equal)) == 3


def test_everything_dead() -> None:
    model = spread(chain())
    with torch.no_grad():
        model[2].weight.zero_()
    equal = equalized(model, image(2, 3, 12, 12))
    assert scaled(equal) == {"4"}


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_weights_that_are_not_finite(value: float) -> None:
    model = spread(chain())
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = value
    equal = reparam.equalize(model)
    assert scaled(equal) == {"4"}
    assert "NaN or infinite" in reasons(equal)["2"]


@pytest.mark.parametrize("power", [-140, -120, 120])
def test_weights_near_the_end_of_their_range(power: int) -> None:
    model = spread(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].weight.mul_(2.0**power)
    equal = reparam.equalize(model, powers_of_two=True)
    assert all(parameter.isfinite().all() for parameter in equal.parameters())
    x = image(3, 4).float()
    assert torch.equal(run(equal, (x,)), run(model, (x,)))


def test_overflow_is_refused() -> None:
    model = spread(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)))
    with torch.no_grad():
        model[0].weight[:2].mul_(2.0**-10)
        model[0].bias.fill_(2.0**126)
    equal = reparam.equalize(model, powers_of_two=True)
    assert not scaled(equal)
    assert "range of their type" in reasons(equal)["0"]


def rounded(model: nn.Module) -> nn.Module:
    """A copy with each weight as eight bits and one scale per tensor hold it."""
    copied = deepcopy(model)
    with torch.no_grad():
        for parameter in copied.parameters():
            if parameter.dim() > 1:
                step = parameter.abs().max() / 127
                parameter.copy_((parameter / step).round() * step)
    return copied


def badly_scaled(seed: int, width: float = 8) -> nn.Sequential:
    """Scales from 1/16 to 16 between layers whose own ranges are alike."""
    torch.manual_seed(seed)
    model = chain().double().eval()
    with torch.no_grad():
        for made, read in ((0, 2), (2, 4), (4, 8)):
            scales = (
                width * (torch.rand(len(model[made].weight), dtype=torch.float64) - 0.5)
            ).exp2()
            shape = (1, -1) if model[read].weight.shape[1] > 1 else (-1, 1)
            model[made].weight.mul_(scales.view(-1, 1, 1, 1))
            model[made].bias.mul_(scales)
            weight = model[read].weight
            weight.div_(scales.view(*shape, *(1,) * (weight.dim() - 2)))
    return model


@pytest.mark.parametrize("powers_of_two", [True, False])
def test_eight_bits_per_tensor_lose_less(powers_of_two: bool) -> None:
    for seed in range(5):
        model = badly_scaled(seed)
        x = image(8, 3, 12, 12)
        exact = run(model, (x,))
        equal = reparam.equalize(model, powers_of_two=powers_of_two)
        errors = [(run(rounded(one), (x,)) - exact).norm() for one in (model, equal)]
        assert errors[1] < 0.3 * errors[0]


def test_it_is_repeatable() -> None:
    model = spread(chain())
    first, second = reparam.equalize(model), reparam.equalize(model)
    assert str(first.reparam_report) == str(second.reparam_report)
    for one, two in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(one, two)
