"""Verdicts: an attack is not believed. Fake attacks that lie or do nothing are counted for it."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat, apgd, pgd
from pinchpoint.attack.gradient import eval_mode
from pinchpoint.errors import DataError, ModelError, ThreatError
from pinchpoint.evaluate import (
    accuracy,
    adversarial_loss,
    cross_entropy_loss,
    default_attacks,
    logits_of,
    robust_accuracy,
    robust_curve,
    universal_accuracy,
    within,
)


class FirstPixel(nn.Module):
    """Class 1 where the first pixel is at least one half; NaN where it is NaN."""

    def forward(self, x):
        first = x.flatten(1)[:, 0]
        return torch.stack([0.5 - first, first - 0.5], 1)


MODEL, THREAT = FirstPixel(), Threat("linf", 0.1)
X = torch.tensor([[0.45, 0.5], [0.2, 0.5], [0.8, 0.5], [0.55, 0.5]])
Y = torch.tensor([0, 0, 0, 1])  # near the border, far from it, wrong already, near it on the other side


def shift(by):
    """An attack that moves the first pixel, whatever is allowed."""

    def attack(model, x, y, threat):
        moved = x.clone()
        moved[:, 0] += torch.where(y == 0, by, -by)
        return moved

    return attack


# --- the check -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("norm", "delta", "expected"),
    [
        ("linf", [0.1, -0.1, 0.0], True),
        ("linf", [0.1001, 0.0, 0.0], False),
        ("linf", [0.0, 0.0, -0.1001], False),
        ("l2", [0.06, 0.08, 0.0], True),
        ("l2", [0.06, 0.08, 0.01], False),
        ("l2", [0.1, 0.1, 0.1], False),
        ("linf", [float("nan"), 0.0, 0.0], False),
        ("l2", [float("inf"), 0.0, 0.0], False),
    ],
)
def test_within_the_ball(norm, delta, expected):
    x = torch.full((1, 3), 0.5)
    assert within(x + torch.tensor([delta]), x, Threat(norm, 0.1)).item() is expected
    if math.isfinite(delta[0]):
        assert within(x + torch.tensor([delta]), x, Threat(norm, 0.1, box=None)).item() is expected


def test_within_the_box():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    moved = torch.tensor([[0.0, 1.0], [-1e-6, 1.0], [0.0, 1.0 + 1e-6]])
    assert within(moved, x, THREAT).tolist() == [True, False, False]
    assert within(moved, x, Threat("linf", 0.1, box=None)).tolist() == [True, True, True]


def test_within_judges_a_sample_by_itself():
    """A huge neighbour in the batch must not loosen the tolerance."""
    threat = Threat("linf", 0.1, box=None)
    x = torch.tensor([[0.5], [1e6]])
    assert within(x + torch.tensor([[0.1001], [0.0]]), x, threat).tolist() == [False, True]


@settings(max_examples=200, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.floats(1e-4, 1),
    centre=st.floats(0, 1),
    size=st.integers(1, 40),
    double=st.booleans(),
    seed=st.integers(0, 99),
)
def test_within_accepts_the_edge_however_it_rounds_and_nothing_beyond(norm, eps, centre, size, double, seed):
    rng = np.random.default_rng(seed)
    delta = rng.choice([-1.0, 1.0], size) if norm == "linf" else rng.normal(size=size)
    delta *= eps / np.linalg.norm(delta, {"linf": np.inf, "l2": 2}[norm])
    x = torch.full((1, size), centre, dtype=torch.float64 if double else torch.float32)
    threat = Threat(norm, eps, box=None)
    assert within((x.double() + torch.tensor(delta)).to(x.dtype), x, threat).item()
    beyond = 1 + 4 * 2.0**-23 * size**0.5 * (1 + centre / eps)
    assert not within((x.double() + beyond * torch.tensor(delta)).float(), x.float(), threat).item()


# --- verdicts --------------------------------------------------------------------------------------------------------


def test_stages_and_counts():
    verdict = robust_accuracy(MODEL, X, Y, THREAT, attacks={"weak": shift(0.02), "strong": shift(0.06)})
    assert verdict.fallen.tolist() == [True, False, True, True]
    assert verdict.stage == ("strong", "survived", "clean", "strong")
    assert verdict.settled == {"strong": 2, "survived": 1, "clean": 1}
    assert verdict.robust_accuracy == 0.25
    assert verdict.rejected == 0
    torch.testing.assert_close(verdict.adversarial[:, 0], torch.tensor([0.51, 0.26, 0.8, 0.49]))


def test_later_attacks_see_only_survivors():
    seen = []

    def recorder(model, x, y, threat):
        seen.append(x[:, 0].tolist())
        return x

    robust_accuracy(MODEL, X, Y, THREAT, attacks={"first": recorder, "strong": shift(0.06), "last": recorder})
    assert [np.round(rows, 6).tolist() for rows in seen] == [[0.45, 0.2, 0.55], [0.2]]


def test_points_outside_the_ball_are_rejected():
    verdict = robust_accuracy(MODEL, X, Y, THREAT, attacks={"liar": shift(0.35)})
    assert verdict.fallen.tolist() == [False, False, True, False]
    assert verdict.rejected == 3
    assert torch.equal(verdict.adversarial, X)


def test_points_outside_the_box_are_rejected():
    x, y = torch.tensor([[0.45, 1.0]]), torch.tensor([0])

    def attack(model, x, y, threat):
        return x + 0.06

    assert robust_accuracy(MODEL, x, y, THREAT, attacks={"liar": attack}).rejected == 1
    assert robust_accuracy(MODEL, x, y, Threat("linf", 0.1, box=None), attacks={"fair": attack}).fallen.item()


def test_nan_is_no_example():
    def attack(model, x, y, threat):
        return torch.full_like(x, torch.nan)

    verdict = robust_accuracy(MODEL, X, Y, THREAT, attacks={"nan": attack})
    assert verdict.fallen.tolist() == [False, False, True, False]
    assert torch.isfinite(verdict.adversarial).all()


def test_points_that_fool_nobody_do_not_count():
    verdict = robust_accuracy(MODEL, X, Y, THREAT, attacks={"idle": lambda model, x, y, threat: x})
    assert verdict.robust_accuracy == 0.75
    assert verdict.rejected == 0


def test_an_example_counts_as_the_float32_that_is_stored():
    """In float64 the point lies on the far side of the border; stored as float32 it does not."""
    x = torch.tensor([[0.45]], dtype=torch.float64)

    def attack(model, x, y, threat):
        return torch.full_like(x, 0.5 + 1e-10)

    class Strict(FirstPixel):
        def forward(self, x):
            return super().forward(x) - torch.tensor([0.0, 1e-12], dtype=x.dtype)

    verdict = robust_accuracy(Strict(), x, torch.tensor([0]), THREAT, attacks={"fine": attack})
    assert Strict()(attack(None, x, None, None)).argmax() == 1
    assert not verdict.fallen.item()
    assert verdict.adversarial.dtype == torch.float64


def test_known_examples_are_tried_first_and_checked_too():
    known = X.clone()
    known[0, 0], known[3, 0] = 0.54, 0.1  # in the ball; far outside it
    verdict = robust_accuracy(MODEL, X, Y, THREAT, attacks={"strong": shift(0.06)}, known=known)
    assert verdict.stage == ("known", "survived", "clean", "strong")
    assert verdict.rejected == 1


def test_a_budget_of_zero_runs_no_attack():
    def attack(model, x, y, threat):
        raise AssertionError

    verdict = robust_accuracy(MODEL, X, Y, Threat("l2", 0.0), attacks={"never": attack})
    assert verdict.robust_accuracy == accuracy(MODEL, X, Y) == 0.75


@pytest.mark.parametrize("batch_size", [1, 2, 3, 1024])
def test_batches_change_nothing(batch_size):
    whole = robust_accuracy(MODEL, X, Y, THREAT, attacks={"strong": shift(0.06)})
    parts = robust_accuracy(MODEL, X, Y, THREAT, attacks={"strong": shift(0.06)}, batch_size=batch_size)
    assert parts.stage == whole.stage
    assert torch.equal(parts.adversarial, whole.adversarial)


def test_bad_input_is_refused_even_where_no_attack_would_run():
    wrong = torch.tensor([1, 1, 0, 0])
    with refused(DataError, "there must be one label for each input, but got 4 inputs and 3 labels; check the data."):
        robust_accuracy(MODEL, X, Y[:3], THREAT)
    with pytest.raises(
        DataError, match=r"labels must lie in 0 \.\.\. 1, one for each of the model.s logits, but got 1 \.\.\. 2"
    ):
        robust_accuracy(MODEL, X, wrong + 1, THREAT)
    with pytest.raises(DataError, match=r"inputs must be finite and lie in the box \[0, 1\]"):
        robust_accuracy(MODEL, X + 1, Y, Threat("linf", 0.0))
    with pytest.raises(DataError, match="inputs must be a non-empty batch"):
        robust_accuracy(MODEL, X[:0], Y[:0], THREAT)
    with pytest.raises(ModelError, match="a model must return finite logits"):
        robust_accuracy(lambda_module(lambda x: x * torch.nan), X, Y, THREAT, attacks={})


def lambda_module(function):
    class Wrapped(nn.Module):
        def forward(self, x):
            return function(x)

    return Wrapped()


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.07), ("l2", 0.4)])
def test_every_verdict_survives_an_independent_look(trained, digits, norm, eps):
    x, y = digits.x_test[:120], digits.y_test[:120]
    verdict = robust_accuracy(trained, x, y, Threat(norm, eps), attacks=default_attacks(trained, x, steps=20))
    moved = verdict.adversarial.double().numpy() - x.double().numpy()
    size = np.linalg.norm(moved.reshape(120, -1), {"linf": np.inf, "l2": 2}[norm], axis=1)
    wrong = (trained(verdict.adversarial).argmax(1) != y).numpy()
    assert size.max() <= eps + 1e-6
    np.testing.assert_array_equal(wrong, verdict.fallen.numpy())
    assert verdict.robust_accuracy == pytest.approx(1 - wrong.mean())
    assert sum(verdict.settled.values()) == 120
    assert verdict.settled["clean"] == int((trained(x).argmax(1) != y).sum())
    assert verdict.rejected == 0


def test_one_sample_and_two_classes(digits):
    assert set(default_attacks(MODEL, X)) == {"apgd-ce", "apgd-margin"}
    verdict = robust_accuracy(MODEL, X[:1], Y[:1], THREAT)
    assert verdict.stage == ("apgd-ce",)


class Scaled(nn.Module):
    """The same decisions, logits multiplied by a constant."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.07), ("l2", 0.4)])
