"""Lower bounds are reached: never above the truth by rounding, whatever the inputs, weights and shifts."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.matrices import KINDS, make
from oracles.networks import largest_over_masks, operator_norm, relu_network
from pinchpoint.bound import trace
from pinchpoint.bound.methods.lower import ascended, quotient, sampled, starting_points
from pinchpoint.errors import ModelError

NORMS = ("linf", "l2")
seeds = st.integers(0, 2**32 - 1)


def shifted(values):
    """x -> w_n (... (w_1 x + b_1) ...) + b_n in one dimension, without activations."""
    layers = []
    for weight, bias in values:
        layers.append(nn.Linear(1, 1).double())
        layers[-1].weight.data.fill_(weight)
        layers[-1].bias.data.fill_(bias)
    return nn.Sequential(*layers)


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    seeds,
    st.sampled_from([1.0, 1e150, 1e-150, 1e-310]),
    st.sampled_from([1.0, 1e-8, 1e8, 1e30]),
)
def test_nothing_is_above_the_maximum_over_masks(kinds, seed, scale, size):
    widths = (3, 4, 4, 2)
    weights = [make(kind, widths[i + 1], widths[i], seed + i, scale if i == 0 else 1.0) for i, kind in enumerate(kinds)]
    network = trace(relu_network(weights))
    points = size * torch.from_numpy(np.random.default_rng(seed).standard_normal((3, 1, 3)))
    for norm in NORMS:
        most = largest_over_masks(weights, norm)
        directions, low = sampled(network, points, norm)
        high = ascended(network, points, norm, steps=5)
        assert 0.0 <= low <= high <= most * (1 + 1e-14)
        assert directions.shape == points.shape


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4])
def test_on_a_linear_map_it_is_the_norm(norm, size):
    matrix = np.random.default_rng(0).standard_normal((4, 5))
    network = trace(relu_network([matrix]))
    points = torch.full((2, 1, 5), size, dtype=torch.float64)
    exact = operator_norm(matrix, norm)
    assert exact * (1 - 1e-6) <= sampled(network, points, norm)[1] <= exact


def test_wide_outputs_take_power_iterations():
    matrix = np.random.default_rng(0).standard_normal((80, 6))
    network = trace(relu_network([matrix]))
    points = torch.zeros(2, 1, 6, dtype=torch.float64)
    assert sampled(network, points, "l2")[1] == pytest.approx(np.linalg.norm(matrix, 2), rel=1e-2)
    low = sampled(network, points, "linf")[1]
    assert 0.8 * np.linalg.norm(matrix, np.inf) <= low <= np.linalg.norm(matrix, np.inf)


@pytest.mark.parametrize(
    ("values", "truth"),
    [
        (
            [(1e-8, 1e8), (1.0, -1e8)],
            1e-8,
        ),  # in float64 the quotient at a small step is rounding only, 15 times the truth
        ([(1.0, 1e10), (1.0, -1e10)], 1.0),
        ([(1e150, 0.0), (1e-150, 0.0)], 1.0),
        ([(1e-200, 0.0), (1e-110, 0.0), (1e300, 0.0)], 1e-10),
        ([(1e-160, 0.0), (1e-160, 0.0), (1e300, 0.0)], 1e-20),  # on the way digits are lost to subnormal numbers
        ([(0.0, 1e8)], 0.0),
    ],
)
@pytest.mark.parametrize("at", [0.3, 1e8])
def test_cancellation_and_lost_digits_are_allowed_for(values, truth, at):
    network = trace(shifted(values))
    points = torch.full((1, 1, 1), at, dtype=torch.float64) * torch.rand(4, 1, 1, dtype=torch.float64)
    for norm in NORMS:
        assert sampled(network, points, norm)[1] <= truth * (1 + 1e-14)
        assert ascended(network, points, norm, steps=3) <= truth * (1 + 1e-14)


def test_shifts_that_are_no_layers_are_allowed_for_too():
    class Shifts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("zero", torch.zeros(1, dtype=torch.float64))  # in float32 all would be lost

        def forward(self, x):
            return ((x + 1e12) - 1e12).relu() - 3e10 + 3e10

    network = trace(Shifts(), (2,))
    points = torch.rand(4, 1, 2, dtype=torch.float64)
    for norm in NORMS:
        assert sampled(network, points, norm)[1] <= 1.0
        assert ascended(network, points, norm, steps=3) <= 1.0
    assert quotient(network, points[0], points[0] + 1e6, "linf") == pytest.approx(1.0, rel=1e-2)


def test_huge_outputs_do_not_overflow_into_infinity():
    """Squares of 1e200 do."""
    network = trace(relu_network([np.full((2, 2), 1e200)]))
    found = sampled(network, torch.ones(1, 1, 2, dtype=torch.float64), "l2")[1]
    assert found == pytest.approx(2e200, rel=1e-9)
    # at inputs of 1 it answers 4e200, at inputs of 1e110 infinity
    far = torch.full((2, 1, 2), 1e110, dtype=torch.float64)
    for norm in NORMS:
        assert ascended(network, far, norm, steps=3) == 0.0


def test_points_that_coincide_say_nothing():
    network = trace(relu_network([np.eye(2)]))
    point = torch.full((1, 2), 1e30, dtype=torch.float64)
    assert quotient(network, point, point, "l2") == 0.0
    assert quotient(network, point, point + 1e-3, "l2") == 0.0
    assert sampled(network, point[None], "l2")[1] == 0.0


def test_ascent_finds_what_sampling_does_not():
    """|x| beyond a dead zone: relu(x - 1) is flat at the start, steep further on."""
    layer = nn.Sequential(nn.Linear(1, 1), nn.ReLU()).double()
    layer[0].weight.data.fill_(3.0)
    layer[0].bias.data.fill_(-3.0)
    network = trace(layer)
    points = torch.full((1, 1, 1), 0.9, dtype=torch.float64)
    low = sampled(network, points, "l2")[1]
    assert low == 0.0
    assert ascended(network, points, "l2", steps=50) == pytest.approx(3.0, rel=1e-3)


def test_where_it_starts():
    network = trace(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), (1, 2, 2))
    assert starting_points(network, None).shape == (16, 1, 1, 2, 2)
    assert torch.equal(starting_points(network, None), starting_points(network, None))
    assert starting_points(network, torch.rand(3, 1, 2, 2)).shape == (3, 1, 1, 2, 2)
    assert starting_points(network, torch.rand(30, 4)).shape == (16, 1, 1, 2, 2)
    for shape in ((0, 1, 2, 2), (3, 5), (2,)):
        with refused(ModelError, f"inputs must be a batch of shape (n, 1, 2, 2), but got {shape}; reshape them."):
            starting_points(network, torch.rand(shape))
