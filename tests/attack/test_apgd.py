"""AutoPGD: against the paper's pseudo-code in plain loops, an independent library, and closed forms."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.threats import diagonal
from pinchpoint.attack import (
    Threat,
    apgd,
    apgd_to_the_end,
    cross_entropy,
    dlr,
    margin,
    targeted_apgd,
    targeted_dlr,
    targeted_margin,
)
from pinchpoint.attack.apgd_step import State, checkpoints, reconsider_sparsity, reconsider_step
from pinchpoint.attack.targets import likeliest
from pinchpoint.errors import ThreatError
from pinchpoint.evaluate import default_attacks, robust_accuracy, within

# --- the paper's Algorithm 1, one sample at a time -------------------------------------------------------------------


def paper_checkpoints(steps):
    """w_j = p_j N with p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06), in exact fractions."""
    before, at, found = Fraction(0), Fraction(22, 100), []
    while at * steps <= steps:
        found.append(math.ceil(at * steps))
        before, at = at, at + max(at - before - Fraction(3, 100), Fraction(6, 100))
    return found


def project(point, center, norm, radius):
    if norm == "linf":
        point = np.minimum(np.maximum(point, center - radius), center + radius)
    else:
        length = np.sqrt(np.sum((point - center) ** 2))
        if length > radius:
            point = center + (point - center) * (radius / length)
    return np.minimum(np.maximum(point, 0.0), 1.0)


def ascent(gradient, norm):
    return np.sign(gradient) if norm == "linf" else gradient / np.sqrt(np.sum(gradient**2))


def algorithm_1(f, grad, center, start, norm, eps, steps):
    """Every point evaluated, in order, the best one, and how often the step was halved.

    As in the authors' code a checkpoint at w is reached after w steps, condition 1 holds for a share of exactly rho too,
    and condition 2 is first asked at the second checkpoint.
    """
    radius = eps if norm == "linf" else eps * (1 - 1e-6)  # the library draws the l2 ball that much smaller
    alpha, rho, eta = 0.75, Fraction(3, 4), 2 * eps
    marks = paper_checkpoints(steps)
    points, values = [start], [f(start)]
    best, f_max = start, values[0]
    last_mark, f_max_at_mark, halved_at_mark, halvings = 0, f_max, True, 0
    previous = current = start
    for k in range(1, steps + 1):
        z = project(current + eta * ascent(grad(current), norm), center, norm, radius)
        if k > 1:
            z = project(current + alpha * (z - current) + (1 - alpha) * (current - previous), center, norm, radius)
        previous, current = current, z
        points.append(current)
        values.append(f(current))
        if values[k] > f_max:
            best, f_max = current, values[k]
        if k in marks:
            successes = sum(values[i + 1] > values[i] for i in range(last_mark, k))
            condition_1 = successes <= rho * (k - last_mark)
            condition_2 = not halved_at_mark and f_max == f_max_at_mark
            halved_at_mark = condition_1 or condition_2
            if halved_at_mark:
                eta, current, halvings = eta / 2, best, halvings + 1
            last_mark, f_max_at_mark = k, f_max
    return points, best, halvings


INPUTS = 30


def on_a_grid(logits, y):
    """Cross-entropy rounded to 1e-9, with its own gradient: "larger" then means the same however the sums were rounded."""
    values = cross_entropy(logits, y)
    return values + ((values * 1e9).round() / 1e9 - values).detach()


class RowByRow(nn.Module):
    """Two layers whose result for a sample does not depend on the batch, recording what it is asked."""

    def __init__(self, smooth):
        super().__init__()
        rng = np.random.default_rng(5)
        self.first = torch.tensor(rng.normal(size=(40, INPUTS)))
        self.second = torch.tensor(rng.normal(size=(3, 40)))
        self.smooth = smooth
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach().clone())
        hidden = (x[:, None, :] * self.first).sum(-1) - 0.3
        hidden = torch.tanh(3 * hidden) if self.smooth else torch.relu(hidden)
        return (hidden[:, None, :] * self.second).sum(-1)


@pytest.mark.parametrize("smooth", [True, False], ids=["tanh", "relu"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5), ("l2", 0.6)])
def test_every_iterate_is_that_of_algorithm_1(norm, eps, smooth):
    model, threat, steps = RowByRow(smooth), Threat(norm, eps), 100
    x = torch.tensor(np.random.default_rng(6).uniform(size=(8, INPUTS)))
    y = model(x).argmax(1)
    model.asked.clear()
    result = apgd(model, x, y, threat, steps=steps, objective=on_a_grid, drop_fallen=False, seed=9)
    _, *asked = model.asked[: steps + 2]  # the first call checks the input
    ours = torch.stack(asked).numpy()
    start = threat.random_start(x, torch.Generator().manual_seed(9)).numpy()
    halvings = []
    for row in range(len(x)):
        label = y[row : row + 1]

        def f(point, label=label):
            return on_a_grid(model(torch.tensor(point)[None]), label).item()

        def grad(point, label=label):
            leaf = torch.tensor(point)[None].requires_grad_(True)
            return torch.autograd.grad(on_a_grid(model(leaf), label).sum(), leaf)[0][0].numpy()

        points, best, halved = algorithm_1(f, grad, x[row].numpy(), start[row], norm, eps, steps)
        np.testing.assert_allclose(ours[:, row], np.stack(points), rtol=0, atol=1e-10)
        if f(best) > f(x[row].numpy()):
            np.testing.assert_allclose(result[row].numpy(), best, rtol=0, atol=1e-10)
        halvings.append(halved)
    assert min(halvings) >= 1
    assert len(set(halvings)) > 1, "samples must find their own step sizes, or the comparison shows little"


def test_the_two_conditions_at_a_checkpoint():
    """After 16 steps: rises below, at and above three quarters; then no new best value with and without a halving before."""
    rises = torch.tensor([11, 12, 13, 16, 16])
    ones, zeros = torch.ones(5, 1), torch.zeros(5, 1)
    state = State(
        **dict.fromkeys(("x", "previous", "gradient"), zeros),
        **{name: torch.zeros(5) for name in ("index", "sample", "y", "value", "share", "moved", "fallen")},
        adv=zeros,
        step=ones,
        best=2 * ones,
        best_gradient=3 * ones,
        best_value=torch.tensor([1.0, 1.0, 1.0, 0.0, 0.0]),
        checked_value=torch.zeros(5),
        rises=rises,
        halved=torch.tensor([False, False, False, False, True]),
    )
    reconsider_step(state, 16)
    halved = [True, True, False, True, False]
    assert state.halved.tolist() == halved
    assert state.step.flatten().tolist() == [0.5 if half else 1.0 for half in halved]
    assert state.adv.flatten().tolist() == [2.0 if half else 0.0 for half in halved]
    assert state.gradient.flatten().tolist() == [3.0 if half else 0.0 for half in halved]
    assert state.rises.tolist() == [0] * 5
    assert torch.equal(state.checked_value, state.best_value)


@pytest.mark.parametrize("steps", [100, 200, 500, 1000])
def test_checkpoints_are_the_papers(steps):
    assert checkpoints(steps) == paper_checkpoints(steps)


@pytest.mark.parametrize("steps", [1, 2, 7, 10, 30, 50, 99])
def test_checkpoints_of_short_runs_rise_within_the_run(steps):
    found = checkpoints(steps)
    assert found == sorted(set(found))
    assert found[0] == max(1, int(0.22 * steps))
    assert found[-1] <= steps


# --- an independent library ------------------------------------------------------------------------------------------


def library_accuracy(model, x, y, norm, eps, seed):
    """Robust accuracy under pyautoattack's AutoPGD-CE. It seeds the global RNG, so that is put back."""
    from pyautoattack.autopgd_base import APGDAttack

    with torch.random.fork_rng(devices=[]):
        attack = APGDAttack(
            model, n_iter=100, norm={"linf": "Linf", "l2": "L2"}[norm], n_restarts=1, eps=eps, seed=seed, device="cpu"
        )
        x_adv = attack.perturb(x, y).detach()
    delta = (x_adv.double() - x.double()).flatten(1).numpy()
    assert (np.abs(delta).max() if norm == "linf" else np.linalg.norm(delta, axis=1).max()) <= eps * (1 + 1e-5)
    with torch.no_grad():
        return float((model(x_adv).argmax(1) == y).double().mean())


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.45)])
@pytest.mark.long
def test_robust_accuracy_lies_in_the_librarys_own_range(trained, digits, norm, eps):
    x, y, threat = digits.x_test, digits.y_test, Threat(norm, eps)
    theirs = [library_accuracy(trained, x, y, norm, eps, seed) for seed in range(4)]
    ours = []
    for seed in range(3):
        attack = {"ce": lambda m, a, b, t, seed=seed: apgd(m, a, b, t, objective=cross_entropy, seed=seed)}
        ours.append(robust_accuracy(trained, x, y, threat, attacks=attack).robust_accuracy)
    ensemble = robust_accuracy(trained, x, y, threat, attacks=default_attacks(trained, x, steps=100)).robust_accuracy
    print(f"\n{norm} {eps}: pyautoattack {theirs}, ours {ours}, default attacks {ensemble}")
    assert 0.2 < min(theirs) < 0.8, "a budget where nothing or everything falls compares nothing"
    assert min(theirs) <= np.median(ours) <= max(theirs)
    assert ensemble <= min(theirs)


