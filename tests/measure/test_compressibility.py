"""Residual, spread and their inverse against the definitions, one k at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from oracles import compressibility as oracle
from oracles.as_user import refused
from oracles.matrices import matrices
from pinchpoint.errors import ModelError
from pinchpoint.measure import k_for_residual, participation_ratio, pq_index, residual, residual_curve, spread
from pinchpoint.measure.compressibility import dominant_terms, row_residuals, sorted_magnitudes

finite = st.floats(-1e150, 1e150, allow_subnormal=False)
ordinary = st.one_of(st.just(0.0), st.floats(1e-3, 1e3), st.floats(-1e3, -1e-3))
vectors = st.integers(1, 20).flatmap(
    lambda n: st.one_of(
        arrays(np.float64, n, elements=finite),
        arrays(np.float64, n, elements=ordinary),
        arrays(np.float64, n, elements=st.sampled_from([0.0, 1.0, -1.0, 2.0])),  # ties and zeros
    )
)
orders = st.sampled_from([0.5, 1.0, 1.5, 2.0, 4.0])


@settings(max_examples=100, deadline=None)
@given(vectors, orders)
def test_residual_and_spread_are_the_definitions(theta, q):
    tensor = torch.from_numpy(theta)
    for k in range(1, len(theta) + 1):
        assert residual(tensor, k, q).item() == pytest.approx(oracle.residual(theta, k, q), rel=1e-12, abs=1e-150)
        assert spread(tensor, k).item() == pytest.approx(oracle.spread(theta, k), rel=0, abs=1e-15)


@settings(max_examples=100, deadline=None)
@given(vectors, orders)
def test_residual_falls_with_k_from_below_one_to_zero(theta, q):
    curve = residual_curve(torch.from_numpy(theta), q)
    assert (curve[1:] <= curve[:-1]).all()
    assert 0.0 <= curve[0] <= 1.0
    assert curve[-1] == 0.0


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float64, st.integers(1, 20), elements=ordinary),
    st.sampled_from([1e-290, 1e-150, 1 / 3, -7.0, 1e150, 1e290]),
    orders,
)
def test_scale_changes_nothing(theta, factor, q):
    tensor, scaled = torch.from_numpy(theta), torch.from_numpy(theta * factor)
    torch.testing.assert_close(residual_curve(scaled, q), residual_curve(tensor, q), rtol=1e-12, atol=1e-12)
    for k in range(1, len(theta) + 1):
        assert spread(scaled, k).item() == pytest.approx(spread(tensor, k).item(), rel=1e-12, abs=1e-12)


@settings(max_examples=100, deadline=None)
@given(
    matrices(),
    st.one_of(st.floats(1e-150, 1e150), st.sampled_from([1e-150, 1 / 3, -7.0, 1e150])),
    st.data(),
)
def test_scale_changes_no_number_of_a_layer(matrix, factor, data):
    """Every number of every view but the spectral one, which rests on singular values; that is in test_profile.py."""
    top = np.abs(matrix).max()
    matrix = matrix / top if top > 0 else matrix
    matrix[np.abs(matrix) < 1e-150] = 0.0  # what the factor would push under the smallest number
    tensor, scaled = torch.from_numpy(matrix), torch.from_numpy(matrix * factor)
    k = data.draw(st.integers(1, matrix.shape[1]))
    for number in (participation_ratio, pq_index, lambda x: row_residuals(x, k), lambda x: row_residuals(x, k, 2.0)):
        torch.testing.assert_close(number(scaled), number(tensor), rtol=1e-12, atol=1e-12)
    whole = [participation_ratio, pq_index, lambda x: residual_curve(x, 1.0), lambda x: spread(x, k)]
    for number in whole:
        torch.testing.assert_close(number(scaled.flatten()), number(tensor.flatten()), rtol=1e-12, atol=1e-12)


def test_scale_changes_nothing_among_subnormals():
    """Multiples of the smallest number are exact, so the answers are too."""
    theta = torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=torch.float64)
    assert residual_curve(theta * 5e-324).tolist() == residual_curve(theta).tolist()
    assert spread(theta * 5e-324, 2).item() == 0.25


@settings(max_examples=100, deadline=None)
@given(vectors, st.floats(0.0, 1.0), orders)
def test_k_for_residual_is_the_smallest(theta, target, q):
    tensor = torch.from_numpy(theta)
    k = int(k_for_residual(tensor, target, q))
    assert residual(tensor, k, q) <= target
    assert k == 1 or residual(tensor, k - 1, q) > target


def test_k_for_residual_of_a_known_vector():
    theta = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    for target in (0.0, 0.1, 0.12, 0.125, 0.25, 0.3, 0.5, 0.9, 1.0):
        assert int(k_for_residual(torch.from_numpy(theta), target)) == oracle.smallest_k(theta, target)


def test_zero_vector():
    zero = torch.zeros(4)
    assert residual_curve(zero).tolist() == [0.0] * 4
    assert residual_curve(zero, 2.0).tolist() == [0.0] * 4
    assert spread(zero, 3).item() == 0.0
    assert int(k_for_residual(zero, 0.0)) == 1


def test_large_orders_do_not_underflow():
    """For q to infinity the residual tends to |theta|_(k+1) / |theta|_(1)."""
    curve = residual_curve(torch.tensor([1.0, -0.1, 0.01], dtype=torch.float64), 2000.0)
    assert curve.tolist() == pytest.approx([0.1, 0.01, 0.0], rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(matrices(), orders, st.data())
def test_row_residuals_are_each_rows_residual(matrix, q, data):
    k = data.draw(st.integers(1, matrix.shape[1]))
    expected = [oracle.residual(row, k, q) for row in matrix]
    assert row_residuals(torch.from_numpy(matrix), k, q).tolist() == pytest.approx(expected, rel=1e-12, abs=1e-150)


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_participation_ratio_is_the_definition(matrix):
    top = np.abs(matrix).max()
    for row, found in zip(matrix, participation_ratio(torch.from_numpy(matrix)).tolist(), strict=True):
        row = np.abs(row / top if top > 0 else row)
        row = row / row.max() if row.max() > 0 else row
        expected = math.fsum(row) ** 2 / math.fsum(row**2) if row.any() else 0.0
        assert found == pytest.approx(expected, rel=1e-13)


@settings(max_examples=100, deadline=None)
@given(
    arrays(np.float64, st.integers(1, 20), elements=ordinary), st.sampled_from([(0.5, 1.0), (1.0, 2.0), (0.25, 3.0)])
)
def test_pq_index_is_the_definition(theta, orders):
    p, q = orders
    found = pq_index(torch.from_numpy(theta), p, q).item()
    if not theta.any():
        assert found == 0.0
        return
    norm_p, norm_q = (math.fsum(np.abs(theta) ** order) ** (1 / order) for order in orders)
    assert found == pytest.approx(1 - len(theta) ** (1 / q - 1 / p) * norm_p / norm_q, abs=1e-12)


def test_pq_index_runs_from_equal_magnitudes_to_a_single_one():
    assert pq_index(torch.full((7,), 3.0)).item() == pytest.approx(0.0, abs=1e-14)
    assert pq_index(torch.tensor([0.0, 0.0, 5.0, 0.0, 0.0])).item() == pytest.approx(1 - 1 / 5, rel=1e-14)
    assert pq_index(torch.zeros(3)).item() == 0.0


def test_millions_of_entries_stay_accurate():
    theta = np.random.default_rng(0).standard_normal(1_000_000)
    down = np.sort(np.abs(theta))[::-1]
    for k in (1, 1000, 100_000, 999_999):
        expected = math.fsum(down[k:]) / math.fsum(down)
        assert residual(torch.from_numpy(theta), k).item() == pytest.approx(expected, rel=1e-12)


def test_what_is_measured_stays_as_it_was():
    theta = torch.tensor([[2.0, -3.0, 1.0], [0.0, 5.0, -5.0]], dtype=torch.float64)
    copy = theta.clone()
    for positive in (theta, theta.abs(), theta.float().abs(), theta.mT):
        before = positive.clone()
        for number in (residual_curve, participation_ratio, pq_index, lambda x: row_residuals(x, 1)):
            number(positive)
        assert torch.equal(positive, before)
    assert torch.equal(theta, copy)


def test_sorted_magnitudes_descend_from_one():
    assert sorted_magnitudes(torch.tensor([[2, -4, 1], [0, 0, 0]])).tolist() == [[1.0, 0.5, 0.25], [0.0, 0.0, 0.0]]


def test_batches_are_row_by_row():
    theta = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(0))
    theta[1, 0] = 0.0
    for q in (1.0, 2.0):
        each = torch.stack([torch.stack([residual_curve(row, q) for row in rows]) for rows in theta])
        assert torch.equal(residual_curve(theta, q), each)
    each = torch.stack([torch.stack([spread(row, 3) for row in rows]) for rows in theta])
    assert torch.equal(spread(theta, 3), each)
    each = torch.stack([torch.stack([k_for_residual(row, 0.2) for row in rows]) for rows in theta])
    assert torch.equal(k_for_residual(theta, 0.2), each)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int64])
def test_every_dtype_is_measured_in_float64(dtype):
    theta = torch.tensor([60000, 30000, 20000, 5000]).to(dtype)  # their sum overflows float16
    expected = oracle.residual(theta.double().numpy(), 1)
    assert residual(theta, 1).dtype == torch.float64
    assert residual(theta, 1).item() == pytest.approx(expected, rel=1e-15)


def test_dominant_terms_is_the_ceiling_of_the_exact_share():
    for percent in range(1, 101):
        for n in (1, 7, 10, 64, 100, 300, 1000):
            assert dominant_terms(percent / 100, n) == -(-percent * n // 100)


def test_what_is_refused():
    theta = torch.tensor([2.0, 1.0])
    finite_rule = "weights must be finite, but got NaN or infinite values; check that training did not diverge "
    for bad in (math.nan, math.inf):
        with refused(ModelError, finite_rule + "before measuring."):
            residual(torch.tensor([1.0, bad]), 1)
    for k in (0, 3):
        text = f"k must lie in 1 ... 2, the number of terms, but got {k}; choose k as a share of the terms."
        with refused(ModelError, text):
            residual(theta, k)
        with refused(ModelError, text):
            spread(theta, k)
    for q in (0.0, -1.0, math.nan, math.inf):
        with refused(ModelError, f"q must be positive and finite, but got {q}; use q=1 as the paper does."):
            residual_curve(theta, q)
    for p, q in ((1.0, 1.0), (0.0, 1.0), (2.0, 1.0), (0.5, math.inf)):
        text = f"the orders of a PQ index must be 0 < p < q, but got p={p:g}, q={q:g}; use p=0.5, q=1."
        with refused(ModelError, text):
            pq_index(theta, p, q)
    for target in (-0.1, 1.1, math.nan):
        with refused(ModelError, f"a target residual lies in [0, 1], but got {target}; try 0.1."):
            k_for_residual(theta, target)
    for shape in ((0,), (), (3, 0)):
        text = f"theta must have at least one entry, but got shape {shape}; give a non-empty vector."
        with refused(ModelError, text):
            residual(torch.empty(shape), 1)
        with refused(ModelError, text):
            spread(torch.empty(shape), 1)
    with refused(ModelError, "theta must be real, but got torch.complex64; give magnitudes, e.g. theta.abs()."):
        residual_curve(torch.tensor([1 + 2j, 3.0]))
