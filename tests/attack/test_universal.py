"""One perturbation for all inputs: inside its ball, better than chance on data it has not seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pinchpoint.attack import Threat, apply_universal, cross_entropy, universal
from pinchpoint.evaluate import within

BUDGETS = [("linf", 0.2), ("l2", 1.2)]


def accuracy(model, x, y):
    return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
def test_fitted_on_training_data_it_beats_random_ones_on_test_data(trained, digits, norm, eps):
    threat = Threat(norm, eps)
    delta = universal(trained, digits.x_train, digits.y_train, threat, steps=60)
    fitted = accuracy(trained, apply_universal(digits.x_test, delta, threat), digits.y_test)
    ball, generator = Threat(norm, eps, box=None), torch.Generator().manual_seed(0)
    random = [
        accuracy(
            trained,
            apply_universal(digits.x_test, ball.random_start(torch.zeros_like(delta[None]), generator)[0], threat),
            digits.y_test,
        )
        for _ in range(10)
    ]
    assert fitted < min(random) - 0.1


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2)])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.7])
def test_perturbation_and_perturbed_inputs_stay_inside(trained, digits, assert_inside, norm, order, eps):
    threat = Threat(norm, eps)
    delta = universal(trained, digits.x_train[:64], digits.y_train[:64], threat, steps=10)
    assert delta.shape == digits.x_train.shape[1:]
    assert np.linalg.norm(delta.double().numpy().ravel(), order) <= eps * (1 + 1e-7)
    moved = apply_universal(digits.x_test, delta, threat)
    assert_inside(moved, digits.x_test, threat)
    assert within(moved, digits.x_test, threat).all()


@pytest.mark.parametrize(("norm", "order"), [("linf", np.inf), ("l2", 2)])
def test_on_a_linear_model_it_is_the_direction_between_the_classes(norm, order):
    weight = torch.tensor(np.random.default_rng(0).normal(size=(2, 9)), dtype=torch.float64)
    model = nn.Linear(9, 2, bias=False, dtype=torch.float64)
    model.weight.data.copy_(weight)
    x = torch.tensor(np.random.default_rng(1).normal(size=(30, 9)))
    delta = universal(model, x, torch.zeros(30, dtype=torch.long), Threat(norm, 0.4, box=None), batch_size=7)
    towards = (weight[1] - weight[0]).numpy()
    best = 0.4 * np.linalg.norm(towards, {np.inf: 1, 2: 2}[order])
    assert delta.numpy() @ towards == pytest.approx(best, abs=1e-5)


def test_seeds_and_float64(trained, digits):
    x, y, threat = digits.x_train[:200], digits.y_train[:200], Threat("linf", 0.1)
    first, again, other = (universal(trained, x, y, threat, steps=5, batch_size=32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    assert universal(model, x.double(), y, threat, steps=2).dtype == torch.float64


def test_more_restarts_never_fool_fewer_training_samples(trained, digits):
    x, y, threat = digits.x_train[:300], digits.y_train[:300], Threat("linf", 0.12)
    fooled = []
    for restarts in (1, 4):
        delta = universal(trained, x, y, threat, steps=5, restarts=restarts, step_size=0.01)
        fooled.append(1 - accuracy(trained, apply_universal(x, delta, threat), y))
    assert fooled[1] > fooled[0]


def test_one_sample_and_a_batch_larger_than_the_data(trained, digits):
    x, y, threat = digits.x_test[:1], digits.y_test[:1], Threat("l2", 0.5)
    delta = universal(trained, x, y, threat, steps=20, batch_size=64)
    moved = apply_universal(x, delta, threat)
    assert cross_entropy(trained(moved), y).item() > cross_entropy(trained(x), y).item()
