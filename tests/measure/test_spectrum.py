"""Spectra, ranks and norms against NumPy, closed forms, and what a norm means: the largest stretch of any vector."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import compressibility as oracle
from oracles.as_user import refused
from oracles.matrices import KINDS, SCALES, make, matrices
from oracles.networks import ORDER
from pinchpoint.errors import ModelError
from pinchpoint.measure import operator_norm, operator_norm_upper, row_norms, singular_values
from pinchpoint.measure.spectrum import (
    EPS64,
    column_norms,
    frobenius_norm,
    inflate,
    spectral_norm_bounds,
    times_up,
    vector_norms,
)

NORMS = ("linf", "l2")


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_singular_values_row_norms_and_frobenius_norm(matrix):
    tensor = torch.from_numpy(matrix)
    sigma = np.linalg.svd(matrix, compute_uv=False)
    np.testing.assert_allclose(singular_values(tensor).numpy(), sigma, rtol=1e-13, atol=1e-14 * sigma[0])
    np.testing.assert_allclose(row_norms(tensor).numpy(), oracle.row_norms(matrix), rtol=1e-14)
    np.testing.assert_allclose(column_norms(tensor).numpy(), oracle.row_norms(matrix.T), rtol=1e-14)
    assert frobenius_norm(tensor) == pytest.approx(oracle.frobenius(matrix), rel=1e-14)


@pytest.mark.parametrize("method", ["auto", "svd", "gram"])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
def test_singular_values_of_larger_matrices(kind, scale, method):
    """SVD and auto to 1e-12 sigma_1 throughout; Gram to eps sigma_1^2 / (2 sigma), at worst the root of eps."""
    for h, d in ((40, 90), (90, 40), (48, 48)):
        matrix = make(kind, h, d, seed=5, scale=scale)
        expected = oracle.singular_values(matrix)
        error = np.abs(singular_values(torch.from_numpy(matrix), method).numpy() - expected)
        if method == "gram":
            squares = 32 * EPS64 * expected[0]
            least = np.maximum(expected, np.sqrt(32 * EPS64) * expected[0])
            allowed = squares * (expected[0] / np.maximum(least, 1e-300))
            assert (error <= allowed).all()
        else:
            assert (error <= 1e-12 * expected[0]).all()


def test_auto_takes_an_svd_where_gram_would_lose_small_values():
    """Known spectrum from 1 down to 1e-10, between random orthogonal factors."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(n, 64, generator=generator, dtype=torch.float64))[0] for n in (64, 80))
    sigma = torch.logspace(0, -10, 64, dtype=torch.float64)
    matrix = left @ torch.diag(sigma) @ right.mT
    assert (singular_values(matrix) - sigma).abs().max() < 1e-14
    assert (singular_values(matrix, "gram") - sigma).abs().max() > 1e-10


def test_rows_and_columns_of_zeros_count_as_exact_zeros():
    matrix = make("random", 60, 70, seed=2)
    matrix[::3] = 0.0
    matrix[:, ::2] = 0.0
    for method in ("auto", "svd", "gram"):
        found = singular_values(torch.from_numpy(matrix), method).numpy()
        assert found.shape == (60,)
        assert (found[35:] == 0.0).all()
        assert (found[:35] > 0.0).all()
        np.testing.assert_allclose(found, np.linalg.svd(matrix, compute_uv=False), atol=1e-12 * found[0])


@pytest.mark.parametrize("value", [1.0, 0.1, 1e-200])
@pytest.mark.parametrize(("h", "d"), [(64, 1024), (1024, 64), (4, 4)])
def test_bounds_on_the_spectral_norm_enclose_a_closed_form(h, d, value):
    """h x d equal entries have the norm value * sqrt(h d), and Gram's sums round where the value is no power of two."""
    matrix = torch.full((h, d), value, dtype=torch.float64)
    exact = Fraction(value) * math.isqrt(h * d)
    for method in ("auto", "svd", "gram"):
        lower, upper = spectral_norm_bounds(singular_values(matrix, method), (h, d))
        assert Fraction(lower) <= exact <= Fraction(upper)
        assert upper <= lower * (1 + 1e-11)
    assert Fraction(operator_norm_upper(matrix, "l2")) >= exact


def test_bounds_on_the_spectral_norm_of_zeros():
    assert spectral_norm_bounds(torch.zeros(3, dtype=torch.float64), (3, 4)) == (0.0, 0.0)


def test_measuring_leaves_matrix_and_threads_as_they_were():
    before = torch.get_num_threads()
    matrix = torch.from_numpy(make("random", 40, 50, seed=0))
    copy = matrix.clone()
    torch.set_num_threads(2)
    try:
        singular_values(matrix)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert torch.equal(matrix, copy)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from(NORMS))