# --- closed forms ----------------------------------------------------------------------------------------------------


def linear(weight, bias=None):
    model = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor(weight))
    if bias is not None:
        model.bias.data.copy_(torch.tensor(bias))
    return nn.Sequential(nn.Flatten(), model)


@pytest.mark.parametrize("objective", [cross_entropy, margin])
@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_best_attack_on_a_binary_linear_model(norm, dual, objective):
    rng = np.random.default_rng(3)
    weight, bias, eps = rng.normal(size=(2, 12)), rng.normal(size=2), 0.2
    x, y = rng.normal(size=(9, 3, 4)), np.arange(9) % 2
    model, threat = linear(weight, bias), Threat(norm, eps, box=None)
    x_adv = apgd(model, torch.tensor(x), torch.tensor(y), threat, objective=objective, drop_fallen=False)
    towards = np.where(y[:, None] == 0, weight[1] - weight[0], weight[0] - weight[1])
    shift = np.where(y == 0, bias[1] - bias[0], bias[0] - bias[1])
    best = (towards * x.reshape(9, -1)).sum(1) + shift + eps * np.linalg.norm(towards, dual, axis=1)
    np.testing.assert_allclose(margin(model(x_adv), torch.tensor(y)).detach().numpy(), best, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
@pytest.mark.long
def test_the_largest_margin_of_a_linear_model_with_many_classes(norm, dual):
    rng = np.random.default_rng(4)
    weight, eps = rng.normal(size=(5, 10)), 0.3
    x, y = rng.normal(size=(12, 10)), rng.integers(0, 5, 12)
    model, threat = linear(weight), Threat(norm, eps, box=None)
    x_adv = apgd(
        model, torch.tensor(x), torch.tensor(y), threat, objective=margin, drop_fallen=False, restarts=10, steps=200
    )
    best = [
        max(
            (weight[j] - weight[label]) @ row + eps * np.linalg.norm(weight[j] - weight[label], dual)
            for j in range(5)
            if j != label
        )
        for row, label in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(margin(model(x_adv), torch.tensor(y)).detach().numpy(), best, rtol=0, atol=1e-5)


def test_the_best_linf_attack_where_the_box_cuts_the_ball():
    rng = np.random.default_rng(8)
    weight, eps = rng.normal(size=(2, 30)), 0.4
    x, y = rng.uniform(size=(6, 30)), np.zeros(6, dtype=int)
    towards = weight[1] - weight[0]
    corner = np.where(towards > 0, np.minimum(x + eps, 1), np.maximum(x - eps, 0))
    x_adv = apgd(linear(weight), torch.tensor(x), torch.tensor(y), Threat("linf", eps), drop_fallen=False)
    np.testing.assert_allclose(x_adv.numpy() @ towards, corner @ towards, rtol=0, atol=1e-5)


# --- what must always hold -------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    share=st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    shape=st.sampled_from([(5,), (1, 3, 3), (2, 2, 4), (2, 3, 2, 2)]),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    edges=st.booleans(),
    wrong=st.booleans(),
    drop=st.booleans(),
    objective=st.sampled_from([cross_entropy, dlr, margin]),
    seed=st.integers(0, 1000),
)
def test_every_example_lies_in_ball_and_box(
    small_net, assert_inside, norm, share, shape, batch, dtype, edges, wrong, drop, objective, seed
):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand((batch, *shape), generator=generator, dtype=dtype)
    if edges:
        x = x.round()
    net = small_net(math.prod(shape), dtype=dtype)
    y = net(x).argmax(1)
    if wrong:
        y = (y + 1) % 4
    threat = Threat(norm, share * diagonal(norm, shape))
    x_adv = apgd(net, x, y, threat, steps=8, restarts=2, objective=objective, drop_fallen=drop, seed=seed)
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    if threat.eps == 0 or (wrong and drop):
        assert torch.equal(x_adv, x)
    assert (objective(net(x_adv), y) >= objective(net(x), y)).all() or drop


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_worst_point_found_is_never_better_than_the_input(trained, sample, norm):
    x, y = sample
    x_adv = apgd(trained, x, y, Threat(norm, 0.01), steps=3, drop_fallen=False)
    assert (cross_entropy(trained(x_adv), y) >= cross_entropy(trained(x), y)).all()


class Witness:
    """An objective that notes which samples were ever misclassified, for a run that keeps the whole batch."""

    def __init__(self, objective, samples):
        self.objective, self.fallen = objective, torch.zeros(samples, dtype=torch.bool)

    def __call__(self, logits, y):
        assert len(y) == len(self.fallen)
        self.fallen |= logits.detach().argmax(1) != y
        return self.objective(logits, y)


@pytest.mark.parametrize("objective", [cross_entropy, dlr])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.07), ("l2", 0.4)])
def test_dropping_fallen_samples_changes_no_verdict(trained, sample, norm, eps, objective):
    x, y = sample
    witness = Witness(objective, len(x))
    apgd(trained, x, y, Threat(norm, eps), steps=40, restarts=2, objective=witness, drop_fallen=False, seed=1)
    x_adv = apgd(trained, x, y, Threat(norm, eps), steps=40, restarts=2, objective=objective, seed=1)
    fallen = trained(x_adv).argmax(1) != y
    assert 20 < int(fallen.sum()) < 130
    assert torch.equal(fallen, witness.fallen)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.5), ("l1", 2.0)])
