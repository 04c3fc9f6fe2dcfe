"""Constants on a ball: never below what happens there, never above the global ones, exact where nothing can change sides."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.networks import DUAL
from pinchpoint.attack import Threat, apgd
from pinchpoint.bound import local_margins, locally_certified, margins, trace
from pinchpoint.errors import ModelError, ThreatError

NORMS = ("l2", "linf")


def network(seed, widths=(3, 6, 5, 3), activation=nn.ReLU, bias=True):
    torch.manual_seed(seed)
    steps = []
    for before, after in itertools.pairwise(widths):
        steps += [nn.Linear(before, after, bias=bias), activation()]
    return nn.Sequential(*steps[:-1]).double()


def points_in_ball(rng, x, eps, norm, count):
    direction = rng.standard_normal((count, len(x)))
    if norm == "linf":
        direction = np.sign(direction) * rng.choice([1.0, rng.random()], size=direction.shape)
    else:
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return torch.from_numpy(x + eps * rng.random((count, 1)) ** 0.2 * direction)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(NORMS),
    st.sampled_from([1e-3, 0.1, 1.0, 10.0]),
    st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.GELU]),
)
def test_no_two_points_of_the_ball_differ_by_more(seed, norm, eps, activation):
    model, rng = network(seed, activation=activation), np.random.default_rng(seed)
    x = rng.standard_normal(3)
    traced = trace(model)
    constants = local_margins(traced, torch.from_numpy(x), eps, norm=norm)
    a, b = (points_in_ball(rng, x, eps, norm, 200) for _ in range(2))
    with torch.no_grad():
        change = model(a) - model(b)
    moved = torch.linalg.vector_norm(a - b, torch.inf if norm == "linf" else 2, dim=1)
    for y, j in itertools.permutations(range(3), 2):
        assert bool(((change[:, y] - change[:, j]).abs() <= constants[y, j] * moved * (1 + 1e-9) + 1e-12).all())
    everywhere = local_margins(traced, torch.from_numpy(x), 1e9, norm=norm)
    assert bool((constants <= everywhere * (1 + 1e-9)).all()), "a smaller ball has no larger constants"


@pytest.mark.parametrize("norm", NORMS)
def test_inside_one_linear_piece_it_is_the_norm_of_the_jacobian(norm):
    model = network(4, widths=(4, 5, 3))
    x = torch.tensor([0.3, -1.0, 2.0, 0.5], dtype=torch.float64)
    jacobian = torch.func.jacrev(model)(x).detach().numpy()
    constants = local_margins(model, x, 1e-6, norm=norm)
    for y, j in itertools.permutations(range(3), 2):
        expected = np.linalg.norm(jacobian[y] - jacobian[j], DUAL[norm])
        slack = 1.0 if norm == "l2" else 2.0  # from l_inf the ellipsoid of equal weights is up to sqrt(4) too large
        assert expected * (1 - 1e-12) <= constants[y, j] <= slack * expected * (1 + 1e-6)
    if norm == "linf":  # optimised weights close that
        sharp = local_margins(model, x, 1e-6, norm=norm, steps=300)
        gaps = [sharp[y, j] / np.abs(jacobian[y] - jacobian[j]).sum() for y, j in itertools.permutations(range(3), 2)]
        assert min(gaps) < 1.2


@pytest.mark.parametrize("norm", NORMS)
def test_optimisation_helps_and_far_away_nothing_is_known(norm):
    model = network(7)
    x = torch.zeros(3, dtype=torch.float64)
    plain, sharp = (local_margins(model, x, 0.2, norm=norm, steps=steps) for steps in (0, 60))
    assert bool((sharp <= plain).all())
    assert sharp.sum() < 0.97 * plain.sum()
    assert bool((local_margins(model, x, 1e-4, norm=norm) <= margins(model, norm=norm, steps=0).upper + 1e-12).all())


@pytest.mark.long
@pytest.mark.parametrize(("norm", "eps"), [("l2", 0.15), ("linf", 0.015)])
def test_no_attack_beats_a_local_certificate(trained, digits, norm, eps):
    x, y = digits.x_test[:24], digits.y_test[:24]
    certified = locally_certified(trained, x, y, eps, norm=norm)
    assert int(certified.sum()) >= 3, "nothing certified compares nothing"
    found = apgd(trained, x, y, Threat(norm, eps), steps=30, seed=0)
    with torch.no_grad():
        fooled = trained(found).argmax(1) != y
    assert not bool((certified & fooled).any())
    far = locally_certified(trained, x[:6], y[:6], 50 * eps, norm=norm)
    assert not bool(far.any())


def test_a_convolutional_network_with_pooling():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 3, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16, 3),
    ).double()
    x = torch.rand(1, 8, 8, dtype=torch.float64)
    near, far = (local_margins(model, x, eps, norm="l2") for eps in (1e-4, 10.0))
    assert bool((near <= far * (1 + 1e-9)).all())
    jacobian = torch.func.jacrev(lambda x: model(x[None])[0])(x).detach().reshape(3, -1)
    assert near[0, 1] >= (jacobian[0] - jacobian[1]).norm() * (1 - 1e-12)


def test_refusals():
    model = network(0)
    with refused(
        ThreatError, "eps must be zero or more, but got -1.0; give the budget in input units, for example 8/255."
    ):
        local_margins(model, torch.zeros(3).double(), -1.0, norm="l2")
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        local_margins(model, torch.zeros(3).double(), 1.0, norm="l1")
    with refused(ModelError, "x must be one input of shape (3,), but got (2, 3); give one sample."):
        local_margins(trace(model), torch.zeros(2, 3).double(), 1.0, norm="l2")
