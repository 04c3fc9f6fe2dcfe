"""Constants multiplied along graphs: against the definition on chains, enumeration on residual networks, random pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.matrices import KINDS, make
from oracles.networks import ORDER, corners, largest_over_masks, operator_norm, relu_network
from pinchpoint.bound import trace
from pinchpoint.bound.lipschitz import uppers_by_method
from pinchpoint.bound.methods.alignment import alignment
from pinchpoint.bound.methods.product import cuts, items_of, pairs, propagate
from pinchpoint.bound.network.runs import Run

NORMS = ("linf", "l2")
seeds = st.integers(0, 2**32 - 1)


class Residual(nn.Module):
    """x + W2 relu(W1 x), then whatever follows."""

    def __init__(self, first, second, head=None):
        super().__init__()
        self.inner, self.head = relu_network([first, second]), None if head is None else relu_network([head])

    def forward(self, x):
        h = x + self.inner(x)
        return h if self.head is None else self.head(h.relu())


class Skips(nn.Module):
    """Every kind of joint in one network."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(4, 5), nn.Linear(9, 4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.cat([x, self.a(x).relu()], 1)
        h = self.b(h).tanh()
        h = h - 0.5 * self.c(h).relu()
        h = nn.functional.max_pool1d(h[:, None], 2, 1)[:, 0]
        return self.d(nn.functional.pad(h, (0, 1)))


def test_a_network_is_cut_where_everything_goes_through_one_value():
    torch.manual_seed(0)
    items = items_of(trace(Skips(), (4,)))
    kinds = [
        type(item.part).__name__ if isinstance(item.part, Run) else type(item.part.operation).__name__ for item in items
    ]
    assert kinds == [
        "NoneType",
        "Run",
        "Slope",
        "Join",
        "Run",
        "Slope",
        "Run",
        "Slope",
        "Run",
        "Sum",
        "Run",
        "Largest",
        "Run",
    ]
    assert cuts(items) == [0, 3, 4, 5, 9, 10, 11, 12]
    assert [len(item.part.nodes) for item in items if isinstance(item.part, Run)] == [1, 1, 1, 1, 1, 3]
    assert items_of(trace(nn.Identity(), (4,)))[-1].inputs == ()
    assert cuts(items_of(trace(nn.Identity(), (4,)))) == [0]
    assert items[-1].size == 3


@settings(max_examples=12, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=4), seeds, st.sampled_from([1.0, 1e150, 1e-150]))
def test_a_chain_is_the_product_of_its_norms_or_better_by_pairs(kinds, seed, scale):
    widths = (3, 4, 4, 3, 2)
    weights = [make(kind, widths[i + 1], widths[i], seed + i, scale if i == 1 else 1.0) for i, kind in enumerate(kinds)]
    network = trace(relu_network(weights))
    items = items_of(network)
    for norm in NORMS:
        norms = [operator_norm(weight, norm) for weight in weights]
        found = propagate(items, norm)
        assert math.prod(norms) * (1 - 1e-13) <= found <= math.prod(norms) * (1 + 1e-11)
        factors = [alignment(*map(torch.from_numpy, two), norm).factor for two in itertools.pairwise(weights)]
        choices = [()] + [(i,) for i in range(len(factors))] + [(0, 2)] * (len(factors) > 2)
        best = min(math.prod(factors[i] for i in choice) for choice in choices)  # disjoint pairs only
        aligned = uppers_by_method(network, norm, "alignment", 0.0, 0)["alignment"]
        assert aligned == pytest.approx(math.prod(norms) * best, rel=1e-11)
        assert aligned <= found
        assert largest_over_masks(weights, norm) <= aligned * (1 + 1e-14)
        structure = uppers_by_method(network, norm, "structure", 0.0, 0)["structure"]
        assert found <= structure * (1 + 1e-13)


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(KINDS), st.sampled_from(KINDS), seeds)
def test_residual_networks_stay_below_one_plus_their_branch(kind, other, seed):
    first, second, head = make(kind, 5, 3, seed), make(other, 3, 5, seed + 1), make("random", 2, 3, seed + 2)
    items = items_of(trace(Residual(first, second, head), (3,)))
    for norm in NORMS:
        branch = operator_norm(first, norm) * operator_norm(second, norm)
        found = propagate(items, norm)
        assert found == pytest.approx((1 + branch) * operator_norm(head, norm), rel=1e-10)
        ones = np.ones
        exact = max(
            operator_norm(head @ np.diag(outer) @ (np.eye(3) + second @ np.diag(inner) @ first), norm)
            for inner in corners(0 * ones(5), ones(5))
            for outer in corners(0 * ones(3), ones(3))
        )
        assert exact <= found * (1 + 1e-14)


@pytest.mark.parametrize("norm", NORMS)
def test_no_pair_of_points_is_further_apart_across_joints(norm):
    torch.manual_seed(1)
    model = Skips().double()
    bound = propagate(items_of(trace(model, (4,))), norm)
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4000, 4)) * 10 ** rng.uniform(-3, 2, (4000, 1))
    b = a + rng.standard_normal((4000, 4)) * 10 ** rng.uniform(-4, 2, (4000, 1))
    with torch.no_grad():
        changed = (model(torch.from_numpy(b)) - model(torch.from_numpy(a))).numpy()
    quotients = np.linalg.norm(changed, ORDER[norm], axis=1) / np.linalg.norm(b - a, ORDER[norm], axis=1)
    assert quotients.max() <= bound


def test_pairs_are_those_with_only_a_unit_slope_between_them():
    chain = nn.Sequential(
        nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.LeakyReLU(2.0), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)
    )
    found = pairs(items_of(trace(chain)))
    assert [(first.name, second.name) for first, second in found] == [("0", "2"), ("4", "6")]
    assert [(a.name, b.name) for a, b in pairs(items_of(trace(Skips(), (4,))))] == [("c", "")]
    residual = Residual(*(make("random", 3, 3, seed) for seed in (0, 1)))
    assert [(a.name, b.name) for a, b in pairs(items_of(trace(residual, (3,))))] == [("inner.0", "inner.2")]


def test_zero_and_infinity_never_meet():
    huge, zero = np.full((2, 2), 1e200), np.zeros((2, 2))
    for order in ([zero, huge, huge], [huge, zero, huge]):
        assert propagate(items_of(trace(relu_network(order))), "l2") == 0.0
    apart = [np.diag([1e200, 0.0]), np.diag([0.0, 1e200])]  # what the first gives, the second does not read
    assert propagate(items_of(trace(relu_network(apart))), "l2") == math.inf
    tiny = np.full((2, 2), 1e-200)
    assert 0.0 < propagate(items_of(trace(relu_network([tiny, tiny]))), "l2") < 1e-300
