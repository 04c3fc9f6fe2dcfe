"""Alignment against the enumeration of all masks, its certified sides as properties of every pair of layers."""

from __future__ import annotations

import importlib
import math

import cvxpy
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles import alignment as oracle
from oracles.as_user import refused
from oracles.matrices import KINDS, SCALES, make, matrices
from pinchpoint.bound.masked import enumeration, l2, linf
from pinchpoint.bound.masked.norm import masked_norm
from pinchpoint.bound.methods.alignment import alignment
from pinchpoint.errors import ModelError

NORMS = ("linf", "l2")
ROUNDING = 1 + 1e-12


@st.composite
def pairs(draw: st.DrawFn, most: int = 6):
    first = draw(matrices(most))
    kind, outputs = draw(st.sampled_from(KINDS)), draw(st.integers(1, most))
    second = make(kind, outputs, len(first), draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from(SCALES)))
    return first, second


def measured(first, second, norm, **options):
    return masked_norm(torch.from_numpy(first), torch.from_numpy(second), norm, **options)


@settings(max_examples=80, deadline=None)
@given(pairs(), st.sampled_from(NORMS))
def test_few_units_are_exact(pair, norm):
    first, second = pair
    truth = oracle.masked_norm(first, second, norm)
    found = measured(first, second, norm)
    assert found.exact
    assert found.lower <= truth * ROUNDING
    assert found.upper * ROUNDING >= truth
    assert found.upper == pytest.approx(found.lower, rel=1e-9, abs=0.0)


@settings(max_examples=40, deadline=None)
@given(pairs(), st.sampled_from(NORMS))
def test_without_enumeration_the_bracket_still_holds(pair, norm):
    """The bounds that large layers get, on layers small enough to know the answer."""
    first, second = pair
    truth = oracle.masked_norm(first, second, norm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linf, "MAX_UNITS", 0)
        patch.setattr(enumeration, "MAX_INPUTS", 0)
        patch.setattr(l2, "MAX_UNITS", 0)
        found = measured(first, second, norm)
        patch.setattr(l2, "SMALL", 0)
        large = measured(first, second, norm)
    for one in (found, large):
        assert one.lower <= truth * ROUNDING
        assert one.upper * ROUNDING >= truth
        assert not one.exact or one.upper == pytest.approx(truth, rel=1e-8, abs=0.0)


@settings(max_examples=60, deadline=None)
@given(pairs(), st.sampled_from(NORMS), st.data())
def test_product_form_holds_for_every_mask(pair, norm, data):
    """||W2 D W1|| <= factor ||W2|| ||W1||, for D in [0, 1] too, for every k and for the default."""
    first, second = pair
    most = [len(first), len(second)] if norm == "linf" else [min(first.shape), min(second.shape)]
    k = data.draw(st.none() | st.tuples(st.integers(1, most[0]), st.integers(1, most[1])))
    found = alignment(torch.from_numpy(first), torch.from_numpy(second), norm, k=k)
    assert 0 <= found.lower <= found.upper
    assert found.factor == min(1.0, found.upper)
    limit = found.factor * oracle.norm_of(first, norm) * oracle.norm_of(second, norm) * ROUNDING
    slopes = np.random.default_rng(0).random(len(first))
    for mask in [*oracle.all_masks(len(first)), slopes]:
        assert oracle.norm_of(second @ (mask[:, None] * first), norm) <= limit


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("k", [(1, 1), (2, 3), (4, 1), (4, 5)])
def test_alignment_is_its_definition(norm, k):
    first, second = make("random", 6, 4, seed=1), make("random", 5, 6, seed=2)
    found = alignment(torch.from_numpy(first), torch.from_numpy(second), norm, k=k)
    truth = oracle.alignment(first, second, norm, *k)
    assert found.k == k
    assert found.exact
    assert found.lower == pytest.approx(truth, rel=1e-9)
    assert found.upper == pytest.approx(truth, rel=1e-9)
    assert found.lower <= truth * ROUNDING
    assert found.upper * ROUNDING >= truth


