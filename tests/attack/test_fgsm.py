"""FGSM: the worst point of a linear model, whatever the norm."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog
from torch import nn

from oracles.threats import diagonal
from pinchpoint.attack import Threat, cross_entropy, fgsm, margin
from pinchpoint.evaluate import within


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_the_best_attack_on_a_binary_linear_model(norm, dual):
    rng = np.random.default_rng(3)
    weight, eps = rng.normal(size=(2, 12)), 0.2
    x, y = rng.normal(size=(9, 12)), np.arange(9) % 2
    model = nn.Linear(12, 2, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor(weight))
    x_adv = fgsm(model, torch.tensor(x), torch.tensor(y), Threat(norm, eps, box=None))
    right = (x @ weight.T).argmax(1) == y
    assert 0 < right.sum() < 9
    np.testing.assert_array_equal(x_adv.numpy()[~right], x[~right])
    towards = weight[1 - y] - weight[y]
    best = (towards * x).sum(1) + eps * np.linalg.norm(towards, dual, axis=1)
    reached = margin(model(x_adv), torch.tensor(y)).detach().numpy()
    np.testing.assert_allclose(reached[right], best[right], rtol=0, atol=1e-5)


@pytest.mark.parametrize("eps", [0.3, 2.0, 10.0])
def test_the_best_l1_attack_where_the_box_cuts_the_ball(eps):
    rng = np.random.default_rng(5)
    weight, x = rng.normal(size=(2, 10)), rng.uniform(size=(6, 10))
    x[:2] = x[:2].round()
    model = nn.Linear(10, 2, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor(weight))
    y = model(torch.tensor(x)).argmax(1)
    x_adv = fgsm(model, torch.tensor(x), y, Threat("l1", eps)).numpy()
    for row, label, adv in zip(x, y.numpy(), x_adv, strict=True):
        towards = weight[1 - label] - weight[label]
        bounds = [*((0, room) for room in 1 - row), *((0, room) for room in row)]
        best = -linprog(np.concatenate([-towards, towards]), np.ones((1, 20)), [eps], bounds=bounds).fun
        assert towards @ (adv - row) == pytest.approx(best, abs=1e-5)


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    share=st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    shape=st.sampled_from([(5,), (1, 3, 3), (2, 3, 2, 2)]),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    edges=st.booleans(),
    wrong=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_example_lies_in_ball_and_box(
    small_net, assert_inside, norm, share, shape, batch, dtype, edges, wrong, seed
):
    threat = Threat(norm, share * diagonal(norm, shape))
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if edges:
        x = x.round()
    net = small_net(math.prod(shape), dtype=dtype)
    y = (net(x).argmax(1) + wrong) % 4
    x_adv = fgsm(net, x, y, threat)
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    if threat.eps == 0 or wrong:
        assert torch.equal(x_adv, x)


def test_one_step_raises_the_loss_of_a_trained_network(trained, sample):
    x, y = sample
    for norm, eps in (("linf", 0.05), ("l2", 0.3), ("l1", 1.0)):
        x_adv = fgsm(trained, x, y, Threat(norm, eps))
        right = trained(x).argmax(1) == y
        raised = cross_entropy(trained(x_adv), y) > cross_entropy(trained(x), y)
        assert raised[right].double().mean() > 0.95
        assert (trained(x_adv).argmax(1) != y).sum() > (~right).sum() + 10