def test_default_attacks_do_not_see_the_scale_of_the_logits(trained, digits, norm, eps):
    x, y = digits.x_test[:200], digits.y_test[:200]
    standing = {}
    for factor in (1e-3, 1e-1, 1.0, 30.0, 1e3):
        model = Scaled(trained, factor)
        verdict = robust_accuracy(model, x, y, Threat(norm, eps), attacks=default_attacks(model, x, steps=50))
        standing[factor] = int((~verdict.fallen).sum())
    assert 50 < standing[1.0] < 150
    assert max(standing.values()) - min(standing.values()) <= 1, standing


def test_plain_cross_entropy_does_see_it(trained, digits):
    """What the test above guards against is real: without rescaling, large logits hide the gradient."""
    x, y = digits.x_test[:200], digits.y_test[:200]
    plain = {"ce": lambda m, a, b, t: apgd(m, a, b, t, steps=50)}
    small, large = (
        robust_accuracy(Scaled(trained, f), x, y, Threat("linf", 0.07), attacks=plain).robust_accuracy for f in (1, 1e3)
    )
    assert large > small + 0.05


# --- curves ----------------------------------------------------------------------------------------------------------


def quick(model, x, y, threat):
    return pgd(model, x, y, threat, steps=3, seed=5)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_curve_never_rises(trained, digits, norm):
    x, y = digits.x_test[:150], digits.y_test[:150]
    threats = [Threat(norm, eps) for eps in (0.0, 0.01, 0.05, 0.1, 0.4, 1.0)]
    curve = robust_curve(trained, x, y, threats, attacks={"pgd": quick})
    accuracies = [verdict.robust_accuracy for verdict in curve]
    assert accuracies == sorted(accuracies, reverse=True)
    assert accuracies[0] == accuracy(trained, x, y)
    assert accuracies[-1] < accuracies[0]
    for before, after in pairwise(curve):
        assert (after.fallen | ~before.fallen).all()
        found = before.fallen & torch.tensor([stage != "clean" for stage in before.stage])
        assert all(after.stage[row] == "known" for row in torch.nonzero(found).flatten())
        assert within(after.adversarial, x, after.threat).all()


