"""Objectives, against numpy written from their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.as_user import refused
from pinchpoint.attack import (
    cross_entropy,
    dlr,
    log_odds,
    logit_scale,
    margin,
    scaled_cross_entropy,
    scaled_log_odds,
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


def test_ordinary_logits_are_left_as_they_are_and_others_brought_to_one_spread():
    spread = np.sort(LOGITS.numpy().max(1) - LOGITS.numpy().mean(1))
    median = spread[(len(spread) - 1) // 2]
    for wanted, expected in ((9.9, 0.99), (12.1, 1.0), (23.9, 1.0), (25.0, 2.5), (1e6, 1e5), (1e-6, 1e-7)):
        assert logit_scale(LOGITS * (wanted / median)) == pytest.approx(expected, rel=1e-6)
    assert logit_scale(LOGITS, ordinary=(8.0, 8.0), best=8.0) == pytest.approx(median / 8, rel=1e-12)


@given(
    st.lists(st.floats(-30, 30), min_size=3, max_size=6),
    st.integers(0, 2),
)
def test_log_odds_are_cross_entropy_before_it_saturates(row, label):
    logits, y = torch.tensor([row], dtype=torch.float64, requires_grad=True), torch.tensor([label])
    odds, entropy = log_odds(logits, y), cross_entropy(logits, y)
    assert torch.nn.functional.softplus(odds).item() == pytest.approx(entropy.item(), rel=1e-9, abs=1e-12)
    (along,), (steep,) = torch.autograd.grad(odds, logits), torch.autograd.grad(entropy, logits)
    torch.testing.assert_close(steep, torch.sigmoid(odds.detach()) * along, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4, 1e30])
def test_log_odds_do_not_saturate_in_float32(scale):
    logits = (scale * torch.tensor([[3.0, 1.0, -1.0]])).requires_grad_(True)
    (gradient,) = torch.autograd.grad(log_odds(logits, torch.tensor([0])).sum(), logits)
    assert gradient[0, 0].item() == pytest.approx(-1.0, abs=1e-6)
    assert gradient.sum().item() == pytest.approx(0.0, abs=1e-6)
    assert torch.equal(scaled_log_odds(2.0)(logits, torch.tensor([0])), log_odds(logits / 2.0, torch.tensor([0])))


def test_logit_scale_of_constant_logits():
    assert logit_scale(torch.zeros(3, 4)) == 1.0
