"""Ranks against closed forms, SciPy's entropy and NumPy's matrix_rank."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.as_user import refused
from oracles.matrices import make, matrices
from pinchpoint.errors import ModelError
from pinchpoint.measure import effective_rank, numerical_rank, singular_values, stable_rank
from pinchpoint.measure.ranks import rank_tolerance


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12))
def test_ranks_are_the_closed_forms(values):
    sigma = np.array(values)
    entropy = scipy.stats.entropy(sigma)  # normalises
    assert effective_rank(torch.from_numpy(sigma)) == pytest.approx(math.exp(entropy), rel=1e-12)
    expected = math.fsum(sigma**2) / sigma.max() ** 2
    assert stable_rank(torch.from_numpy(sigma)) == pytest.approx(expected, rel=1e-13)


@pytest.mark.parametrize("scale", [1.0, 1e-300, 1.7e308])
@pytest.mark.parametrize("n", [1, 3, 50])
def test_ranks_of_equal_values_count_them_at_any_scale(n, scale):
    sigma = torch.full((n,), scale, dtype=torch.float64)
    assert effective_rank(sigma) == pytest.approx(n, rel=1e-12)
    assert stable_rank(sigma) == n


def test_ranks_of_rank_one_and_zero():
    one = singular_values(torch.from_numpy(make("rank one", 6, 5, seed=1)))
    assert effective_rank(one) == pytest.approx(1.0, abs=1e-12)
    assert stable_rank(one) == pytest.approx(1.0, abs=1e-12)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0.0


def test_ranks_of_half_precision_values_are_summed_in_float64():
    assert effective_rank(torch.full((2000,), 60000.0, dtype=torch.float16)) == pytest.approx(2000, rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from([1e-12, 1e-6, 0.1, 0.5]))
def test_numerical_rank_is_numpys(matrix, tolerance):
    top = np.abs(matrix).max()
    sigma = singular_values(torch.from_numpy(matrix))
    scaled = matrix / top if top > 0 else matrix
    assert numerical_rank(sigma, tolerance) == np.linalg.matrix_rank(scaled, rtol=tolerance)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_tolerance_is_numpys(dtype):
    """A product of float32 matrices has rank 5 up to their rounding; NumPy's default tolerance says so, and ours."""
    rng = np.random.default_rng(0)
    low = (rng.standard_normal((50, 5)).astype(dtype) @ rng.standard_normal((5, 70)).astype(dtype)).astype(dtype)
    sigma = singular_values(torch.from_numpy(low))
    tolerance = rank_tolerance(50, 70, torch.from_numpy(low).dtype)
    assert numerical_rank(sigma, tolerance) == np.linalg.matrix_rank(low) == 5
    assert numerical_rank(sigma, 0.0) > 5


def test_tolerances():
    assert rank_tolerance(2000, 2000, torch.bfloat16) < 1.0
    assert numerical_rank(torch.zeros(3), 0.0) == 0
    for tolerance in (-0.1, 1.0, math.nan):
        text = f"a relative tolerance lies in [0, 1), but got {tolerance}; use max(h, d) * eps as NumPy does."
        with refused(ModelError, text):
            numerical_rank(torch.ones(2), tolerance)
