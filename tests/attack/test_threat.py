"""Ball and box, against plain numpy."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from oracles.as_user import refused
from pinchpoint.attack import Threat
from pinchpoint.errors import ThreatError

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("text", "norm", "eps"),
    [
        ("linf:8/255", "linf", 8 / 255),
        ("linf:0.1/255", "linf", 1 / 2550),
        ("l2: 1 / 4", "l2", 0.25),
        ("l2:1/0.5", "l2", 2.0),
        ("l1:12", "l1", 12.0),
        ("linf:0", "linf", 0.0),
    ],
)
def test_parse_reads_fractions(text, norm, eps):
    threat = Threat.parse(text)
    assert (threat.norm, threat.eps, threat.box) == (norm, eps, (0.0, 1.0))


@pytest.mark.parametrize(
    "text", ["linf", "linf:", "linf:abc", "linf:1/0", "linf:1/255/10", "l2:inf", "l2:1e999", "8/255", ""]
)
def test_parse_says_what_is_wrong(text):
    with pytest.raises(ThreatError, match=r"a threat is written norm:eps, but got .*; write for example linf:8/255"):
        Threat.parse(text)


def test_text_form_is_read_back():
    for threat in (Threat("l2", 0.45), Threat("linf", 8 / 255), Threat("linf", 0.1 / 255), Threat("linf", 0.2)):
        assert Threat.parse(str(threat)).eps == pytest.approx(threat.eps, rel=1e-12)
    assert str(Threat("linf", 8 / 255)) == "linf:8/255"


@pytest.mark.parametrize("norm", ["l0", "Linf", ""])
def test_unknown_norm(norm):
    with refused(ThreatError, f"norm must be one of linf, l2, l1, but got {norm}; write linf, l2 or l1."):
        Threat(norm, 0.1)


@pytest.mark.parametrize("eps", [-0.1, 1e300, math.inf, math.nan])
def test_impossible_budget(eps):
    with pytest.raises(
        ThreatError,
        match=rf"eps must be zero or more, and finite in float32, but got {re.escape(str(eps))}; give the budget",
    ):
        Threat("linf", eps)


@pytest.mark.parametrize("box", [(1.0, 0.0), (0.5, 0.5), (math.nan, 1.0)])
def test_empty_box(box):
    with pytest.raises(ThreatError, match=r"the box must be \(low, high\) with low < high"):
        Threat("linf", 0.1, box)


def test_projection_onto_the_cube_is_the_nearest_point():
    x, moved = RNG.uniform(size=(5, 7)), RNG.normal(size=(5, 7))
    threat = Threat("linf", 0.3)
    expected = np.clip(np.clip(moved, x - 0.3, x + 0.3), 0, 1)
    np.testing.assert_array_equal(threat.project(torch.tensor(moved), torch.tensor(x)).numpy(), expected)


def test_projection_onto_the_l2_ball_scales_back_only_what_is_outside():
    x = RNG.uniform(size=(6, 3, 2))
    delta = RNG.normal(size=(6, 3, 2)) * np.array([1e-3, 1e-2, 0.1, 1.0, 10.0, 0.0])[:, None, None]
    threat = Threat("l2", 0.5, box=None)
    length = np.sqrt((delta**2).sum((1, 2), keepdims=True))
    expected = x + delta * np.minimum(1.0, 0.5 / np.maximum(length, 1e-300))
    result = threat.project(torch.tensor(x + delta), torch.tensor(x)).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=0.5 * 2e-6)  # the ball is drawn 1e-6 smaller
    np.testing.assert_allclose(result[length.ravel() < 0.5], expected[length.ravel() < 0.5], rtol=0, atol=1e-15)


@settings(max_examples=60, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    eps=st.floats(0, 3),
    shape=st.sampled_from([(1, 1), (3, 5), (2, 1, 4, 4), (4, 3, 2)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    box=st.sampled_from([None, (0.0, 1.0), (-0.7, 0.7), (0.3, 0.9)]),
    seed=st.integers(0, 2**16),
)
def test_projections_and_starts_stay_inside(assert_inside, norm, eps, shape, dtype, box, seed):
    threat = Threat(norm, eps, box)
    generator = torch.Generator().manual_seed(seed)
    x = threat.clip(torch.randn(shape, generator=generator, dtype=dtype))
    far = x + 10.0 ** float(torch.randint(-3, 4, (1,), generator=generator)) * torch.randn(shape, generator=generator)
    projected = threat.project(far.to(dtype), x)
    assert_inside(projected, x, threat)
    assert_inside(threat.random_start(x, generator), x, threat)
    assert_inside(threat.furthest(x, far.to(dtype)), x, threat)
    assert_inside(threat.project(projected, x), x, threat)


def farthest_by_linear_programming(value, x, eps, box):
    """The largest inner product of value with a perturbation of the l1 ball that stays in the box."""
    low, high = box
    result = linprog(
        -np.concatenate([value, -value]),
        A_ub=np.ones((1, 2 * len(x))),
        b_ub=[eps],
        bounds=[*((0, room) for room in high - x), *((0, room) for room in x - low)],
    )
    return -result.fun


@pytest.mark.parametrize("box", [(0.0, 1.0), (-50.0, 50.0)])
@pytest.mark.parametrize("eps", [0.05, 0.7, 2.0])
def test_projection_onto_l1_ball_and_box_is_the_nearest_point(eps, box):
    """z is the point of a convex set nearest to u exactly if no point c of the set has (u - z) (c - z) > 0.

    The ball is drawn 1e-6 smaller, so z may be off by that times eps.
    """
    rng = np.random.default_rng(3)
    x = rng.uniform(size=(12, 3, 3))
    x[:4] = x[:4].round()  # on the edges of the unit box
    far = x + rng.normal(size=x.shape) * np.array([1e-3, 0.03, 1.0, 10.0] * 3)[:, None, None]
    z = Threat("l1", eps, box).project(torch.tensor(far), torch.tensor(x)).numpy()
    for start, u, point in zip(x, far, z, strict=True):
        away = (u - point).ravel()
        best = farthest_by_linear_programming(away, start.ravel(), eps, box)
        assert best - away @ (point - start).ravel() <= 1e-6 * eps * (np.abs(away).max() + 2 * eps) + 1e-12
        assert np.abs(point - start).sum() <= eps
    inside = np.abs(np.clip(far, *box) - x).sum((1, 2)) < eps * (1 - 1e-6)
    assert inside.any()
    np.testing.assert_allclose(z[inside], np.clip(far, *box)[inside], rtol=0, atol=1e-15)


@pytest.mark.parametrize("eps", [0.05, 0.7, 2.0, 50.0])
def test_the_furthest_point_of_l1_ball_and_box(eps):
    rng = np.random.default_rng(4)
    x, gradient = rng.uniform(size=(10, 9)), rng.normal(size=(10, 9))
    x[:3] = x[:3].round()
    gradient[5:, :4] = 0.0
    reached = Threat("l1", eps).furthest(torch.tensor(x), torch.tensor(gradient)).numpy()
    best = [farthest_by_linear_programming(g, row, eps, (0.0, 1.0)) for g, row in zip(gradient, x, strict=True)]
    np.testing.assert_allclose((gradient * (reached - x)).sum(1), best, rtol=2e-6)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_random_starts_touch_the_surface_and_follow_the_generator(norm):
    x = torch.zeros(20, 3, 4, 4)
    threat = Threat(norm, 0.25, box=None)
    start = threat.random_start(x, torch.Generator().manual_seed(3))
    size = np.linalg.norm(start.numpy().reshape(20, -1).astype(float), {"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    np.testing.assert_allclose(size, 0.25, rtol=3e-6)
    assert torch.equal(start, threat.random_start(x, torch.Generator().manual_seed(3)))
    assert not torch.equal(start, threat.random_start(x, torch.Generator().manual_seed(4)))


def test_random_starts_have_no_preferred_direction():
    x = torch.arange(4000.0)[:, None].expand(-1, 5)  # 4000 different samples: equal ones would start alike
    start = Threat("l2", 1.0, box=None).random_start(x.double(), torch.Generator().manual_seed(0)) - x
    np.testing.assert_allclose(start.mean(0).numpy(), 0, atol=4 / math.sqrt(5 * 4000))
    np.testing.assert_allclose((start.T @ start / 4000).numpy(), np.eye(5) / 5, atol=0.02)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_samples_random_start_does_not_depend_on_its_batch(norm):
    x, threat = torch.rand(7, 2, 3, generator=torch.Generator().manual_seed(1)), Threat(norm, 0.3)
    generator, again = torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    for rows in ([3], [6, 3, 0], [0, 0]):  # the second and third call start elsewhere than the first
        assert torch.equal(threat.random_start(x, generator)[rows], threat.random_start(x[rows], again))
    assert len({tuple(start.flatten().tolist()) for start in threat.random_start(x, generator)}) == 7


def test_l1_directions_spread_over_the_largest_entries():
    gradient = torch.tensor([[3.0, -2.0, 1.0, -0.5], [0.0, 0.0, 0.0, -4.0]])
    threat = Threat("l1", 1.0)
    assert threat.direction(gradient).tolist() == [[1, 0, 0, 0], [0, 0, 0, -1]]
    assert threat.direction(gradient, share=0.5).tolist() == [[0.5, -0.5, 0, 0], [0, 0, 0, -1]]
    assert threat.direction(gradient, share=torch.tensor([1.0, 0.25])).tolist() == [
        [0.25, -0.25, 0.25, -0.25],
        [0, 0, 0, -1],
    ]
    at = torch.tensor([[1.0, 0.0, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    assert threat.direction(gradient, at=at).tolist() == [[0, 0, 1, 0], [0, 0, 0, -1]]
    assert threat.direction(torch.zeros(1, 3)).tolist() == [[0, 0, 0]]


def test_lengths():
    delta = RNG.normal(size=(4, 2, 3))
    for norm, order in (("linf", np.inf), ("l2", 2), ("l1", 1)):
        expected = np.linalg.norm(delta.reshape(4, 6), order, axis=1)
        np.testing.assert_allclose(Threat(norm, 1.0).length(torch.tensor(delta)).numpy(), expected, rtol=1e-12)


def test_directions_maximise_the_inner_product():
    gradient = torch.tensor(RNG.normal(size=(8, 2, 3)))
    linf = Threat("linf", 1.0).direction(gradient)
    l2 = Threat("l2", 1.0).direction(gradient)
    l1 = Threat("l1", 1.0).direction(gradient)
    np.testing.assert_allclose((l1 * gradient).sum((1, 2)).numpy(), np.abs(gradient.numpy()).max((1, 2)))
    np.testing.assert_allclose((linf * gradient).sum((1, 2)).numpy(), np.abs(gradient.numpy()).sum((1, 2)))
    np.testing.assert_allclose((l2 * gradient).sum((1, 2)).numpy(), np.sqrt((gradient.numpy() ** 2).sum((1, 2))))


def test_l2_direction_of_a_gradient_whose_square_underflows():
    direction = Threat("l2", 1.0).direction(torch.tensor([[3e-30, 4e-30], [0.0, 0.0]]))
    np.testing.assert_allclose(direction.numpy(), [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)