def test_a_curve_is_never_above_single_verdicts(trained, digits):
    x, y = digits.x_test[:100], digits.y_test[:100]
    threats = [Threat("linf", eps) for eps in (0.03, 0.06, 0.09)]
    for verdict in robust_curve(trained, x, y, threats, attacks={"pgd": quick}):
        alone = robust_accuracy(trained, x, y, verdict.threat, attacks={"pgd": quick})
        assert verdict.robust_accuracy <= alone.robust_accuracy


def test_failed_attempts_are_stretched_to_the_next_budget():
    """What went half of the way to the edge of the small ball, .04, goes .05 at the larger one: past the border."""

    def half(model, x, y, threat):
        return shift(0.5 * threat.eps)(model, x, y, threat)

    def idle(model, x, y, threat):
        return x

    x, y, larger = torch.tensor([[0.455, 0.5]]), torch.tensor([0]), [Threat("linf", 0.1)]
    first = robust_accuracy(MODEL, x, y, Threat("linf", 0.08), attacks={"half": half})
    assert not first.fallen.item()
    assert robust_curve(MODEL, x, y, larger, attacks={"idle": idle}, known=first)[0].stage == ("known",)
    assert robust_curve(MODEL, x, y, larger, attacks={"idle": idle})[0].stage == ("survived",)