def test_one_run_to_the_end_finds_what_two_find(trained, sample, norm, eps):
    """Nothing but the rounding of products with fewer rows lies between them."""
    x, y = sample
    model, x, threat = copy.deepcopy(trained).double(), x.double(), Threat(norm, eps)
    best, fooling = apgd_to_the_end(model, x, y, threat, steps=20, seed=3)
    assert torch.equal(best, apgd(model, x, y, threat, steps=20, drop_fallen=False, seed=3))
    alone = apgd(model, x, y, threat, steps=20, seed=3)
    wrong = model(alone).argmax(1) != y
    assert 10 < int(wrong.sum()) < 140
    assert torch.equal(model(fooling).argmax(1) != y, wrong)
    torch.testing.assert_close(fooling, alone, rtol=0, atol=1e-9)


def test_samples_that_fell_cost_nothing_more(trained, sample):
    x, y = sample
    rows = []
    hook = trained.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        apgd(trained, x, y, Threat("linf", 0.3), steps=20)
        dropped, rows[:] = sum(rows), []
        apgd(trained, x, y, Threat("linf", 0.3), steps=20, drop_fallen=False)
    finally:
        hook.remove()
    assert sum(rows[:22]) == 22 * len(x)
    assert dropped < 0.4 * sum(rows)


