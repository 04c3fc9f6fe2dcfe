"""Corollary 3.3 and certificates: nothing that perturbs a sample may do more than they allow."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.networks import DUAL, ORDER, cross_entropy
from pinchpoint.attack import Threat, apgd
from pinchpoint.bound import (
    certified_accuracy,
    certified_radii,
    encoder,
    gap_bound,
    gap_bound_binary,
    head_factor,
    lipschitz,
)
from pinchpoint.bound.certificates import dual_differences
from pinchpoint.errors import ModelError, ThreatError

NORMS = ("linf", "l2")
seeds = st.integers(0, 2**32 - 1)
norms = st.sampled_from(NORMS)


def random_directions(rng, shape, norm):
    """Perturbations of length exactly at most 1, many of them on corners or at single entries."""
    kind = rng.integers(0, 3, size=(*shape[:-1], 1))
    one_hot = np.eye(shape[-1])[rng.integers(0, shape[-1], size=shape[:-1])]
    draw = np.choose(kind, [rng.standard_normal(shape), rng.choice([-1.0, 1.0], size=shape), one_hot])
    return draw / np.linalg.norm(draw, ORDER[norm], axis=-1, keepdims=True)


def small_network(seed, classes=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.LeakyReLU(), nn.Linear(5, classes)).double()


def steepest(model, x, y, norm):
    """Unit directions that raise the loss fastest."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x), y, reduction="sum"), x)
    return gradient.sign() if norm == "linf" else gradient / gradient.norm(dim=1, keepdim=True).clamp_min(1e-300)


@settings(max_examples=60, deadline=None)
@given(seeds, norms, st.sampled_from([1.0, 1e-170, 1e100]))
def test_dual_differences_are_numpys(seed, norm, scale):
    head = np.random.default_rng(seed).standard_normal((4, 5))
    found = dual_differences(torch.from_numpy(head * scale), norm).numpy()
    expected = [[np.linalg.norm(other - own, DUAL[norm]) for other in head] for own in head]
    np.testing.assert_allclose(found / scale, expected, rtol=1e-12)
    assert (found / scale >= np.array(expected) * (1 - 1e-15)).all()


