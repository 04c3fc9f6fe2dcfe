"""The record of a whole model against the definitions, layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from oracles import compressibility as oracle
from oracles.as_user import refused
from oracles.matrices import KINDS, SCALES, make
from pinchpoint.errors import ModelError
from pinchpoint.measure import profile


def linear(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
    layer.weight.data = torch.from_numpy(matrix)
    return layer


def check_view(view, theta, k_share, target, q):
    n, k = len(theta), math.ceil(k_share * len(theta))
    assert (view.n, view.k, view.q, view.target) == (n, k, q, target)
    assert view.residual == pytest.approx(oracle.residual(theta, k, q), rel=1e-10, abs=1e-12)
    assert view.spread == pytest.approx(oracle.spread(theta, k), rel=1e-10, abs=1e-12)
    assert view.ranks == list(range(1, n + 1))
    shares = np.sort(theta)[::-1] / theta.sum() if theta.sum() > 0 else theta
    assert view.values == pytest.approx(shares.tolist(), rel=1e-10, abs=1e-12)
    found = view.k_for_target
    assert oracle.residual(theta, found, q) <= target + 1e-12
    assert found == 1 or oracle.residual(theta, found - 1, q) > target - 1e-12


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [1.0, 2.0])
def test_a_layer_is_profiled_by_the_definitions(kind, scale, q):
    matrix = make(kind, 12, 8, seed=3, scale=scale)
    layer = profile(nn.Sequential(linear(matrix)), k_share=0.25, target=0.2, q=q).layers[0]
    sigma, nu = oracle.singular_values(matrix), oracle.row_norms(matrix)
    assert (layer.rows, layer.columns, layer.parameters, layer.kind) == (12, 8, 96, "linear")
    assert layer.frobenius == pytest.approx(oracle.frobenius(matrix), rel=1e-13)
    assert layer.matrix_linf == pytest.approx(nu.max(), rel=1e-13)
    assert layer.matrix_l2 == pytest.approx(sigma.max(), rel=1e-13)
    if kind == "zero":
        assert layer.effective_rank == layer.stable_rank == 0.0
    else:
        assert layer.stable_rank == pytest.approx(((sigma / sigma.max()) ** 2).sum(), rel=1e-12)
        assert 1.0 - 1e-9 <= layer.stable_rank <= layer.effective_rank * (1 + 1e-9) <= 8 * (1 + 1e-8)
    check_view(layer.neuron, nu, 0.25, 0.2, q)
    check_view(layer.spectral, sigma, 0.25, 0.2, q)


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_frobenius_norm_where_squares_vanish_or_overflow(scale):
    layer = profile(linear(np.array([[3.0, 0.0], [0.0, 4.0]]) * scale)).layers[0]
    assert layer.frobenius == pytest.approx(5 * scale, rel=1e-14)


def test_the_network_is_the_mean_over_the_encoder():
    even, rank_one, head = make("orthogonal", 4, 4, 0), make("rank one", 4, 4, 0), make("random", 2, 4, 0)
    record = profile(nn.Sequential(linear(even), nn.ReLU(), linear(rank_one), nn.ReLU(), linear(head)), k_share=0.25)
    assert record.spectral == pytest.approx((0.25 + 1.0) / 2, abs=1e-12)
    assert record.neuron == pytest.approx(
        np.mean([1 - oracle.residual(oracle.row_norms(each), 1) for each in (even, rank_one)]), rel=1e-12
    )
    assert profile(linear(even), k_share=0.25).spectral == pytest.approx(0.25, abs=1e-12)


def test_values_of_wide_layers_are_thinned_out_evenly():
    matrix = np.arange(1000.0, 0.0, -1.0)[:, None]
    view = profile(linear(matrix)).layers[0].neuron
    assert len(view.values) == len(view.ranks) == 256
    assert (view.ranks[0], view.ranks[-1]) == (1, 1000)
    assert set(np.diff(view.ranks)) <= {3, 4}
    assert view.values == pytest.approx([(1001 - rank) / 500500 for rank in view.ranks], rel=1e-12)


def test_k_is_the_ceiling_of_the_exact_share():
    layer = linear(make("random", 100, 100, 0))
    assert [profile(layer, k_share=share).layers[0].neuron.k for share in (0.001, 0.07, 0.28, 0.55, 1.0)] == [
        1,
        7,
        28,
        55,
        100,
    ]


def test_the_trained_network(trained):
    record = profile(trained)
    weights = [module.weight.detach().double().numpy() for module in trained if isinstance(module, nn.Linear)]
    assert len(record.layers) == len(weights) == 3
    for layer, matrix in zip(record.layers, weights, strict=True):
        check_view(layer.neuron, oracle.row_norms(matrix), 0.1, 0.1, 1.0)
        check_view(layer.spectral, oracle.singular_values(matrix), 0.1, 0.1, 1.0)
    assert [row["spectral_k"] for row in record.rows()] == [7, 7, 1]
    assert all("neuron_values" not in row for row in record.rows())


def test_what_is_skipped_stands_in_the_record():
    record = profile(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    assert [(skipped.name, skipped.kind) for skipped in record.skipped] == [("1", "LayerNorm")]


def test_what_is_refused():
    for share in (0.0, -0.1, 1.01, math.nan):
        with refused(ModelError, f"k_share lies in (0, 1], but got {share}; try 0.1."):
            profile(nn.Linear(2, 2), k_share=share)
    with refused(ModelError, "a target residual lies in [0, 1], but got 2.0; try 0.1."):
        profile(nn.Linear(2, 2), target=2.0)