def test_restarts_attack_only_survivors_and_never_lose(trained, sample):
    x, y = sample
    threat = Threat("linf", 0.06)
    once, thrice = (
        trained(apgd(trained, x, y, threat, steps=6, restarts=restarts, seed=2)).argmax(1) != y for restarts in (1, 3)
    )
    assert (thrice | ~once).all()
    assert int(thrice.sum()) > int(once.sum())


def test_same_seed_same_examples(trained, sample):
    x, y = sample
    first, again, other = (apgd(trained, x, y, Threat("l2", 0.4), steps=10, seed=seed) for seed in (4, 4, 5))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- l1 --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", [cross_entropy, margin])
def test_the_best_l1_attack_on_a_binary_linear_model(objective):
    rng = np.random.default_rng(3)
    weight, bias, eps = rng.normal(size=(2, 12)), rng.normal(size=2), 0.2
    x, y = rng.normal(size=(9, 3, 4)), np.arange(9) % 2
    model, threat = linear(weight, bias), Threat("l1", eps, box=None)
    x_adv = apgd(model, torch.tensor(x), torch.tensor(y), threat, objective=objective, drop_fallen=False)
    towards = np.where(y[:, None] == 0, weight[1] - weight[0], weight[0] - weight[1])
    shift = np.where(y == 0, bias[1] - bias[0], bias[0] - bias[1])
    best = (towards * x.reshape(9, -1)).sum(1) + shift + eps * np.abs(towards).max(1)
    np.testing.assert_allclose(margin(model(x_adv), torch.tensor(y)).detach().numpy(), best, rtol=0, atol=1e-5)


