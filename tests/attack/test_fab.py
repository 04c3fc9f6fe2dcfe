"""FAB: its projections against linear programming and root finding, its distances against closed forms and a library."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, linprog
from torch import nn

from oracles.threats import diagonal
from pinchpoint.attack import Threat, fab, nearest_misclassified
from pinchpoint.attack.fab_projection import shortest_move
from pinchpoint.evaluate import robust_accuracy, within

NORMS = [("linf", 1), ("l2", 2), ("l1", np.inf)]


# --- the way to a hyperplane -----------------------------------------------------------------------------------------


def shortest_length(weight, distance, room, norm):
    """The smallest norm of 0 <= move <= room with weight . move = distance, weight >= 0."""
    d = len(weight)
    if norm == "l1":
        return linprog(np.ones(d), A_eq=weight[None], b_eq=[distance], bounds=[(0, r) for r in room]).fun
    if norm == "linf":
        moves_below_t = np.concatenate([np.eye(d), -np.ones((d, 1))], 1)
        return linprog(
            np.eye(d + 1)[d],
            A_ub=moves_below_t,
            b_ub=np.zeros(d),
            A_eq=np.append(weight, 0.0)[None],
            b_eq=[distance],
            bounds=[*((0, r) for r in room), (0, None)],
        ).fun
    top = (room / np.maximum(weight, 1e-9)).max()
    pace = brentq(lambda t: weight @ np.minimum(t * weight, room) - distance, 0, top, xtol=1e-14)
    return np.linalg.norm(np.minimum(pace * weight, room))


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.4, 0.99])
def test_the_shortest_move_to_a_hyperplane_in_a_box(norm, share):
    rng = np.random.default_rng(7)
    normal, room = rng.normal(size=(20, 8)), rng.uniform(size=(20, 8))
    normal[:5, :4], room[3:9, 2:5], normal[10:12, 0] = 0.0, 0.0, normal[10:12, 1]
    gap = share * (np.abs(normal) * room).sum(1) * rng.choice([-1, 1], 20)
    move = shortest_move(torch.tensor(normal), torch.tensor(gap), torch.tensor(room), norm).numpy()
    assert (np.abs(move) <= room).all()
    np.testing.assert_allclose((normal * move).sum(1), gap, rtol=0, atol=1e-12)
    length = np.linalg.norm(move, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    best = [shortest_length(np.abs(w), abs(c), r, norm) for w, c, r in zip(normal, gap, room, strict=True)]
    np.testing.assert_allclose(length, best, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(("norm", "dual"), NORMS)
def test_without_a_box_the_way_is_the_dual_norms(norm, dual):
    rng = np.random.default_rng(8)
    normal, gap = rng.normal(size=(6, 5)), rng.normal(size=6)
    move = shortest_move(torch.tensor(normal), torch.tensor(gap), torch.full((6, 5), torch.inf).double(), norm).numpy()
    length = np.linalg.norm(move, {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    np.testing.assert_allclose(length, np.abs(gap) / np.linalg.norm(normal, dual, axis=1), rtol=1e-12)
    np.testing.assert_allclose((normal * move).sum(1), gap, rtol=1e-12)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_plane_out_of_reach_is_approached_with_all_room(norm):
    normal = torch.tensor([[1.0, -2.0, 0.0], [0.0, 0.0, 0.0]])
    room = torch.tensor([[0.5, 0.25, 0.5], [0.5, 0.5, 0.5]])
    move = shortest_move(normal, torch.tensor([9.0, 1.0]), room, norm)
    assert move.tolist() == [[0.5, -0.25, 0.0], [0.0, 0.0, 0.0]]


# --- the attack ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("norm", "dual"), NORMS)
def test_the_nearest_point_of_a_linear_model_is_as_far_as_its_margin(norm, dual):
    rng = np.random.default_rng(4)
    weight, bias, x = rng.normal(size=(5, 10)), rng.normal(size=5), rng.normal(size=(30, 2, 5))
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 5, dtype=torch.float64))
    model[1].weight.data.copy_(torch.tensor(weight))
    model[1].bias.data.copy_(torch.tensor(bias))
    logits = x.reshape(30, 10) @ weight.T + bias
    y = logits.argmax(1)
    apart = np.linalg.norm(weight[None] - weight[y][:, None], dual, axis=2)
    gaps = logits[np.arange(30), y][:, None] - logits
    closed_form = np.divide(gaps, apart, out=np.full_like(gaps, np.inf), where=apart > 0).min(1)
    threat = Threat(norm, float(np.median(closed_form)), box=None)
    points = nearest_misclassified(model, torch.tensor(x), torch.tensor(y), threat)
    assert (model(points).argmax(1) != torch.tensor(y)).all()
    distance = threat.length(points - torch.tensor(x)).numpy()
    np.testing.assert_allclose(distance, closed_form, rtol=1e-5)
    fallen = model(fab(model, torch.tensor(x), torch.tensor(y), threat, steps=20)).argmax(1).numpy() != y
    clear = np.abs(closed_form / threat.eps - 1) > 1e-3
    np.testing.assert_array_equal(fallen[clear], (closed_form < threat.eps)[clear])


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
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if edges:
        x = x.round()
    net = small_net(math.prod(shape), dtype=dtype)
    y = (net(x).argmax(1) + wrong) % 4
    threat = Threat(norm, share * diagonal(norm, shape))
    x_adv = fab(net, x, y, threat, steps=8)
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    points = nearest_misclassified(net, x, y, threat, steps=8)
    assert_inside(points, x, Threat("linf", 1.0))
    found = (points != x).flatten(1).any(1)
    assert (net(points).argmax(1) != y)[found].all()
    if wrong:
        assert torch.equal(x_adv, x)
        assert torch.equal(points, x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_batch_changes_no_example(contested, norm):
    net, x, y, eps = contested
    threat = Threat(norm, eps[norm])
    whole = fab(net, x, y, threat, steps=20)
    assert 0 < (net(whole).argmax(1) != y).sum() < 9
    parts = [fab(net, x[rows], y[rows], threat, steps=20) for rows in torch.arange(9).split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-7)
    near = nearest_misclassified(net, x, y, threat, steps=20)
    fallen = net(whole).argmax(1) != y
    assert torch.equal(threat.length(near - x) <= threat.eps, fallen)


def test_samples_found_inside_the_budget_cost_nothing_more(trained, sample):
    x, y = sample
    rows = []
    hook = trained.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        fab(trained, x, y, Threat("linf", 0.3), steps=10)
    finally:
        hook.remove()
    assert sum(rows) < 2 * 10 * 0.6 * len(x)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.08), ("l2", 0.45), ("l1", 1.5)])
@pytest.mark.long
def test_as_many_fall_as_to_the_librarys(trained, digits, norm, eps):
    from pyautoattack.fab_pt import FABAttack_PT

    x, y = digits.x_test[:150], digits.y_test[:150]
    name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm]
    with torch.random.fork_rng(devices=[]):
        library = FABAttack_PT(trained, norm=name, n_iter=50, eps=eps, seed=0, targeted=True, device="cpu")
        x_adv = library.perturb(x, y)
    trained.zero_grad()
    threat = Threat(norm, eps)
    theirs = robust_accuracy(trained, x, y, threat, known=x_adv, attacks={}).robust_accuracy
    verdict = robust_accuracy(
        trained, x, y, threat, attacks={"fab": lambda *call: fab(*call, steps=50)}, batch_size=150
    )
    print(f"\n{norm} {eps}: pyautoattack {theirs}, ours {verdict.robust_accuracy}")
    assert 0.2 < theirs < 0.8
    assert verdict.robust_accuracy <= theirs + 1 / len(x)