@pytest.mark.parametrize(
    "threats",
    [
        [Threat("linf", 0.2), Threat("linf", 0.1)],
        [Threat("linf", 0.1), Threat("linf", 0.1)],
        [Threat("linf", 0.1), Threat("l2", 0.2)],
        [Threat("linf", 0.1), Threat("linf", 0.2, box=None)],
    ],
)
def test_curves_that_make_no_sense(threats):
    rule = "a curve needs one norm, one box and rising budgets, but got .*; sort the budgets"
    with pytest.raises(ThreatError, match=rule):
        robust_curve(MODEL, X, Y, threats)
    known = robust_accuracy(MODEL, X, Y, threats[0], attacks={})
    with pytest.raises(ThreatError, match=rule):
        robust_curve(MODEL, X, Y, threats[1:], known=known)


def test_an_empty_curve():
    assert robust_curve(MODEL, X, Y, []) == []


# --- losses, universal perturbations, modes --------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.05), ("l2", 0.3), ("l2", 0.0)])
def test_adversarial_loss_is_reached_where_it_says(trained, digits, norm, eps):
    x, y, threat = digits.x_test[:80], digits.y_test[:80], Threat(norm, eps)
    clean = cross_entropy_loss(trained, x, y)
    losses, where = adversarial_loss(trained, x, y, threat, steps=20)
    z = trained(where).detach().double().numpy()
    expected = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(80), y.numpy()]
    np.testing.assert_allclose(losses.numpy(), expected, atol=1e-12)
    assert losses.dtype == torch.float64
    assert (losses >= clean).all()
    assert within(where, x, threat).all()
    assert (float(losses.mean()) > 2 * float(clean.mean())) == (eps > 0)


