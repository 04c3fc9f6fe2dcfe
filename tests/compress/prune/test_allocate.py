"""How many units each layer keeps, against naive NumPy: bisection, sorting, brute force."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oracles.as_user import refused
from pinchpoint.compress.prune.allocate import allocate, prices, share, strongest
from pinchpoint.errors import ConfigError

ALLOCATIONS = ("uniform", "global", "residual")


def lost(theta, k, q):
    """||theta - theta_k||_q / ||theta||_q, by definition."""
    magnitudes = np.sort(np.abs(np.asarray(theta, dtype=np.float64)))
    whole = (magnitudes**q).sum() ** (1 / q)
    return 0.0 if whole == 0 else (magnitudes[: len(magnitudes) - k] ** q).sum() ** (1 / q) / whole


def smallest_k(theta, target, q):
    return next(k for k in range(1, len(theta) + 1) if lost(theta, k, q) <= target)


def bisected(groups, kept, q):
    """The target residual at which all groups together keep so many units, by bisection, and each one's k."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        total = sum(smallest_k(theta, middle, q) for theta in groups.values())
        low, high = (low, middle) if total <= kept else (middle, high)
    return high, {name: smallest_k(theta, high, q) for name, theta in groups.items()}


def scores(seed, sizes):
    rng = np.random.default_rng(seed)
    return {f"layer{i}": torch.tensor(rng.exponential(rng.uniform(0.1, 9), n) + 1e-3) for i, n in enumerate(sizes)}


@pytest.mark.parametrize("q", [1.0, 2.0])
@pytest.mark.parametrize("ratio", [0.1, 0.5, 0.8])
def test_residual_is_what_bisecting_the_target_finds(q, ratio):
    groups = scores(3, (5, 16, 1, 40, 23))
    found = allocate(groups, ratio, "residual", q=q)
    units = sum(len(theta) for theta in groups.values())
    target, kept = bisected({name: theta.numpy() for name, theta in groups.items()}, units - round(ratio * units), q)
    assert found.kept == kept
    assert found.price == pytest.approx(target, rel=1e-9)
    for name, theta in groups.items():
        assert lost(theta, found.kept[name], q) <= found.price * (1 + 1e-12)
        assert found.kept[name] == 1 or lost(theta, found.kept[name] - 1, q) > found.price  # none is kept in vain


@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=12), min_size=1, max_size=6),
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(ALLOCATIONS),
    st.sampled_from([0.5, 1.0, 2.0]),
)
def test_the_ratio_is_met_within_one_unit_and_no_layer_collapses(values, ratio, allocation, q):
    """Small integers: ties within layers and between them, and layers of zeros."""
    groups = {str(i): torch.tensor(own, dtype=torch.float64) for i, own in enumerate(values)}
    units = sum(map(len, values))
    if round(ratio * units) > units - len(groups):
        with pytest.raises(ConfigError, match="must leave every one of the"):
            allocate(groups, ratio, allocation, q=q)
        return
    found = allocate(groups, ratio, allocation, q=q)
    assert all(1 <= found.kept[name] <= len(own) for name, own in groups.items())
    assert abs((units - sum(found.kept.values())) - ratio * units) <= 0.5 + 1e-9
    if allocation == "residual" and found.price is not None:
        for name, own in groups.items():
            assert lost(own, found.kept[name], q) <= found.price + 1e-12


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.floats(0, 0.97))
def test_uniform_gives_every_layer_the_ratio_rounded(sizes, ratio):
    groups = {str(i): torch.ones(n) for i, n in enumerate(sizes)}
    if round(ratio * sum(sizes)) > sum(sizes) - len(sizes):
        return
    found = allocate(groups, ratio, "uniform")
    capped = any(round(ratio * n) > n - 1 for n in sizes)  # the others must then give more
    for name, own in groups.items():
        assert capped or abs((len(own) - found.kept[name]) - ratio * len(own)) <= 1.0


def test_global_is_one_threshold_over_scores_in_units_of_their_mean():
    groups = scores(5, (8, 30, 12))
    found = allocate(groups, 0.4, "global")
    for name, theta in groups.items():
        assert found.kept[name] == max(1, int((theta.numpy() / theta.numpy().mean() > found.price).sum()))
    bare = allocate(groups, 0.4, "global", normalise=False)
    together = np.sort(np.concatenate([theta.numpy() for theta in groups.values()]))
    assert bare.price == together[round(0.4 * 50) - 1]
    assert bare.kept != found.kept


def test_every_allocation_is_unchanged_by_a_layers_scale():
    """It is structure that is compared, not scale; so too where batch norm makes scale meaningless."""
    groups = scores(6, (9, 20, 14))
    scaled = {name: theta * 10.0**i for i, (name, theta) in enumerate(groups.items())}
    for allocation in ALLOCATIONS:
        assert allocate(groups, 0.5, allocation).kept == allocate(scaled, 0.5, allocation).kept


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_nothing_goes_at_ratio_zero_and_prices_rise(allocation):
    groups = scores(7, (9, 20))
    found = allocate(groups, 0.0, allocation)
    assert found.kept == {"layer0": 9, "layer1": 20}
    assert found.price is None
    for theta in groups.values():
        own = prices(theta, allocation)
        assert len(own) == len(theta) - 1
        assert bool((own.diff() >= 0).all())


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("ratio", [0.05, 0.33, 0.6])
def test_a_ratio_of_a_size_is_met_as_closely_as_one_unit_allows(allocation, ratio):
    """Parameters of a chain of fully connected layers: products of neighbouring widths, so no unit has a size of its own."""
    groups = scores(8, (11, 17, 7))

    def size(kept):
        widths = [5, *kept.values(), 3]
        return sum(a * b for a, b in pairwise(widths))

    found = allocate(groups, ratio, allocation, size=size)
    priced = {name: prices(theta, allocation) for name, theta in groups.items()}
    whole = size({name: len(theta) for name, theta in groups.items()})
    every = [share(priced, removals) for removals in range(11 + 17 + 7 - 3 + 1)]
    best = min(abs(1 - size(one.kept) / whole - ratio) for one in every)
    assert abs(1 - size(found.kept) / whole - ratio) == pytest.approx(best, abs=1e-12)
    assert found in every


def test_the_strongest_stay_and_of_equal_ones_the_first():
    theta = torch.tensor([2.0, 5.0, 2.0, 0.0, 2.0])
    assert strongest(theta, 3).tolist() == [True, True, True, False, False]
    assert strongest(theta, 5).all()


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_a_ratio_out_of_range(ratio):
    shown = repr(ratio)
    with refused(ConfigError, f"a pruning ratio lies in [0, 1), but got {shown}; 0.5 removes half of the units."):
        allocate({"a": torch.ones(3)}, ratio, "uniform")


def test_a_ratio_that_would_empty_a_layer():
    groups = {"a": torch.ones(3), "b": torch.ones(2)}
    assert allocate(groups, 0.6, "residual").kept == {"a": 1, "b": 1}
    rule = "a pruning ratio must leave every one of the 2 layers at least one unit, so it is at most 0.6"
    text = f"{rule}, but got 0.9; lower it."
    with refused(ConfigError, text):
        allocate(groups, 0.9, "residual")
    with refused(ConfigError, text.replace("0.6,", "0.3,")):
        allocate(groups, 0.9, "uniform", size=lambda kept: 3 + 0.5 * sum(kept.values()) - 0.5 * 1)


def test_an_unknown_allocation():
    with refused(ConfigError, "allocation must be one of uniform, global, residual, but got fair; choose one."):
        allocate({"a": torch.ones(3)}, 0.5, "fair")