def test_remainder_is_the_share_left_out():
    first, second = torch.diag(torch.tensor([4.0, 2.0, 1.0])), torch.diag(torch.tensor([10.0, 1.0, 1.0]))
    for norm in NORMS:
        found = alignment(first, second, norm, k=(2, 1))
        assert found.remainder == pytest.approx(0.25 + 0.1 + 0.025, rel=1e-12)
        assert alignment(first, second, norm, k=3).remainder == 0.0


def test_the_gram_route_agrees_with_the_svd(monkeypatch):
    module = importlib.import_module("pinchpoint.bound.methods.alignment")  # the package's attribute is the function
    for shape in ((7, 4), (4, 7)):
        first, second = make("random", *shape, seed=1), make("random", 5, shape[0], seed=2)
        layers = torch.from_numpy(first), torch.from_numpy(second)
        monkeypatch.setattr(module, "SMALL", 512)
        by_svd = alignment(*layers, "l2", k=2)
        monkeypatch.setattr(module, "SMALL", 0)
        by_gram = alignment(*layers, "l2", k=2)
        truth = oracle.alignment(first, second, "l2", 2, 2)
        assert by_gram.upper == pytest.approx(by_svd.upper, rel=1e-10)
        assert by_gram.lower <= truth * ROUNDING
        assert by_gram.upper * ROUNDING >= truth


def semidefinite(a, b):
    """min over T of (1/2) lambda_max, as a linear matrix inequality in lambda and S = 1/T."""
    m, h, d = len(a), len(b), b.shape[1]
    top, s = cvxpy.Variable(), cvxpy.Variable(h)
    scaled = cvxpy.diag(s) @ b
    rows = [
        [top * np.eye(m), np.zeros((m, d)), a],
        [np.zeros((d, m)), top * np.eye(d), scaled.T],
        [a.T, scaled, cvxpy.diag(s)],
    ]
    block = cvxpy.bmat(rows)
    problem = cvxpy.Problem(cvxpy.Minimize(top / 2), [(block + block.T) / 2 >> 0])
    return float(problem.solve(solver="CLARABEL"))


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("small", [256, 0])
def test_scaling_reaches_the_semidefinite_value(seed, small, monkeypatch):
    monkeypatch.setattr(l2, "SMALL", small)
    a, b = make("random", 6, 6, seed=seed), make("random", 6, 6, seed=seed + 100)
    found = l2.scaling_bound(torch.from_numpy(a), torch.from_numpy(b))
    expected = semidefinite(a, b)
    assert found >= expected * (1 - 1e-6)
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.long
def test_thin_layers_of_many_units():
    """linf over 2^20 masks by halves; few inputs over their signs; both against plain enumeration or each other."""
    first, second = make("random", 14, 9, seed=3), make("random", 11, 14, seed=4)
    truth = max(float(np.abs((second * mask) @ first).sum(axis=1).max()) for mask in oracle.all_masks(len(first)))
    units = measured(first, second, "linf")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linf, "MAX_UNITS", 0)
        inputs = measured(first, second, "linf")
    assert (units.method, inputs.method) == ("enumeration of units", "enumeration of input signs")
    for found in (units, inputs):
        assert found.exact
        assert found.lower <= truth * ROUNDING
        assert found.upper == pytest.approx(truth, rel=1e-10)
        assert found.upper * ROUNDING >= truth


def test_work_that_runs_out_leaves_a_bound_and_says_so(monkeypatch):
    first, second = make("random", 12, 7, seed=3), make("random", 6, 12, seed=4)
    truth = oracle.masked_norm(first, second, "linf")
    monkeypatch.setattr(enumeration, "WORK", 0)
    monkeypatch.setattr(enumeration, "CHUNK", 1)
    monkeypatch.setattr(linf, "_ascend", lambda *_: 0.0)
    found = measured(first, second, "linf")
    assert not found.exact
    assert found.method == "partial enumeration of units"
    assert found.lower <= truth <= found.upper


