"""Nearest misclassified points: closed forms, the ball and the box, and what is left as found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pinchpoint.attack import Threat, margin, minimum_norm
from pinchpoint.errors import ThreatError


def linear(weight):
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    model.weight.data.copy_(torch.tensor(weight))
    return model


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
def test_the_distance_to_a_plane_is_the_closed_form(norm, dual):
    """(w_0 - w_1) x / ||w_0 - w_1||_dual, from near to far; nothing is returned where it lies beyond eps."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(2, 12))
    towards = weight[1] - weight[0]
    x = rng.normal(size=(40, 12))
    x -= 2 * np.maximum(x @ towards, 0)[:, None] * towards / (towards @ towards)  # all on the side of class 0
    distance = -(x @ towards) / np.linalg.norm(towards, dual)
    eps = float(np.median(distance))
    x32, y = torch.tensor(x, dtype=torch.float32), torch.zeros(40, dtype=torch.long)
    found = minimum_norm(linear(weight), x32, y, Threat(norm, eps, box=None), steps=80)
    size = np.linalg.norm(found.numpy() - x, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    near = distance < 0.98 * eps
    assert near.sum() > 15
    np.testing.assert_allclose(size[near], distance[near], rtol=0.03 if norm == "l1" else 0.01)
    assert (size[near] >= distance[near] * (1 - 1e-5)).all()
    np.testing.assert_array_equal(found.numpy()[distance > 1.01 * eps], x32.numpy()[distance > 1.01 * eps])


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.0), ("l1", 6.0)])
def test_every_point_is_inside_and_misclassified_or_the_input(trained, sample, assert_inside, norm, eps):
    x, y = sample
    threat = Threat(norm, eps)
    found = minimum_norm(trained, x, y, threat, steps=15)
    assert_inside(found, x, threat)
    moved = (found != x).flatten(1).any(1)
    wrong = trained(found).argmax(1) != y
    assert torch.equal(wrong, moved | (trained(x).argmax(1) != y))
    assert int(moved.sum()) > 20


def test_nothing_to_do():
    model, x = linear(np.eye(2)), torch.tensor([[0.6, 0.4], [0.1, 0.9]])
    y = torch.tensor([0, 0])
    assert torch.equal(minimum_norm(model, x, y, Threat("linf", 0.0)), x)
    assert torch.equal(minimum_norm(model, x[1:], y[1:], Threat("linf", 0.5)), x[1:])
    with pytest.raises(ThreatError, match="steps and restarts must be one or more"):
        minimum_norm(model, x, y, Threat("linf", 0.1), steps=0)


def test_two_classes_and_a_flat_landscape():
    model = nn.Sequential(nn.ReLU(), linear(np.eye(2)))
    x, y = torch.tensor([[0.6, 0.4]]), torch.tensor([0])
    found = minimum_norm(model, x, y, Threat("linf", 0.5))
    assert 0.1 <= float((found - x).abs().max()) < 0.102
    flat = linear(np.zeros((2, 2)))
    assert torch.equal(minimum_norm(flat, x, y, Threat("linf", 0.5)), x)


def test_model_and_rng_are_left_as_found(sample):
    x, y = sample[0][:8], sample[1][:8]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Dropout(0.5), nn.BatchNorm1d(16), nn.Linear(16, 10))
    model[3].eval()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    first = minimum_norm(model, x, y, Threat("l2", 0.5), steps=3, seed=4)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(first, minimum_norm(model, x, y, Threat("l2", 0.5), steps=3, seed=4))


def test_another_objective_is_taken(trained, sample):
    x, y = sample
    calls = []

    def counted(logits, labels):
        calls.append(len(logits))
        return margin(logits, labels)

    minimum_norm(trained, x, y, Threat("linf", 0.1), steps=5, objectives=(counted,))
    right = int((trained(x).argmax(1) == y).sum())
    assert calls == [right] * 6