def test_after_a_sparser_best_point_the_step_starts_again_and_else_shrinks():
    """Two of eight entries moved at the best point: sparser than eight, not than two; the shortest step is eps / 10."""
    zeros = torch.zeros(3, 8)
    best = zeros.clone()
    best[:, :2] = 1.0
    state = State(
        **dict.fromkeys(("x", "previous", "gradient", "adv"), zeros),
        **{name: torch.zeros(3) for name in ("index", "sample", "y", "value", "fallen", "rises", "halved", "share")},
        step=torch.tensor([[0.6], [0.6], [0.07]]),
        best=best,
        best_gradient=zeros,
        best_value=torch.zeros(3),
        checked_value=torch.zeros(3),
        moved=torch.tensor([8.0, 2.0, 2.0]),
    )
    reconsider_sparsity(state, Threat("l1", 0.6))
    assert state.step.flatten().tolist() == pytest.approx([0.6, 0.4, 0.06])
    assert state.adv.sum(1).tolist() == [2.0, 0.0, 0.0]
    assert state.share.tolist() == pytest.approx([2 / 8 / 1.5] * 3)


@pytest.mark.long
def test_l1_robust_accuracy_lies_in_the_librarys_own_range(trained, digits):
    from pyautoattack.autopgd_base import APGDAttack

    x, y, eps, theirs = digits.x_test[:200], digits.y_test[:200], 1.2, []
    for seed in range(4):
        with torch.random.fork_rng(devices=[]):
            attack = APGDAttack(trained, n_iter=100, norm="L1", eps=eps, seed=seed, device="cpu", use_largereps=True)
            x_adv = attack.perturb(x, y)
        theirs.append(float((trained(x_adv).argmax(1) == y).double().mean()))
    ours = [robust(trained, x, y, Threat("l1", eps), seed=seed) for seed in range(3)]
    print(f"\nl1: pyautoattack {theirs}, ours {ours}")
    assert 0.2 < min(theirs) < 0.8
    assert np.median(ours) <= max(theirs)


def robust(model, x, y, threat, attack=apgd, **options):
    return robust_accuracy(
        model, x, y, threat, attacks={"one": lambda m, a, b, t: attack(m, a, b, t, **options)}
    ).robust_accuracy


# --- targets ---------------------------------------------------------------------------------------------------------


