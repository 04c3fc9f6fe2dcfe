"""Augmentation against a loop over the samples, and its draws against their distributions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracles.as_user import refused
from pinchpoint.errors import DataError
from pinchpoint.train.augment import AugmentConfig, augment


def images(count=64, channels=2, height=7, width=5):
    """Every pixel of every image is another number, none is zero."""
    return torch.arange(1.0, 1 + count * channels * height * width).reshape(count, channels, height, width)


def by_hand(image, flip, top, left, padding, centre, side):
    """One image, pixel by pixel: flipped, then moved within black borders, then with a black square."""
    height, width = image.shape[1:]
    out = np.zeros_like(image)
    for row in range(height):
        for column in range(width):
            i, j = row + top - padding, column + left - padding
            if 0 <= i < height and 0 <= j < width:
                out[:, row, column] = image[:, i, width - 1 - j if flip else j]
            if side and all(0 <= at - (c - side // 2) < side for at, c in zip((row, column), centre, strict=True)):
                out[:, row, column] = 0
    return out


@pytest.mark.parametrize(
    "config",
    [
        AugmentConfig(flip=True),
        AugmentConfig(crop=2),
        AugmentConfig(cutout=3),
        AugmentConfig(cutout=2),
        AugmentConfig(flip=True, crop=1, cutout=4),
    ],
)
def test_every_sample_is_one_that_a_loop_could_have_made(config):
    """Which draw it was is found by trying all: the images have no two equal pixels, so no other fits by chance."""
    x = images(8)
    out = augment(x, config, torch.Generator().manual_seed(0))
    assert out.shape == x.shape
    moves = range(2 * config.crop + 1)
    centres = [(i, j) for i in range(7) for j in range(5)] if config.cutout else [(0, 0)]
    for before, after in zip(x.numpy(), out.numpy(), strict=True):
        made = (
            by_hand(before, flip, top, left, config.crop, centre, config.cutout)
            for flip in ((False, True) if config.flip else (False,))
            for top in moves
            for left in moves
            for centre in centres
        )
        assert any(np.array_equal(after, candidate) for candidate in made)


def test_flips_are_every_second_image():
    x = images(4000, 1, 1, 2)
    flipped = (augment(x, AugmentConfig(flip=True), torch.Generator().manual_seed(1)) != x).all((1, 2, 3))
    assert int(flipped.sum()) == pytest.approx(2000, abs=4 * np.sqrt(1000))


def test_crops_are_uniform_over_all_places():
    x = torch.zeros(9000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    out = augment(x, AugmentConfig(crop=1), torch.Generator().manual_seed(2))
    counts = out.sum((0, 1))[1:4, 1:4]
    assert counts.sum() == 9000
    assert float((counts - 1000).abs().max()) < 5 * np.sqrt(1000)


def test_cutouts_have_their_centre_anywhere():
    out = augment(torch.ones(7000, 1, 5, 7), AugmentConfig(cutout=1), torch.Generator().manual_seed(3))
    counts = 7000 - out.sum((0, 1))
    assert counts.sum() == 7000
    assert float((counts - 200).abs().max()) < 5 * np.sqrt(200)


def test_seeds_and_what_is_left_alone():
    x, config = images(), AugmentConfig(flip=True, crop=2)
    kept, rng = x.clone(), torch.random.get_rng_state()
    first, again, other = (augment(x, config, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(x, kept)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert first.is_contiguous()


def test_a_batch_of_none():
    assert augment(images(0), AugmentConfig(flip=True, crop=1, cutout=1), torch.Generator()).shape == (0, 2, 7, 5)


def test_vectors_are_no_images():
    assert augment(torch.ones(2, 9), AugmentConfig(), torch.Generator()).shape == (2, 9)
    with refused(
        DataError,
        "augmentation needs images (channels, height, width), but got shape (9,); leave train.augment out.",
    ):
        augment(torch.ones(2, 9), AugmentConfig(flip=True), torch.Generator())