@pytest.mark.long
@pytest.mark.parametrize("norm", NORMS)
def test_large_layers_bracket_well(norm):
    """Random layers of 60 units: the certified side stays near what is reached, far below the product of norms."""
    first, second = make("random", 60, 50, seed=1), make("random", 40, 60, seed=2)
    found = alignment(torch.from_numpy(first), torch.from_numpy(second), norm)
    assert found.upper <= (1.6 if norm == "linf" else 1.05) * found.lower
    assert found.upper < (0.35 if norm == "linf" else 0.8)


def test_trained_layers(trained):
    weights = [module.weight for module in trained if isinstance(module, nn.Linear)]
    found = alignment(weights[0], weights[1], "l2")
    assert found.lower <= found.upper < 1
    assert found.upper <= 1.02 * found.lower


def test_dead_units_and_zero_layers():
    for norm in NORMS:
        nothing = alignment(torch.zeros(3, 2), torch.ones(2, 3), norm)
        assert (nothing.lower, nothing.upper, nothing.factor, nothing.exact) == (0.0, 0.0, 0.0, True)
        apart = alignment(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0, 1.0]]), norm)
        assert apart.upper == 0.0  # the first layer's only unit is one that the second does not read


@pytest.mark.parametrize("norm", NORMS)
def test_units_so_weak_that_squares_vanish(norm, monkeypatch):
    monkeypatch.setattr(linf, "MAX_UNITS", 0)
    monkeypatch.setattr(enumeration, "MAX_INPUTS", 0)
    monkeypatch.setattr(l2, "MAX_UNITS", 0)
    first, second = make("random", 4, 4, seed=0), make("random", 4, 4, seed=1)
    first[1], second[:, 1], first[2] = first[1] * 1e-200, second[:, 1] * 1e-200, first[2] * 1e-300
    found, truth = measured(first, second, norm), oracle.masked_norm(first, second, norm)
    assert found.lower <= truth * ROUNDING
    assert truth <= found.upper * ROUNDING <= 2 * truth


@pytest.mark.parametrize("norm", NORMS)
def test_scale_changes_nothing(norm):
    first, second = (torch.from_numpy(make("random", 5, 5, seed=seed)) for seed in (0, 1))
    plain = alignment(first, second, norm, k=2)
    for scale in (1e-300, 1e300):
        scaled = alignment(first * scale, second / scale, norm, k=2)
        assert scaled.upper == pytest.approx(plain.upper, rel=1e-12)
        assert scaled.dominant.upper == pytest.approx(plain.dominant.upper, rel=1e-12)
    huge = masked_norm(first * 1e300, second * 1e300, norm)
    assert math.isfinite(huge.lower)
    assert huge.upper == math.inf


def test_the_same_seed_gives_the_same_numbers():
    first, second = (torch.from_numpy(make("random", 22, 22, seed=seed)) for seed in (0, 1))
    for norm in NORMS:
        assert alignment(first, second, norm, seed=3) == alignment(first, second, norm, seed=3)


def test_what_is_refused():
    first, second = torch.ones(3, 2), torch.ones(4, 3)
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        alignment(first, second, "l1")
    text = (
        "the second layer must take what the first one gives, but got shapes (4, 3) and then (3, 2); "
        "give two adjacent layers, in the order in which they act."
    )
    for call in (alignment, masked_norm):
        with refused(ModelError, text):
            call(second, first, "l2")
    for norm, k, text in (
        ("linf", 0, "k of the first layer must lie in 1 ... 3, but got 0; leave it out to keep everything."),
        ("linf", (3, 5), "k of the second layer must lie in 1 ... 4, but got 5; leave it out to keep everything."),
        ("l2", (3, 1), "k of the first layer must lie in 1 ... 2, but got 3; leave it out to keep everything."),
    ):
        with refused(ModelError, text):
            alignment(first, second, norm, k=k)
    text = (
        "weights must be finite, but got NaN or infinite values; check that training did not diverge before measuring."
    )
    with refused(ModelError, text):
        alignment(torch.full((3, 2), torch.nan), second, "l2")
