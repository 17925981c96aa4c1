"""The digits: how they are split and moved."""

from __future__ import annotations

import pytest
import torch

from repvgg.data.digits import Digits, split_digits, training_digits


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


def test_images_are_moved_by_at_most_a_pixel(digits: Digits) -> None:
    samples = training_digits(digits, 0)
    padded = torch.nn.functional.pad(digits.train_images[3], (1, 1, 1, 1))
    shifts = [padded[:, i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    seen = set()
    for epoch in range(40):
        image = samples[epoch, 3][0]
        seen.add(next(place for place, shift in enumerate(shifts) if torch.equal(shift, image)))
    assert len(seen) == 9
