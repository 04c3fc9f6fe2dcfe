"""Theorem 3.1 as a property of every matrix, and its factors against the formula written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles import compressibility as oracle
from oracles.as_user import refused
from oracles.matrices import make, matrices
from oracles.networks import ORDER
from pinchpoint.bound import structure_curve, structure_scale
from pinchpoint.errors import ModelError
from pinchpoint.measure import residual, row_norms, spread

NORMS = ("linf", "l2")
ROUNDING = 1 + 1e-13


def check_every_k(matrix):
    """The theorem for every k and k_r; returns nothing, fails where it does not hold."""
    tensor = torch.from_numpy(matrix)
    for k_row in (*range(1, matrix.shape[1] + 1), None):
        bounds = structure_curve(tensor, "linf", k_row)[0].numpy() * oracle.frobenius(matrix)
        assert (np.linalg.norm(matrix, np.inf) <= bounds[np.isfinite(bounds)] * ROUNDING).all()
    bounds = structure_curve(tensor, "l2")[0].numpy() * oracle.frobenius(matrix)
    assert (np.linalg.norm(matrix, 2) <= bounds[np.isfinite(bounds)] * ROUNDING).all()


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_theorem_for_every_k(matrix):
    check_every_k(matrix)


def test_theorem_for_trained_matrices(trained):
    weights = [module.weight.detach().double().numpy() for module in trained if isinstance(module, nn.Linear)]
    for matrix in weights:
        check_every_k(matrix)


@settings(max_examples=60, deadline=None)
@given(matrices(most=6))
def test_structure_is_the_formula(matrix):
    tensor = torch.from_numpy(matrix)
    if not matrix.any():
        return
    h, d = matrix.shape
    for k_row in range(1, d + 1):
        curve, used = structure_curve(tensor, "linf", k_row)
        expected = [oracle.structure_linf(matrix, k, k_row) for k in range(1, h + 1)]
        assert used == k_row
        assert curve.tolist() == pytest.approx(expected, rel=1e-10)
    expected = np.array([oracle.structure_l2(matrix, k) for k in range(1, min(h, d) + 1)])
    solid = oracle.singular_values(matrix) > 1e-9 * oracle.singular_values(matrix)[0]  # the others are rounding
    np.testing.assert_allclose(structure_curve(tensor, "l2")[0].numpy()[solid], expected[solid], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(1, 9))
def test_first_line_of_the_theorem_and_its_equality_at_one(matrix, k):
    nu = row_norms(torch.from_numpy(matrix))
    k = min(k, len(nu))
    top = np.linalg.norm(matrix, np.inf)
    kept, total = 1 - float(spread(nu, k)), float(nu.sum())
    if kept > 0:
        assert top <= (1 - float(residual(nu, k))) / (kept * k) * total * ROUNDING
    assert top == pytest.approx((1 - float(residual(nu, 1))) * total, rel=1e-13)


@settings(max_examples=60, deadline=None)
@given(matrices(), st.sampled_from(NORMS))
def test_default_is_the_tightest_choice_and_holds(matrix, norm):
    tensor = torch.from_numpy(matrix)
    best = structure_scale(tensor, norm)
    assert best.operator_norm == pytest.approx(np.linalg.norm(matrix, ORDER[norm]), rel=1e-13)
    assert best.scale == pytest.approx(oracle.frobenius(matrix), rel=1e-14)
    assert best.operator_norm <= best.bound * ROUNDING
    k_rows = range(1, matrix.shape[1] + 1) if norm == "linf" else [None]
    for k_row in k_rows:
        for k in range(1, (len(matrix) if norm == "linf" else min(matrix.shape)) + 1):
            other = structure_scale(tensor, norm, k, k_row)
            assert (other.k, other.k_row) == (k, k_row)
            assert other.bound >= best.bound * (1 - 1e-15)
            assert other.bound == pytest.approx(other.structure * other.scale, rel=1e-15)


@pytest.mark.parametrize("h", [7, 300])
@pytest.mark.parametrize("d", [5, 300])
def test_equality_cases_for_every_k(h, d):
    """All sigma equal, and all entries equal: the bound is the norm whatever k is, so nothing hides rounding."""
    orthogonal = make("orthogonal", h, d, seed=0)
    bounds = structure_curve(torch.from_numpy(orthogonal), "l2")[0] * math.sqrt(min(h, d))
    np.testing.assert_allclose(bounds, 1.0, rtol=1e-12)
    equal = np.full((h, d), 0.1)
    bounds = structure_curve(torch.from_numpy(equal), "linf", d)[0] * (0.1 * math.sqrt(h * d))
    np.testing.assert_allclose(bounds, 0.1 * d, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_structure_does_not_change_with_scale(scale):
    matrix = torch.from_numpy(make("random", 6, 5, seed=0))
    for norm in NORMS:
        plain, scaled = structure_scale(matrix, norm), structure_scale(matrix * scale, norm)
        assert scaled.structure == pytest.approx(plain.structure, rel=1e-12)
        assert scaled.bound == pytest.approx(plain.bound * scale, rel=1e-12)


def test_zero_matrix_and_single_entry():
    for norm in NORMS:
        zero = structure_scale(torch.zeros(3, 2), norm)
        assert zero.operator_norm == zero.scale == zero.bound == 0.0
        one = structure_scale(torch.tensor([[-2.0]]), norm)
        assert one.bound == pytest.approx(2.0, rel=1e-15)


def test_a_dominant_term_of_zero_gives_no_bound():
    """Spread 1: the factor is infinite, which is true and useless."""
    curve, _ = structure_curve(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "linf")
    assert curve[1] == math.inf
    assert structure_scale(torch.tensor([[1.0, 1.0], [0.0, 0.0]]), "linf", k=2).bound == math.inf


def test_what_is_refused():
    matrix = torch.ones(3, 2)
    for norm, name, most in (("linf", "k", 3), ("l2", "k", 2), ("linf", "k_row", 2)):
        for bad in (0, most + 1):
            text = f"{name} must lie in 1 ... {most}, but got {bad}; leave it out for the tightest choice."
            with refused(ModelError, text):
                structure_scale(matrix, norm, **{name: bad})
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        structure_scale(matrix, "l1")
