"""DeepFool: its distances against closed forms, its path against a naive one in NumPy, what it costs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from torch import nn

from oracles.as_user import refused
from oracles.networks import relu_network
from oracles.threats import diagonal
from pinchpoint.attack import Threat, deepfool
from pinchpoint.errors import DataError, ModelError, ThreatError
from pinchpoint.evaluate import within

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


def linear(weight, bias):
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.shape[1], weight.shape[0], dtype=torch.float64))
    model[1].weight.data.copy_(torch.tensor(weight))
    model[1].bias.data.copy_(torch.tensor(bias))
    return model


# --- closed forms ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("classes", [2, 3, 12])
def test_on_a_linear_model_one_step_reaches_the_nearest_boundary(norm, classes):
    rng = np.random.default_rng(classes)
    weight, bias, x = rng.normal(size=(classes, 10)), rng.normal(size=classes), rng.normal(size=(30, 2, 5))
    model = linear(weight, bias)
    logits = x.reshape(30, 10) @ weight.T + bias
    y = logits.argmax(1)
    apart = np.linalg.norm(weight[None] - weight[y][:, None], DUAL[norm], axis=2)
    gaps = logits[np.arange(30), y][:, None] - logits
    closed_form = np.divide(gaps, apart, out=np.full_like(gaps, np.inf), where=apart > 0).min(1)
    far = Threat(norm, 1e3, box=None)
    points = deepfool(model, torch.tensor(x), torch.tensor(y), far, steps=1, overshoot=1e-6, candidates=classes)
    assert (model(points).argmax(1) != torch.tensor(y)).all()
    np.testing.assert_allclose(far.length(points - torch.tensor(x)).numpy(), closed_form, rtol=1e-5)
    further = deepfool(model, torch.tensor(x), torch.tensor(y), far, steps=1, overshoot=0.5, candidates=classes)
    np.testing.assert_allclose(far.length(further - torch.tensor(x)).numpy(), 1.5 * closed_form, rtol=1e-5)
    near = Threat(norm, float(np.median(closed_form)), box=None)
    fallen = model(deepfool(model, torch.tensor(x), torch.tensor(y), near, overshoot=1e-6)).argmax(1).numpy() != y
    clear = np.abs(closed_form / near.eps - 1) > 1e-5
    np.testing.assert_array_equal(fallen[clear], (closed_form < near.eps)[clear])


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_in_a_box_two_linear_classes_are_left_by_the_shortest_way(norm):
    """It is min(t * pace, room) along the signs of the normal, with t from root finding."""
    rng = np.random.default_rng(3)
    weight, bias, x = rng.normal(size=(2, 12)), rng.normal(size=2), rng.uniform(size=(20, 12)).round(1)
    x[:, :4] = x[:, :4].round()  # at the box's edge
    model = linear(weight, bias)
    y = (x @ weight.T + bias).argmax(1)
    points = deepfool(
        model, torch.tensor(x), torch.tensor(y), Threat(norm, diagonal(norm, (12,))), steps=1, overshoot=0.0
    ).numpy()
    order, lengths, best = {"linf": np.inf, "l2": 2}[norm], [], []
    for point, origin, label in zip(points, x, y, strict=True):
        normal = weight[1 - label] - weight[label]
        gap = bias[label] - bias[1 - label] - normal @ origin
        room = np.where(normal > 0, 1 - origin, origin)
        if np.abs(normal) @ room <= gap:
            continue  # no point of the box is misclassified
        pace = np.ones(12) if norm == "linf" else np.abs(normal)
        best.append(np.linalg.norm(boxed_move(normal, gap, room, pace), order))
        lengths.append(np.linalg.norm(point - origin, order))
    assert len(best) > 10
    np.testing.assert_allclose(lengths, best, rtol=1e-9)


def boxed_move(normal, gap, room, pace):
    def lacking(t):
        return np.abs(normal) @ np.minimum(t * pace, room) - gap

    return np.minimum(brentq(lacking, 0, (room / pace).max(), xtol=1e-14) * pace, room)


# --- another implementation ------------------------------------------------------------------------------------------


def naive_deepfool(weights, biases, x, label, norm, overshoot, candidates, steps=50):
    """The paper's Algorithm 2 with the closed form of its section 3.3, one sample, no box."""

    def logits_and_jacobian(point):
        value, jacobian = point, np.eye(len(point))
        for place, (matrix, bias) in enumerate(zip(weights, biases, strict=True)):
            value, jacobian = matrix @ value + bias, matrix @ jacobian
            if place < len(weights) - 1:
                value, jacobian = np.maximum(value, 0), (value > 0)[:, None] * jacobian
        return value, jacobian

    q = DUAL[norm]
    logits, _ = logits_and_jacobian(x)
    others = [k for k in np.argsort(-logits) if k != label][:candidates]
    total, point, count = np.zeros_like(x), x, 0
    while logits_and_jacobian(point)[0].argmax() == label and count < steps:
        logits, jacobian = logits_and_jacobian(point)
        best = None
        for k in others:
            w, gap = jacobian[k] - jacobian[label], abs(logits[k] - logits[label])
            if best is None or gap / np.linalg.norm(w, q) < best[0]:
                best = gap / np.linalg.norm(w, q), gap, w
        _, gap, w = best
        if norm == "l1":
            step = np.where(np.abs(w) == np.abs(w).max(), gap / np.abs(w).max() * np.sign(w), 0.0)
        else:
            step = gap / np.linalg.norm(w, q) ** q * np.abs(w) ** (q - 1) * np.sign(w)
        total = total + step
        point, count = x + (1 + overshoot) * total, count + 1
    return point, count