def test_the_likeliest_wrong_classes():
    logits = torch.tensor([[5.0, 1.0, 3.0, 2.0], [5.0, 1.0, 3.0, 2.0]])
    assert likeliest(logits, torch.tensor([0, 2]), 9).tolist() == [[2, 3, 1], [0, 3, 1]]
    assert likeliest(logits, torch.tensor([0, 2]), 1).tolist() == [[2], [0]]
    with refused(ThreatError, "a targeted attack needs one target or more, but got 0; use for example 9."):
        likeliest(logits, torch.tensor([0, 2]), 0)


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", np.inf)])
@pytest.mark.parametrize("objective", [targeted_dlr, targeted_margin])
def test_all_targets_settle_a_linear_model_exactly(norm, dual, objective):
    """A sample of a linear model falls exactly if for some class the margin can be raised above zero."""
    rng = np.random.default_rng(4)
    weight, x = rng.normal(size=(5, 10)), rng.normal(size=(40, 10))
    margins = x @ weight.T
    y = margins.argmax(1)
    difference = weight[None] - weight[y][:, None]
    room = (margins[np.arange(40), y][:, None] - margins) / np.maximum(np.linalg.norm(difference, dual, axis=2), 1e-12)
    room[np.arange(40), y] = np.inf
    eps = float(np.median(room.min(1)))
    model, threat = linear(weight), Threat(norm, eps, box=None)
    x_adv = targeted_apgd(model, torch.tensor(x), torch.tensor(y), threat, steps=60, objective=objective)
    fallen = (model(x_adv).argmax(1) != torch.tensor(y)).numpy()
    clear = np.abs(room.min(1) / eps - 1) > 1e-3
    assert clear.sum() > 30
    np.testing.assert_array_equal(fallen[clear], (room.min(1) < eps)[clear])


@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    share=st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    shape=st.sampled_from([(5,), (1, 3, 3), (2, 3, 2, 2)]),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    edges=st.booleans(),
    wrong=st.booleans(),
    attack=st.sampled_from([apgd, targeted_apgd]),
    seed=st.integers(0, 1000),
)
def test_every_targeted_and_l1_example_lies_in_ball_and_box(
    small_net, assert_inside, norm, share, shape, batch, dtype, edges, wrong, attack, seed
):
    threat = Threat(norm, share * diagonal(norm, shape))
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if edges:
        x = x.round()
    net = small_net(math.prod(shape), dtype=dtype)
    y = (net(x).argmax(1) + wrong) % 4
    x_adv = attack(net, x, y, threat, steps=8, restarts=2, seed=seed)
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    if threat.eps == 0 or wrong:
        assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("attack", [apgd, targeted_apgd])
def test_the_batch_changes_no_example(contested, norm, attack):
    net, x, y, eps = contested
    threat = Threat(norm, eps[norm])
    whole = attack(net, x, y, threat, steps=20, restarts=2, seed=3)
    assert 0 < (net(whole).argmax(1) != y).sum() < 9
    parts = [attack(net, x[rows], y[rows], threat, steps=20, restarts=2, seed=3) for rows in torch.arange(9).split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-7)


def test_beaten_targets_are_skipped_and_batches_filled(trained, sample):
    x, y = sample
    threat, rows = Threat("linf", 0.06), []
    hook = trained.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        one_by_one = targeted_apgd(trained, x, y, threat, steps=10, batch_size=1)
        alone, rows[:] = list(rows), []
        together = targeted_apgd(trained, x, y, threat, steps=10, batch_size=400)
    finally:
        hook.remove()
    fallen = trained(one_by_one).argmax(1) != y
    survivors = int((~fallen).sum())
    assert torch.equal(fallen, trained(together).argmax(1) != y)
    assert 20 < survivors < 130
    assert len(rows) < 0.6 * len(alone)
    assert max(rows) <= 400
    assert sum(alone) < 9 * 11 * (survivors + 0.3 * (len(y) - survivors))


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.45)])
@pytest.mark.long
def test_targeted_robust_accuracy_lies_in_the_librarys_own_range(trained, digits, norm, eps):
    from pyautoattack.autopgd_base import APGDAttack_targeted

    x, y, theirs = digits.x_test[:200], digits.y_test[:200], []
    for seed in range(2):
        with torch.random.fork_rng(devices=[]):
            name = {"linf": "Linf", "l2": "L2"}[norm]
            x_adv = APGDAttack_targeted(trained, n_iter=50, norm=name, eps=eps, seed=seed, device="cpu").perturb(x, y)
        theirs.append(float((trained(x_adv).argmax(1) == y).double().mean()))
    ours = robust(trained, x, y, Threat(norm, eps), targeted_apgd, steps=50)
    print(f"\n{norm} {eps}: pyautoattack {theirs}, ours {ours}")
    assert 0.2 < min(theirs) < 0.8
    assert min(theirs) - 1 / len(x) <= ours <= max(theirs)