@settings(max_examples=60, deadline=None)
@given(seeds, norms, st.floats(0, 2), st.floats(0, 10))
def test_two_classes_give_the_papers_binary_form(seed, norm, eps, constant):
    rng = np.random.default_rng(seed)
    head = torch.from_numpy(rng.standard_normal((2, 5)))
    labels = torch.from_numpy(rng.integers(0, 2, size=7))
    binary = gap_bound_binary(constant, head[1] - head[0], eps, norm)
    assert gap_bound(constant, head, labels, eps, norm) == pytest.approx(binary, rel=1e-13)
    assert binary == pytest.approx(eps * constant * np.linalg.norm((head[1] - head[0]).numpy(), DUAL[norm]), rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(seeds, norms)
def test_head_factor_is_the_mean_of_the_largest(seed, norm):
    rng = np.random.default_rng(seed)
    head, labels = rng.standard_normal((4, 5)), rng.integers(0, 4, size=9)
    expected = np.mean([max(np.linalg.norm(head[j] - head[y], DUAL[norm]) for j in range(4)) for y in labels])
    for dtype in (torch.int64, torch.int32, torch.uint8):
        found = head_factor(torch.from_numpy(head), torch.from_numpy(labels).to(dtype), norm)
        assert found == pytest.approx(expected, rel=1e-12)


@settings(max_examples=60, deadline=None)
@given(seeds, norms, st.sampled_from([2, 3, 5]), st.sampled_from([1e-3, 0.1, 3.0]))
def test_no_perturbation_raises_the_loss_by_more_than_the_gap_bound(seed, norm, classes, eps):
    model, rng = small_network(seed % 1000, classes), np.random.default_rng(seed)
    x, y = torch.from_numpy(rng.standard_normal((6, 4))), torch.from_numpy(rng.integers(0, classes, size=6))
    features, head = encoder(model)
    allowed = gap_bound(lipschitz(features, norm=norm, steps=0).upper, head, y, eps, norm)
    directions = [torch.from_numpy(random_directions(rng, (6, 4), norm)) for _ in range(30)]
    with torch.no_grad():
        clean = cross_entropy(model(x).numpy(), y.numpy()).mean()
    for direction in (*directions, steepest(model, x, y, norm)):
        with torch.no_grad():
            moved = cross_entropy(model(x + eps * direction).numpy(), y.numpy()).mean()
        assert moved - clean <= allowed + 1e-14


@pytest.mark.parametrize("norm", NORMS)
def test_the_gap_bound_is_reached_by_a_linear_model_far_on_the_wrong_side(norm):
    """There the logistic loss is linear with slope 1, so the bound is attained."""
    head = torch.tensor([[0.0, 0.0, 0.0], [3.0, -1.0, 2.0]], dtype=torch.float64)
    x, y = 100.0 * head[1:], torch.tensor([0])
    step = head[1].sign() if norm == "linf" else head[1] / head[1].norm()
    clean, moved = (cross_entropy((each @ head.T).numpy(), y.numpy())[0] for each in (x, x + 0.5 * step))
    assert gap_bound(1.0, head, y, 0.5, norm) == pytest.approx(moved - clean, rel=1e-10)


@settings(max_examples=60, deadline=None)
@given(seeds, norms)
def test_radius_of_a_linear_model_is_the_distance_to_its_boundary(seed, norm):
    rng = np.random.default_rng(seed)
    head, x = rng.standard_normal((4, 5)), rng.standard_normal(5)
    bias = rng.standard_normal(4)
    logits = head @ x + bias
    y = int(logits.argmax())
    radius = certified_radii(
        torch.from_numpy(logits)[None], torch.tensor([y]), 1.0, torch.from_numpy(head), norm
    ).item()
    margins = np.delete(
        (logits[y] - logits) / np.maximum(np.linalg.norm(head - head[y], DUAL[norm], axis=1), 1e-300), y
    )
    assert radius == pytest.approx(margins.min(), rel=1e-12)
    nearest = [j for j in range(4) if j != y][int(margins.argmin())]
    normal = head[nearest] - head[y]
    step = np.sign(normal) if norm == "linf" else normal / np.linalg.norm(normal)
    just_beyond = head @ (x + radius * (1 + 1e-9) * step) + bias
    assert just_beyond[nearest] > just_beyond[y]
    inside = x + radius * (1 - 1e-9) * np.vstack([step, random_directions(rng, (200, 5), norm)])
    assert ((inside @ head.T + bias).argmax(axis=1) == y).all()


@settings(max_examples=40, deadline=None)
@given(seeds, norms)
def test_nothing_inside_the_radius_changes_the_class(seed, norm):
    model, rng = small_network(seed % 1000), np.random.default_rng(seed)
    x = torch.from_numpy(rng.standard_normal((8, 4)))
    features, head = encoder(model)
    logits = model(x).detach()
    y = logits.argmax(dim=1)
    radii = certified_radii(logits, y, lipschitz(features, norm=norm, steps=0).upper, head, norm)
    assert (radii >= 0).all()
    directions = [torch.from_numpy(random_directions(rng, (8, 4), norm)) for _ in range(40)]
    for direction in (*directions, steepest(model, x, y, norm)):
        with torch.no_grad():
            assert torch.equal(model(x + radii[:, None] * (1 - 1e-12) * direction).argmax(dim=1), y)


def test_wrong_samples_and_ties_have_radius_zero():
    logits = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    for norm in NORMS:
        radii = certified_radii(logits, torch.tensor([0, 0, 0]), 1.0, torch.eye(3), norm)
        assert radii[:2].tolist() == [0.0, 0.0]
        assert radii[2] > 0
        assert certified_accuracy(radii, 0.0) == pytest.approx(1 / 3)


def test_a_constant_network_is_certified_everywhere_if_it_is_right():
    logits, head = torch.tensor([[2.0, 1.0], [2.0, 1.0]]), torch.eye(2)
    for constant, weights in ((0.0, head), (1.0, torch.zeros(2, 2)), (math.inf, torch.ones(2, 2))):
        radii = certified_radii(logits, torch.tensor([0, 1]), constant, weights, "l2")
        assert radii.tolist() == [math.inf, 0.0]
    assert certified_radii(logits, torch.tensor([0, 1]), math.inf, head, "l2").tolist() == [0.0, 0.0]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("scale", [1e-170, 1e-310, 1e150])
def test_scale_of_the_head_cancels(norm, scale):
    """Tiny heads must not look constant: squares of 1e-170 vanish in float64."""
    logits = torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    head = torch.eye(2, dtype=torch.float64)
    labels = torch.tensor([0])
    plain = certified_radii(logits, labels, 1.0, head, norm).item()
    found = certified_radii(logits * scale, labels, 1.0, head * scale, norm).item()
    assert found == pytest.approx(plain, rel=1e-11)
    close = torch.tensor([[1.0, 0.0], [0.0, scale], [0.0, 0.0]], dtype=torch.float64)  # rows 1 and 2 nearly equal
    assert dual_differences(close, norm)[1, 2].item() >= scale


def test_a_constant_that_underflows_is_not_zero():
    logits, head = torch.tensor([[2e-310, 1e-310]], dtype=torch.float64), torch.eye(2, dtype=torch.float64) * 1e-170
    assert certified_radii(logits, torch.tensor([0]), 1e-170, head, "l2").item() < math.inf


def test_labels_of_any_integer_type():
    logits, head = torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.eye(2)
    expected = certified_radii(logits, torch.tensor([0, 1]), 1.0, head, "l2")
    for dtype in (torch.int32, torch.uint8):
        found = certified_radii(logits, torch.tensor([0, 1], dtype=dtype), 1.0, head, "l2")
        assert torch.equal(found, expected)


@pytest.mark.parametrize(("norm", "budgets"), [("linf", (0.0, 0.002, 0.01)), ("l2", (0.0, 0.02, 0.1))])
def test_autopgd_leaves_every_certified_sample_standing(trained, digits, norm, budgets):
    x, y = digits.x_test[:100], digits.y_test[:100]
    features, head = encoder(trained)
    logits = copy.deepcopy(trained).double()(x.double())
    radii = certified_radii(logits, y, lipschitz(features, norm=norm, steps=0).upper, head, norm)
    certified = [certified_accuracy(radii, eps) for eps in budgets]
    assert certified == sorted(certified, reverse=True)
    assert certified[0] == (logits.argmax(1) == y).double().mean()
    assert certified[1] > 0.2  # else this test sees nothing
    for eps, share in zip(budgets, certified, strict=True):
        attacked = apgd(trained, x, y, Threat(norm, eps), steps=15)
        standing = trained(attacked).argmax(1) == y
        assert share <= standing.double().mean()
        assert standing[(radii > 0) & (radii >= eps)].all()


def test_budget_zero_or_constant_zero_allows_nothing():
    head, labels = torch.eye(2), torch.tensor([0])
    for constant, eps in ((math.inf, 0.0), (0.0, math.inf), (0.0, 1.0)):
        assert gap_bound(constant, head, labels, eps, "l2") == 0.0
        assert gap_bound_binary(constant, head[0], eps, "l2") == 0.0


def test_certified_accuracy_counts_radii_of_at_least_eps():
    radii = torch.tensor([0.0, 0.1, 0.25, 0.5], dtype=torch.float64)
    assert [certified_accuracy(radii, eps) for eps in (0.0, 0.25, 0.3, 0.5, 1.0)] == [0.75, 0.5, 0.25, 0.25, 0.0]


def test_what_is_refused():
    logits, head, labels = torch.tensor([[2.0, 1.0]]), torch.eye(2), torch.tensor([0])
    for eps in (-0.1, math.nan):
        text = f"eps must be zero or more, but got {eps}; give the budget in input units, for example 8/255."
        for call in (
            lambda eps=eps: gap_bound(1.0, head, labels, eps, "l2"),
            lambda eps=eps: gap_bound_binary(1.0, head[0], eps, "l2"),
            lambda eps=eps: certified_accuracy(torch.ones(1), eps),
        ):
            with refused(ThreatError, text):
                call()
    for constant in (-1.0, math.nan):
        text = f"a Lipschitz constant is zero or more, but got {constant}; take the upper of bound.lipschitz."
        for call in (
            lambda constant=constant: gap_bound(constant, head, labels, 0.1, "l2"),
            lambda constant=constant: gap_bound_binary(constant, head[0], 0.1, "l2"),
            lambda constant=constant: certified_radii(logits, labels, constant, head, "l2"),
        ):
            with refused(ModelError, text):
                call()
    remedy = "check the data set against the model's head."
    for bad, seen in ((torch.tensor([2]), "labels 2 ... 2"), (torch.tensor([-1]), "labels -1 ... -1")):
        with refused(ModelError, f"labels must lie in 0 ... 1, but got {seen}; {remedy}"):
            certified_radii(logits, bad, 1.0, head, "l2")
    with refused(ModelError, f"labels must lie in 0 ... 1, but got no label; {remedy}"):
        head_factor(head, torch.tensor([], dtype=torch.long), "l2")
    with refused(ModelError, "logits and head must agree on the number of classes, but got 2; check the head."):
        certified_radii(logits, labels, 1.0, torch.eye(3), "l2")
    with refused(ModelError, "there must be one label a sample, but got 1 for 3 samples; check the labels."):
        certified_radii(logits.repeat(3, 1), labels, 1.0, head, "l2")
    with refused(ModelError, "there must be at least one radius, but got none; give certified_radii of some samples."):
        certified_accuracy(torch.empty(0), 0.1)
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        head_factor(head, labels, "l1")