def test_adversarial_loss_of_a_linear_model_is_the_closed_form():
    weight = np.random.default_rng(0).normal(size=(2, 6))
    model = nn.Linear(6, 2, bias=False)
    model.weight.data.copy_(torch.tensor(weight))
    x, y = torch.full((1, 6), 0.5), torch.tensor([0])
    towards = weight[1] - weight[0]
    for norm, dual in (("linf", 1), ("l2", 2)):
        losses, _ = adversarial_loss(model, x, y, Threat(norm, 0.3))
        best = np.log1p(np.exp(towards.sum() * 0.5 + 0.3 * np.linalg.norm(towards, dual)))
        assert float(losses) == pytest.approx(best, abs=1e-5)


def test_universal_accuracy_counts_what_its_perturbation_does(trained, digits):
    threat = Threat("linf", 0.15)
    share, delta = universal_accuracy(
        trained, (digits.x_train, digits.y_train), (digits.x_test, digits.y_test), threat, steps=40
    )
    assert np.abs(delta.numpy()).max() <= 0.15 * (1 + 1e-7)
    moved = np.clip(digits.x_test.numpy() + delta.numpy(), 0, 1)
    right = (trained(torch.tensor(moved)).argmax(1) == digits.y_test).double().mean()
    assert share == pytest.approx(float(right), abs=1 / len(moved))
    assert share < accuracy(trained, digits.x_test, digits.y_test) - 0.05
    again = universal_accuracy(
        trained, (digits.x_train, digits.y_train), (digits.x_test, digits.y_test), threat, steps=40
    )
    assert again[0] == share
    assert torch.equal(again[1], delta)


def mixed_model():
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    model.train()
    model[3].eval()
    model[1].weight.requires_grad_(False)
    return model


def test_eval_mode_puts_mixed_modes_back_even_after_an_error():
    model = mixed_model()
    modes = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    with pytest.raises(RuntimeError, match="inside"), eval_mode(model):
        raise RuntimeError("inside")
    assert [module.training for module in model.modules()] == modes


def test_judging_leaves_model_and_global_rng_as_they_were():
    model = mixed_model()
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    first = robust_accuracy(model, X, Y, THREAT)
    robust_curve(model, X, Y, [Threat("l2", 0.1), Threat("l2", 0.2)], attacks=default_attacks(model, X, steps=5))
    adversarial_loss(model, X, Y, THREAT, steps=5)
    universal_accuracy(model, (X, Y), (X, Y), THREAT, steps=5)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert [parameter.requires_grad for parameter in model.parameters()] == [False] + [True] * 5
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name])
    assert robust_accuracy(model, X, Y, THREAT).stage == first.stage


def test_logits_do_not_depend_on_mode_or_batches():
    model = mixed_model()
    torch.testing.assert_close(logits_of(model, X, batch_size=3), model.eval()(X))
    assert not logits_of(model, X).requires_grad


def test_clean_accuracy_and_loss_against_numpy(trained, digits):
    z = trained(digits.x_test).detach().double().numpy()
    y = digits.y_test.numpy()
    assert accuracy(trained, digits.x_test, digits.y_test) == pytest.approx((z.argmax(1) == y).mean())
    loss = np.log(np.exp(z - z.max(1, keepdims=True)).sum(1)) + z.max(1) - z[np.arange(len(y)), y]
    np.testing.assert_allclose(cross_entropy_loss(trained, digits.x_test, digits.y_test).numpy(), loss, atol=1e-5)


def test_an_answer_that_is_not_a_number_is_no_right_answer():
    class NanBeyondHalf(nn.Module):
        """Right on clean inputs below one half; NaN at the label's own logit above."""

        def forward(self, x):
            logits = torch.zeros(len(x), 3)
            logits[:, 0] = torch.where(x.flatten(1)[:, 0] > 0.5, torch.nan, 1.0)
            return logits

    x, y = torch.full((2, 1), 0.45), torch.tensor([0, 0])
    verdict = robust_accuracy(
        NanBeyondHalf(), x, y, Threat("linf", 0.1), attacks={"push": lambda model, x, y, threat: x + 0.1}
    )
    assert verdict.stage == ("push", "push")
