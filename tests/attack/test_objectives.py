"""Objectives, against numpy written from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from oracles.as_user import refused
from pinchpoint.attack import (
    cross_entropy,
    dlr,
    logit_scale,
    margin,
    scaled_cross_entropy,
    targeted_dlr,
    targeted_margin,
)
from pinchpoint.errors import ModelError

LOGITS = torch.tensor(np.random.default_rng(1).normal(size=(40, 6)) * 5)
LABELS = torch.tensor(np.random.default_rng(2).integers(0, 6, 40))


def naive_margin(row, label):
    return max(value for j, value in enumerate(row) if j != label) - row[label]


def test_cross_entropy():
    z, y = LOGITS.numpy(), LABELS.numpy()
    expected = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(z, y, strict=True)]
    np.testing.assert_allclose(cross_entropy(LOGITS, LABELS).numpy(), expected, rtol=1e-12)


def test_margin_is_positive_exactly_where_the_label_loses():
    expected = [naive_margin(row, label) for row, label in zip(LOGITS.numpy(), LABELS.numpy(), strict=True)]
    np.testing.assert_allclose(margin(LOGITS, LABELS).numpy(), expected, rtol=1e-12)
    assert ((margin(LOGITS, LABELS) > 0) == (LOGITS.argmax(1) != LABELS)).all()


def test_dlr():
    expected = []
    for row, label in zip(LOGITS.numpy(), LABELS.numpy(), strict=True):
        first, _, third = np.sort(row)[::-1][:3]
        expected.append(naive_margin(row, label) / (first - third))
    np.testing.assert_allclose(dlr(LOGITS, LABELS).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_dlr_does_not_see_the_scale(scale):
    np.testing.assert_allclose(dlr(scale * LOGITS, LABELS).numpy(), dlr(LOGITS, LABELS).numpy(), rtol=1e-12)


def test_dlr_of_constant_logits_is_zero():
    assert dlr(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == [0.0, 0.0]


def test_dlr_needs_three_classes():
    with pytest.raises(ModelError, match="DLR needs at least three classes, but got 2; use the margin instead"):
        dlr(torch.zeros(1, 2), torch.tensor([0]))


TARGETS = (LABELS + torch.tensor(np.random.default_rng(3).integers(1, 6, 40))) % 6


def test_targeted_margin_and_dlr():
    margins, ratios = [], []
    for row, label, target in zip(LOGITS.numpy(), LABELS.numpy(), TARGETS.numpy(), strict=True):
        first, _, third, fourth = np.sort(row)[::-1][:4]
        margins.append(row[target] - row[label])
        ratios.append(-(row[label] - row[target]) / (first - (third + fourth) / 2))
    np.testing.assert_allclose(targeted_margin(LOGITS, LABELS, TARGETS).numpy(), margins, rtol=1e-12)
    np.testing.assert_allclose(targeted_dlr(LOGITS, LABELS, TARGETS).numpy(), ratios, rtol=1e-12)
    scaled = targeted_dlr(1e3 * LOGITS, LABELS, TARGETS)
    np.testing.assert_allclose(scaled.numpy(), ratios, rtol=1e-12)


def test_targeted_dlr_of_constant_logits_is_zero():
    assert targeted_dlr(torch.zeros(1, 4), torch.tensor([0]), torch.tensor([3])).tolist() == [0.0]


def test_targeted_dlr_needs_four_classes():
    with refused(ModelError, "targeted DLR needs at least four classes, but got 3; use the targeted margin instead."):
        targeted_dlr(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([1]))


def test_scaled_cross_entropy_divides_first():
    expected = cross_entropy(LOGITS / 2.5, LABELS)
    np.testing.assert_array_equal(scaled_cross_entropy(2.5)(LOGITS, LABELS).numpy(), expected.numpy())


def test_logit_scale_is_the_median_spread_over_eight():
    spread = np.sort(LOGITS.numpy().max(1) - LOGITS.numpy().mean(1))
    assert logit_scale(LOGITS) == pytest.approx(spread[(len(spread) - 1) // 2] / 8, rel=1e-12)
    assert logit_scale(1000 * LOGITS) == pytest.approx(1000 * logit_scale(LOGITS), rel=1e-12)


def test_logit_scale_of_constant_logits():
    assert logit_scale(torch.zeros(3, 4)) == 1.0
