"""Ellipsoids against the semidefinite programme, enumeration of slopes, and random pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.lipsdp import lipsdp
from oracles.matrices import KINDS, make
from oracles.networks import DUAL, corners, largest_over_masks, largest_over_slopes, operator_norm
from pinchpoint.bound.methods.ellipsoid import Step, ellipsoid_bound

seeds = st.integers(0, 2**32 - 1)


def relu_steps(weights):
    return [Step(torch.from_numpy(w), torch.zeros(len(w)).double(), torch.ones(len(w)).double()) for w in weights]


def bound(weights, norm, goal, most, slopes=None):
    """The ellipsoids of a chain of layers, with slopes [0, 1] where none are given."""
    steps = relu_steps(weights[:-1])
    if slopes is not None:
        steps = [
            Step(step.matrix, *(torch.from_numpy(s) for s in pair)) for step, pair in zip(steps, slopes, strict=True)
        ]
    return ellipsoid_bound(steps, torch.from_numpy(weights[-1]), norm, goal=goal, seconds=math.inf, most=most)


def random_weights(seed, widths):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((h, d)) / np.sqrt(d) for d, h in itertools.pairwise(widths)]


@pytest.fixture(scope="module")
def digits_like(trained):
    """A trained network, cut down to what a semidefinite solver takes: 10-14-12-10."""
    first, second, head = (trained[place].weight.detach().double().numpy() for place in (1, 3, 5))
    return [first[:14, 20:30], second[:12, :14], head[:, :12]]


@pytest.mark.long
@pytest.mark.parametrize("case", ["8-12-10-5", "6-10-8-8-3", "trained"])
def test_first_order_is_within_half_a_percent_of_lipsdp(case, digits_like):
    weights = digits_like if case == "trained" else random_weights(3, tuple(map(int, case.split("-"))))
    optimum = lipsdp(weights)
    found = bound(weights, "l2", "whole", most=300)
    assert optimum * (1 - 1e-6) <= found.best.whole() <= 1.005 * optimum
    assert found.fast.whole() > 1.01 * optimum  # else this test sees nothing


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_from_l_inf_to_one_output_it_is_within_half_a_percent_of_geolip(seed):
    weights = random_weights(seed, (6, 9, 7, 1))
    optimum = lipsdp(weights, "linf")
    found = bound(weights, "linf", "largest row", most=400)
    assert optimum * (1 - 1e-6) <= float(found.best.rows()[0]) <= 1.005 * optimum
    assert float(found.fast.rows()[0]) > 1.01 * optimum


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=3), seeds, st.sampled_from([1.0, 1e150, 1e-150]))
def test_no_mask_goes_beyond_the_ellipsoids(kinds, seed, scale):
    widths = (3, 4, 4, 2)
    weights = [make(kind, widths[i + 1], widths[i], seed + i, scale if i == 0 else 1.0) for i, kind in enumerate(kinds)]
    for norm in ("l2", "linf"):
        most = largest_over_masks(weights, norm)
        # from l_inf the rows are one output each, so the largest row bounds l_inf to l_inf
        found = bound(weights, norm, "whole" if norm == "l2" else "largest row", most=15)
        for form in (found.best, found.fast):
            upper = form.whole() if norm == "l2" else float(form.rows().max())
            assert upper >= most * (1 - 1e-14)
            rows, pairs = form.rows().numpy(), form.pairs().numpy()
            for mask in map(np.array, itertools.product((0.0, 1.0), repeat=sum(widths[1 : len(kinds)]))):
                jacobian, at = weights[0], 0
                for weight in weights[1:]:
                    jacobian = weight @ (mask[at : at + weight.shape[1], None] * jacobian)
                    at += weight.shape[1]
                exact = [operator_norm(row[None], norm) for row in jacobian]
                assert (rows >= np.array(exact) * (1 - 1e-14)).all()
                for i, j in itertools.combinations(range(len(jacobian)), 2):
                    difference = operator_norm((jacobian[i] - jacobian[j])[None], norm)
                    assert pairs[i, j] >= difference * (1 - 1e-14)
                    assert pairs[i, j] == pairs[j, i]
            assert (np.diag(pairs) == 0).all()


@st.composite
def mixed_slopes(draw, size):
    """Intervals of every kind: ReLU, negative, stable at a slope, dead, wide."""
    kinds = {"relu": (0.0, 1.0), "stable": (1.0, 1.0), "dead": (0.0, 0.0), "fixed": (-0.7, -0.7), "abs": (-1.0, 1.0)}
    kinds |= {"leaky": (0.1, 1.0), "negative": (-2.0, -0.5), "wide": (-1.0, 3.0), "tiny": (0.0, 1e-8)}
    chosen = [kinds[draw(st.sampled_from(sorted(kinds)))] for _ in range(size)]
    low, high = np.array(chosen).T
    return np.ascontiguousarray(low), np.ascontiguousarray(high)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.sampled_from(KINDS), seeds)
def test_no_choice_of_mixed_slopes_goes_beyond_the_ellipsoids(data, kind, seed):
    widths = (3, 4, 3, 2)
    weights = [make(kind if i == 1 else "random", widths[i + 1], widths[i], seed + i) for i in range(3)]
    slopes = [data.draw(mixed_slopes(4)), data.draw(mixed_slopes(3))]
    for norm in ("l2", "linf"):
        exact = largest_over_slopes(weights, slopes, norm)
        found = bound(weights, norm, "whole" if norm == "l2" else "largest row", most=15, slopes=slopes)
        for form in (found.best, found.fast):
            assert (form.whole() if norm == "l2" else float(form.rows().max())) >= exact * (1 - 1e-14)


def test_known_slopes_give_the_exact_norm():
    """Where every slope is known the network is linear, and the ellipsoid is its image of the ball."""
    weights = random_weights(5, (4, 5, 3))
    slopes = np.array([1.0, 0.0, -0.7, 2.0, 1.0])
    product = weights[1] @ np.diag(slopes) @ weights[0]
    found = bound(weights, "l2", "whole", most=0, slopes=[(slopes, slopes)])
    assert found.best.whole() == pytest.approx(np.linalg.norm(product, 2), rel=1e-11)
    assert found.best.rows().numpy() == pytest.approx(np.linalg.norm(product, axis=1), rel=1e-11)


def test_one_hidden_unit_is_exact():
    """max over [low, high] of ||w2 d w1||: nothing is lost by the ellipsoid of a single unit."""
    w1, w2 = np.array([[3.0, 4.0]]), np.array([[2.0], [1.0]])
    for low, high, largest in ((0.0, 1.0, 1.0), (-2.0, 1.0, 2.0), (0.1, 0.5, 0.5)):
        found = bound([w1, w2], "l2", "whole", most=300, slopes=[(np.array([low]), np.array([high]))])
        assert found.best.whole() == pytest.approx(largest * 5.0 * math.sqrt(5.0), rel=1e-5)
    found = bound([w1, np.array([[2.0]])], "linf", "largest row", most=300)
    assert float(found.best.rows()[0]) == pytest.approx(14.0, rel=1e-4)


def test_a_linear_map_alone_is_its_norm():
    matrix = np.random.default_rng(0).standard_normal((4, 6))
    assert bound([matrix], "l2", "whole", most=10).best.whole() == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-12)
    rows = bound([matrix], "linf", "pairs", most=400).best.rows().numpy()
    assert (rows >= np.linalg.norm(matrix, DUAL["linf"], axis=1) * (1 - 1e-14)).all()


def test_an_error_in_the_matrix_is_paid_for():
    """Any perturbation of a matrix within its stated error stays below the bound."""
    rng = np.random.default_rng(1)
    first, second = rng.standard_normal((4, 3)), rng.standard_normal((2, 4))
    for error in (1e-3, 1e-9, 1e-15):
        zero, one = torch.zeros(4).double(), torch.ones(4).double()
        step = Step(torch.from_numpy(first), zero, one, error)
        found = ellipsoid_bound([step], torch.from_numpy(second), "l2", goal="whole", error=error, most=30)
        for _ in range(20):
            shift, other = (rng.standard_normal(shape) for shape in ((4, 3), (2, 4)))
            moved = [w + error * e / np.linalg.norm(e, 2) for w, e in ((first, shift), (second, other))]
            assert found.best.whole() >= largest_over_masks(moved, "l2")
    assert found.best.whole() <= 1.2 * largest_over_masks([first, second], "l2")


def test_more_steps_never_hurt_and_fast_is_the_start():
    weights = random_weights(2, (6, 8, 7, 4))
    values = [bound(weights, "l2", "whole", most=most) for most in (0, 5, 60)]
    assert values[0].best.whole() == values[0].fast.whole() == values[2].fast.whole()
    assert values[2].best.whole() < values[1].best.whole() < values[0].best.whole()
    assert [value.steps for value in values] == [0, 5, 60]
    again = bound(weights, "l2", "whole", most=60)
    assert torch.equal(again.best.entries, values[2].best.entries)


def test_zero_layers_give_zero():
    weights = random_weights(2, (3, 4, 4, 2))
    for place in range(3):
        dead = [np.zeros_like(w) if i == place else w for i, w in enumerate(weights)]
        found = bound(dead, "l2", "whole", most=5)
        assert found.best.whole() < 1e-6
        assert bound(dead, "linf", "pairs", most=5).best.pairs().max() < 1e-6
    assert bound([np.zeros((2, 3))], "l2", "whole", most=5).best.whole() == 0.0


def test_corners_are_all_there():
    assert len({tuple(c) for c in corners(np.zeros(3), np.ones(3))}) == 8
