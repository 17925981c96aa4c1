"""The demo's digits and the training on them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from repvgg.digits import Digits, predict, small_repvgg, split_digits, training_digits
from repvgg.recipes import DIGITS
from repvgg.training import train


@pytest.fixture(scope="module")
def digits() -> Digits:
    return split_digits(seed=0)


def test_a_fifth_is_held_out_and_every_digit_equally_often(digits: Digits) -> None:
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.held_out_images.shape == (360, 1, 8, 8)
    for labels in (digits.train_labels, digits.held_out_labels):
        frequencies = labels.bincount(minlength=10) / len(labels)
        torch.testing.assert_close(frequencies, torch.full((10,), 0.1), atol=0.005, rtol=0)


def test_pixels_are_between_0_and_1(digits: Digits) -> None:
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 1


def test_the_split_follows_the_seed(digits: Digits) -> None:
    assert torch.equal(split_digits(seed=0).held_out_images, digits.held_out_images)
    assert not torch.equal(split_digits(seed=1).held_out_images, digits.held_out_images)


def test_a_model_follows_the_seed_and_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    first, second, other = (small_repvgg(seed).linear.weight for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_training_learns_to_read(digits: Digits) -> None:
    model = small_repvgg(seed=0)
    recipe = replace(DIGITS, epochs=4, warmup_epochs=1)
    train(model, training_digits(digits, 0), recipe, seed=0)
    predictions = predict(model, digits.held_out_images)
    accuracy = (predictions == digits.held_out_labels).double().mean()
    assert accuracy > 0.95


def test_images_are_moved_by_at_most_a_pixel(digits: Digits) -> None:
    samples = training_digits(digits, 0)
    padded = torch.nn.functional.pad(digits.train_images[3], (1, 1, 1, 1))
    shifts = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    seen = set()
    for epoch in range(40):
        image = samples[epoch, 3][0]
        seen.add(next(place for place, shift in enumerate(shifts) if torch.equal(shift, image)))
    assert len(seen) == 9
