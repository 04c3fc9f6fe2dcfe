"""Constants of logit differences: above every quotient, below the encoder's, and never contradicted by an attack."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from oracles.networks import DUAL, ORDER, operator_norm, relu_network
from pinchpoint.attack import Threat, apgd
from pinchpoint.bound import certified_accuracy, encoder, lipschitz, margins, radii_from_margins
from pinchpoint.bound.certificates import dual_differences
from pinchpoint.errors import ModelError

NORMS = ("linf", "l2")


@pytest.fixture(scope="module")
def bounds(trained):
    return {norm: margins(trained, norm=norm, budget_s=60.0, steps=40) for norm in NORMS}


@pytest.mark.parametrize("norm", NORMS)
def test_every_mask_is_below_and_the_encoder_times_the_head_above(norm):
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape) for shape in ((4, 3), (4, 4), (3, 4))]
    model = relu_network(weights)
    found = margins(model, norm=norm, budget_s=60.0, steps=60)
    features, head = encoder(model)
    loose = lipschitz(features, norm=norm, steps=0).upper * dual_differences(head, norm)
    assert (found.upper <= loose * (1 + 1e-12)).all()
    assert (found.upper.diagonal() == 0).all()
    assert torch.equal(found.upper, found.upper.T)
    exact = np.zeros((3, 3))
    for bits in itertools.product((0.0, 1.0), repeat=8):
        jacobian = weights[2] @ np.diag(bits[4:]) @ weights[1] @ np.diag(bits[:4]) @ weights[0]
        differences = jacobian[:, None] - jacobian[None]
        exact = np.maximum(exact, np.linalg.norm(differences, DUAL[norm], axis=2))
    assert (exact <= found.upper.numpy() * (1 + 1e-14)).all()
    assert (found.upper.numpy() <= (1.35 if norm == "l2" else 2.0) * exact)[exact > 0].all()
    assert found.norm == norm
    assert len(found.assumptions) == 2


@pytest.mark.parametrize("norm", NORMS)
def test_no_pair_of_points_moves_the_logits_of_a_trained_network_further(trained, digits, bounds, norm):
    model = copy.deepcopy(trained).double()
    rng = np.random.default_rng(0)
    x = digits.x_test[:200].double()
    other = x + torch.from_numpy(rng.standard_normal(x.shape) * 10.0 ** rng.uniform(-3, 0, (len(x), 1, 1, 1)))
    for there in (x.roll(1, 0), other, other.sign() * 0.1 + x):
        with torch.no_grad():
            change = (model(there) - model(x)).numpy()
        moved = np.linalg.norm((there - x).flatten(1).numpy(), ORDER[norm], axis=1)
        for y, j in itertools.permutations(range(10), 2):
            assert (np.abs(change[:, y] - change[:, j]) <= moved * bounds[norm].upper[y, j].item() * (1 + 1e-9)).all()


@pytest.mark.parametrize(("norm", "budgets"), [("linf", (0.0, 0.005, 0.02)), ("l2", (0.0, 0.05, 0.2))])
def test_autopgd_leaves_every_certified_sample_standing(trained, digits, bounds, norm, budgets):
    x, y = digits.x_test[:100], digits.y_test[:100]
    logits = copy.deepcopy(trained).double()(x.double())
    radii = radii_from_margins(logits, y, bounds[norm].upper)
    features, head = encoder(trained)
    plain = lipschitz(features, norm=norm, method="product").upper * dual_differences(head, norm)
    assert (radii >= radii_from_margins(logits, y, plain) * (1 - 1e-12)).all()
    certified = [certified_accuracy(radii, eps) for eps in budgets]
    assert certified == sorted(certified, reverse=True)
    assert certified[1] > 0.5  # else this test sees nothing
    for eps, share in zip(budgets, certified, strict=True):
        standing = trained(apgd(trained, x, y, Threat(norm, eps), steps=15)).argmax(1) == y
        assert share <= standing.double().mean()
        assert standing[(radii > 0) & (radii >= eps)].all()


@pytest.mark.parametrize("norm", NORMS)
def test_a_linear_model_is_exact(norm):
    matrix = np.random.default_rng(0).standard_normal((4, 6))
    found = margins(relu_network([matrix]), norm=norm, steps=300, budget_s=60.0).upper.numpy()
    exact = np.linalg.norm(matrix[:, None] - matrix[None], DUAL[norm], axis=2)
    np.testing.assert_allclose(found, exact, rtol=1e-11)


def test_tiny_and_huge_networks_keep_their_margins():
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal(shape) for shape in ((4, 3), (3, 4))]
    plain = {norm: margins(relu_network(weights), norm=norm, steps=0).upper for norm in NORMS}
    for scale in (1e-150, 1e150):
        scaled = {
            norm: margins(relu_network([weights[0] * scale, weights[1]]), norm=norm, steps=0).upper for norm in NORMS
        }
        for norm in NORMS:
            torch.testing.assert_close(scaled[norm] / scale, plain[norm], rtol=1e-9, atol=0)
    vanishing = [w * 1e-170 for w in weights]
    for norm in NORMS:
        upper = margins(relu_network(vanishing), norm=norm, steps=0).upper
        assert (upper[~torch.eye(3, dtype=torch.bool)] > 0).all()  # 1e-340 is no zero
        with pytest.raises(ModelError, match="finite answers, but got NaN or inf"):
            margins(relu_network([w * 1e170 for w in weights]), norm=norm, steps=0)


def test_a_constant_network_has_margins_of_zero():
    for weights in (
        [np.zeros((4, 3)), np.ones((2, 4))],
        [np.ones((4, 3)), np.zeros((2, 4))],
        [np.ones((4, 3)), np.ones((2, 4))],
    ):
        for norm in NORMS:
            upper = margins(relu_network(weights), norm=norm, steps=5).upper
            assert (upper == 0).all(), (weights, norm)
    assert operator_norm(np.zeros((2, 2)), "l2") == 0.0


def test_two_calls_agree_to_the_last_digit(trained):
    for norm in NORMS:
        first, second = (margins(trained, norm=norm, budget_s=60.0, steps=5).upper for _ in range(2))
        assert torch.equal(first, second)


def test_what_is_refused():
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        margins(nn.Linear(3, 2), norm="l1")
    text = "an encoder and a head need a last fully connected layer that gives the logits, but got ReLU at '1' at the end; "
    with refused(ModelError, text + "return logits from the model."):
        margins(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), norm="l2")
