"""One perturbation for all inputs, by gradients and by DeepFool: inside its ball, better than chance on unseen data."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from oracles.threats import diagonal
from pinchpoint.attack import Threat, apply_universal, cross_entropy, deepfool, universal, universal_deepfool
from pinchpoint.errors import DataError, ThreatError
from pinchpoint.evaluate import within

BUDGETS = [("linf", 0.2), ("l2", 1.2), ("l1", 6.0)]


def accuracy(model, x, y):
    return float((model(x).argmax(1) == y).double().mean())


@pytest.mark.parametrize("fit", [universal, partial(universal_deepfool, epochs=2)])
@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
def test_fitted_on_training_data_it_beats_random_ones_on_test_data(trained, digits, fit, norm, eps):
    threat = Threat(norm, eps)
    delta = fit(trained, digits.x_train[:150], digits.y_train[:150], threat)
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


# --- the scale of the logits -----------------------------------------------------------------------------------------


class Scaled(nn.Module):
    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


@pytest.mark.parametrize(("norm", "eps"), BUDGETS)
@pytest.mark.parametrize("fit", [universal, partial(universal_deepfool, epochs=1)])
def test_the_scale_of_the_logits_moves_at_most_one_held_out_sample(trained, digits, fit, norm, eps):
    threat, x, y = Threat(norm, eps), digits.x_train[:100], digits.y_train[:100]
    wrong = []
    for factor in (1.0, 1e-3, 30.0, 1e3):
        delta = fit(Scaled(trained, factor), x, y, threat)
        wrong.append(int((trained(apply_universal(digits.x_test, delta, threat)).argmax(1) != digits.y_test).sum()))
    assert min(wrong) > 50
    assert max(wrong) - min(wrong) <= 1, wrong


def test_with_plain_cross_entropy_it_would_move_many(trained, digits):
    threat, x, y = Threat("linf", 0.2), digits.x_train[:300], digits.y_train[:300]
    wrong = []
    for factor in (1.0, 1e-3):
        delta = universal(Scaled(trained, factor), x, y, threat, objective=cross_entropy)
        wrong.append(int((trained(apply_universal(digits.x_test, delta, threat)).argmax(1) != digits.y_test).sum()))
    assert abs(wrong[0] - wrong[1]) > 5, wrong


# --- gathered from DeepFool steps ------------------------------------------------------------------------------------


def one_after_the_other(model, x, y, threat, order):
    """The paper's Algorithm 1, one pass: for each sample still right, what DeepFool (l2, no budget) adds."""
    delta, anywhere = torch.zeros_like(x[0]), Threat("l2", diagonal("l2", x.shape[1:]))
    for i in order:
        moved = apply_universal(x[i : i + 1], delta, threat)
        if model(moved).argmax(1) != y[i]:
            continue
        left = deepfool(model, moved, y[i : i + 1], anywhere, steps=20)
        delta = delta + (left - moved)[0]
        if threat.norm == "linf":
            delta = delta.clamp(-threat.eps, threat.eps)
        else:
            delta = delta * min(1.0, threat.eps / float(delta.norm()))
    return delta


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6)])
def test_in_blocks_of_one_it_is_the_papers_algorithm(small_net, norm, eps):
    net = small_net(9, dtype=torch.float64)
    x = torch.tensor(np.random.default_rng(0).uniform(size=(25, 9)))
    y, threat = net(x).argmax(1), Threat(norm, eps)
    order = torch.randperm(25, generator=torch.Generator().manual_seed(5)).tolist()
    ours = universal_deepfool(net, x, y, threat, epochs=1, block=1, seed=5)
    expected = one_after_the_other(net, x, y, threat, order)
    assert float(expected.abs().max()) > 0
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5 * eps)


def test_it_stops_at_the_rate_asked_for_and_keeps_its_best_pass(trained, digits):
    x, y, threat = digits.x_train[:80], digits.y_train[:80], Threat("linf", 0.2)

    def gathered(**options):
        return universal_deepfool(trained, x, y, threat, **options)

    rates = [
        1 - accuracy(trained, apply_universal(x, gathered(epochs=e, fooling_rate=1.0), threat), y) for e in (1, 2, 4)
    ]
    assert 0.1 < rates[0] <= rates[1] <= rates[2]
    assert torch.equal(gathered(epochs=4, fooling_rate=rates[0] - 1e-9), gathered(epochs=1))
    assert not torch.equal(gathered(epochs=4, fooling_rate=1.0), gathered(epochs=1))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("eps", [0.0, 0.05, 0.7])
def test_what_deepfool_gathers_stays_in_the_ball(trained, digits, assert_inside, norm, eps):
    threat = Threat(norm, eps)
    delta = universal_deepfool(trained, digits.x_train[:40], digits.y_train[:40], threat, epochs=1)
    assert np.linalg.norm(delta.double().numpy().ravel(), {"linf": np.inf, "l2": 2, "l1": 1}[norm]) <= eps * (1 + 1e-6)
    assert_inside(apply_universal(digits.x_test, delta, threat), digits.x_test, threat)


def test_bad_input_is_refused(trained, digits):
    x, y, threat = digits.x_train[:5], digits.y_train[:5], Threat("linf", 0.1)
    with refused(ThreatError, "fooling_rate must be above 0 and at most 1, but got 1.2; use for example 0.8."):
        universal_deepfool(trained, x, y, threat, fooling_rate=1.2)
    with refused(ThreatError, "epochs and block must be one or more, but got 0 and 32; use for example 10 and 32."):
        universal_deepfool(trained, x, y, threat, epochs=0)
    for fit in (universal, universal_deepfool):
        with refused(
            DataError, "there must be one label for each input, but got 5 inputs and 4 labels; check the data."
        ):
            fit(trained, x, y[:4], threat)
        with pytest.raises(DataError, match="inputs must be finite and lie in the box"):
            fit(trained, x + 1, y, threat)