@pytest.mark.parametrize("norm", DUAL)
@pytest.mark.parametrize("candidates", [2, 9])
def test_it_takes_the_steps_of_a_naive_implementation(norm, candidates):
    rng = np.random.default_rng(11)
    weights = [rng.normal(size=(16, 6)), rng.normal(size=(16, 16)), rng.normal(size=(5, 16))]
    biases = [rng.normal(size=16), rng.normal(size=16), rng.normal(size=5)]
    x = rng.normal(size=(25, 6))
    model, inputs = relu_network(weights, biases), torch.tensor(x)
    y = model(inputs).argmax(1)
    far = Threat(norm, 1e3, box=None)
    points = deepfool(model, inputs, y, far, overshoot=0.02, candidates=candidates)
    naive = [naive_deepfool(weights, biases, a, int(b), norm, 0.02, candidates) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(points.numpy(), [point for point, _ in naive], rtol=1e-9, atol=1e-9)
    assert max(count for _, count in naive) > 2


# --- properties ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(list(DUAL)),
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
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if edges:
        x = x.round()
    net = small_net(math.prod(shape), dtype=dtype)
    y = (net(x).argmax(1) + wrong) % 4
    threat = Threat(norm, share * diagonal(norm, shape))
    x_adv = deepfool(net, x, y, threat, steps=8)
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    if wrong:
        assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", DUAL)
def test_the_batch_changes_no_example(contested, norm):
    net, x, y, eps = contested
    threat = Threat(norm, eps[norm])
    whole = deepfool(net, x, y, threat)
    assert 0 < (net(whole).argmax(1) != y).sum() < 9
    parts = [deepfool(net, x[rows], y[rows], threat) for rows in torch.arange(9).split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("factor", [1e-3, 1e3])
def test_the_scale_of_the_logits_moves_nothing(trained, sample, factor):
    x, y = sample
    threat = Threat("linf", 0.08)
    scaled = nn.Sequential(trained, Scale(factor))
    before, after = (trained(deepfool(net, x, y, threat)).argmax(1) != y for net in (trained, scaled))
    assert 0.2 < float(before.double().mean()) < 0.9
    assert int((before != after).sum()) <= 1


class Scale(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return self.factor * x


def test_nearly_every_digit_is_left_and_costs_no_pass_once_it_is(trained, sample):
    x, y = sample
    rows = []
    hook = trained.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        points = deepfool(trained, x, y, Threat("l2", diagonal("l2", x.shape[1:])))
    finally:
        hook.remove()
    wrong = trained(points).argmax(1) != y
    assert float(wrong.double().mean()) > 0.98
    assert sum(rows) < 4 * len(x)


def test_model_and_random_numbers_stay_as_they_are(small_net):
    net = small_net(6).train()
    net[1].weight.requires_grad_(False)
    net[1].bias.grad = torch.ones(12)
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    state = torch.random.get_rng_state()
    first = deepfool(net, x, net(x).argmax(1), Threat("l2", 0.5))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, deepfool(net, x, net(x).argmax(1), Threat("l2", 0.5), seed=3))
    assert not first.requires_grad
    assert not x.requires_grad
    assert all(module.training for module in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, True, True, True]
    assert [p.grad is None for p in net.parameters()] == [True, False, True, True]
    assert torch.equal(net[1].bias.grad, torch.ones(12))


def test_bad_input_is_refused(small_net):
    net, x, y, threat = small_net(4), torch.full((3, 4), 0.5), torch.tensor([0, 1, 2]), Threat("linf", 0.1)
    with refused(ThreatError, "overshoot must be zero or more, and finite, but got -0.1; use for example 0.02."):
        deepfool(net, x, y, threat, overshoot=-0.1)
    with refused(ThreatError, "steps and restarts must be one or more, but got 0 and 1; use for example 40 and 1."):
        deepfool(net, x, y, threat, steps=0)
    with refused(ThreatError, "a targeted attack needs one target or more, but got 0; use for example 9."):
        deepfool(net, x, y, threat, candidates=0)
    with pytest.raises(DataError, match="inputs must be finite and lie in the box"):
        deepfool(net, x + 1, y, threat)
    with pytest.raises(ModelError, match="a model must return finite logits"):
        deepfool(nn.Flatten(0), x, y, threat)