def test_operator_norms_are_numpys(matrix, norm):
    tensor = torch.from_numpy(matrix)
    expected = np.linalg.norm(matrix, ORDER[norm])
    assert operator_norm(tensor, norm) == pytest.approx(expected, rel=1e-13)
    assert operator_norm_upper(tensor, norm) >= expected
    assert operator_norm_upper(tensor, norm) <= expected * (1 + 1e-12)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from(NORMS), st.integers(0, 2**32 - 1))
def test_no_vector_is_stretched_by_more_and_one_is_stretched_as_much(matrix, norm, seed):
    top = np.abs(matrix).max()
    scaled = matrix / top if top > 0 else matrix
    upper = operator_norm_upper(torch.from_numpy(scaled), norm)
    vectors = np.random.default_rng(seed).standard_normal((200, matrix.shape[1]))
    lengths = np.linalg.norm(vectors, ORDER[norm], axis=1)
    stretched = np.linalg.norm(vectors @ scaled.T, ORDER[norm], axis=1)
    assert (stretched <= upper * lengths * (1 + 1e-14)).all()
    if norm == "linf":
        best = np.where(scaled[np.abs(scaled).sum(axis=1).argmax()] >= 0, 1.0, -1.0)
    else:
        best = np.linalg.svd(scaled)[2][0]
    reached = np.linalg.norm(scaled @ best, ORDER[norm]) / np.linalg.norm(best, ORDER[norm])
    assert reached == pytest.approx(upper, rel=1e-12)


@pytest.mark.parametrize("scale", [1e-310, 5e-324])
def test_upper_norms_hold_among_subnormals(scale):
    """There rounding is absolute: the exact norm sqrt(2) * scale may only be rounded up."""
    upper = operator_norm_upper(torch.full((1, 2), scale, dtype=torch.float64), "l2")
    assert Fraction(upper) ** 2 >= 2 * Fraction(scale) ** 2


@settings(max_examples=100, deadline=None)
@given(matrices(), st.sampled_from([1, 2]))
def test_vector_norms_row_by_row(matrix, order):
    naive = math.hypot if order == 2 else lambda *row: math.fsum(map(abs, row))
    found = vector_norms(torch.from_numpy(matrix), order).tolist()
    assert found == pytest.approx([naive(*row) for row in matrix], rel=1e-13, abs=0)


def test_vector_norms_where_squares_vanish_or_overflow():
    for scale in (1e-200, 1e200):
        vector = torch.tensor([3.0, 4.0], dtype=torch.float64) * scale
        assert vector_norms(vector).item() == pytest.approx(5 * scale, rel=1e-15)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0, 1e308), min_size=1, max_size=6))
def test_times_up_is_never_below_the_exact_product(factors):
    product = times_up(*factors)
    exact = math.prod(Fraction(factor) for factor in factors)
    assert product == math.inf or Fraction(product) >= exact
    assert (product == 0) == (exact == 0)
    if 1e-300 < exact < 1e300 and all(1e-40 < factor < 1e40 for factor in factors):
        assert product == pytest.approx(float(exact), rel=1e-14)


def test_inflate_raises_by_little_and_leaves_zero():
    assert inflate(0.0, 100) == 0.0
    assert 1.0 < inflate(1.0, 100) < 1 + 1e-12
    assert inflate(5e-324, 1) > 5e-324
    assert inflate(math.inf, 1) == math.inf


def test_half_precision_matrices_are_measured_in_float64():
    matrix = torch.full((3, 4), 60000.0, dtype=torch.float16)  # representable; a row's sum is not
    assert row_norms(matrix).tolist() == [240000.0] * 3
    assert singular_values(matrix).dtype == torch.float64


def test_what_is_refused():
    remedy = "look the layer up with pinchpoint.measure.layers.layers(model)."
    for shape in ((0, 3), (3,), (2, 2, 2)):
        text = f"a layer's matrix must be two-dimensional and not empty, but got shape {shape}; {remedy}"
        with refused(ModelError, text):
            row_norms(torch.ones(shape))
    for bad in (math.nan, math.inf, -math.inf):
        text = "weights must be finite, but got NaN or infinite values; "
        with refused(ModelError, text + "check that training did not diverge before measuring."):
            singular_values(torch.tensor([[1.0, bad]]))
    for dtype in (torch.int64, torch.complex64):
        text = f"weights must be real floating point numbers, but got {dtype}; convert the model, e.g. model.float()."
        with refused(ModelError, text):
            operator_norm(torch.ones(2, 2, dtype=dtype), "l2")
    with refused(ModelError, "method must be one of auto, gram, svd, but got qr; leave it at auto."):
        singular_values(torch.ones(2, 2), "qr")
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        operator_norm(torch.ones(2, 2), "l1")
