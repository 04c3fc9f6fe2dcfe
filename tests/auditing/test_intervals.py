"""Shares, paired differences and their intervals against closed forms and simulation."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom, norm

from oracles.as_user import refused
from pinchpoint.auditing.intervals import alike, counted, paired, share
from pinchpoint.errors import DataError

flags = st.lists(st.booleans(), min_size=1, max_size=60)


@given(flags)
def test_wilson_interval_solves_its_equation(right: list[bool]) -> None:
    one, z = counted(right), norm.ppf(0.975)
    assert one.count == sum(right)
    assert one.of == len(right)
    for edge in (one.low, one.high):  # |p - p0| = z sqrt(p0 (1 - p0) / n)
        assert abs(one.value - edge) == pytest.approx(z * math.sqrt(edge * (1 - edge) / one.of), abs=1e-9)
    assert one.low <= one.value <= one.high


def test_share_of_nothing() -> None:
    with refused(DataError, "a share needs one sample or more, but got 0; give more samples."):
        share(0, 0)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_pairs_are_counted_and_tested_exactly(pairs: list[tuple[bool, bool]]) -> None:
    first, second = (list(side) for side in zip(*pairs, strict=True))
    row = paired("accuracy", first, second)
    assert row.both + row.only_first + row.only_second + row.neither == len(pairs)
    assert row.difference == pytest.approx((sum(second) - sum(first)) / len(pairs))
    assert -1 - 1e-12 <= row.low <= row.difference + 1e-12
    assert row.difference - 1e-12 <= row.high <= 1 + 1e-12
    n, fewer = row.only_first + row.only_second, min(row.only_first, row.only_second)
    exact = min(1.0, 2 * float(binom.cdf(fewer, n, 0.5))) if n else 1.0
    assert row.p_value == pytest.approx(exact)
    other = paired("accuracy", second, first)
    assert (other.low, other.high) == pytest.approx((-row.high, -row.low))


def test_newcombe_example() -> None:
    # Newcombe 1998 (Statistics in Medicine 17: 2635), table II, method 10: 36, 12, 2, 0 give 0.2000 (0.0569 ... 0.3404)
    first, second = [True] * 48 + [False] * 2, [True] * 36 + [False] * 12 + [True] * 2
    row = paired("accuracy", second, first)
    assert (row.both, row.only_second, row.only_first, row.neither) == (36, 12, 2, 0)
    assert (row.difference, row.low, row.high) == pytest.approx((0.2, 0.0569, 0.3404), abs=1e-4)


def test_interval_covers_the_truth() -> None:
    generator = np.random.default_rng(0)
    truth, covered, runs = 0.85 - 0.75, 0, 400
    for _ in range(runs):
        draw = generator.random(200)
        one = draw < 0.75  # whoever is right by chance 0.75 ...
        other = one & (generator.random(200) < 0.95) | ~one & (generator.random(200) < 0.55)  # ... 0.85 in all
        row = paired("accuracy", one.tolist(), other.tolist())
        covered += row.low <= truth <= row.high
    assert binom.cdf(covered, runs, 0.95) > 1e-3


def test_samples_must_be_the_same() -> None:
    sentence = "models are compared on the same samples, but got 2 and 1; judge both."
    with refused(DataError, sentence):
        paired("accuracy", [True, False], [True])


def test_intervals_narrow_with_samples() -> None:
    widths = [one.high - one.low for one in (share(n // 2, n) for n in (10, 100, 1000))]
    assert all(wide > narrow for wide, narrow in pairwise(widths))


KINDS = ("AutoPGD", "search", "quick", "standard")


@st.composite
def attacked(draw):
    """A sample under two models: what each was due for, and by which attacks each would fall if it faced all of them."""
    orders = [draw(st.permutations(KINDS))[: draw(st.integers(0, 4))] for _ in range(2)]
    weak = [draw(st.sets(st.sampled_from(KINDS))) for _ in range(2)]
    return orders, weak


@given(st.lists(attacked(), min_size=1, max_size=20))
def test_two_models_are_compared_under_attacks_that_both_faced(samples) -> None:
    trials = [[orders[model] for orders, _ in samples] for model in (0, 1)]
    felled = [
        [next((n for n, one in enumerate(orders[model], 1) if one in weak[model]), None) for orders, weak in samples]
        for model in (0, 1)
    ]
    *standing, faced = alike(tuple(trials), tuple(felled))
    left = iter(zip(*standing, faced, strict=True))
    for orders, weak in samples:
        first, second = orders
        if not any(set(first[:n]) == set(second[:n]) for n in range(1, 5) if n <= min(len(first), len(second))):
            continue  # nothing that both faced before anything else
        one, other, attacks = next(left)
        assert set(attacks) <= set(first) & set(second)
        for stands, falls in zip((one, other), weak, strict=True):
            assert stands == (not falls & set(attacks))  # as if it had been attacked by these and nothing else
    assert next(left, None) is None


def test_more_attacks_on_one_model_move_no_comparison() -> None:
    short, long = [["AutoPGD"]] * 3, [["AutoPGD", "standard"]] * 3
    assert alike((short, long), ([None, 1, None], [2, None, 2]))[:2] == ([True, False, True], [True, True, True])
    assert alike((short, short), ([0, None, None], [None, 0, 1]))[:2] == ([False, True, True], [True, False, False])
    assert alike(([["quick"]], [["AutoPGD"]]), ([None], [1])) == ([], [], [])
