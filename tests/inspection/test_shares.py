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
from pinchpoint.errors import DataError
from pinchpoint.inspection.shares import counted, paired, share

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
