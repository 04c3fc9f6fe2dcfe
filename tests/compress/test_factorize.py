"""Low-rank layers against the matrix they stand for, and truncation against Eckart and Young."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

from oracles.as_user import refused
from oracles.matrices import matrices
from pinchpoint.compress import LowRankLinear, truncate
from pinchpoint.errors import ModelError


def linear_of(matrix, bias=True):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias).double()
    layer.weight.data = torch.from_numpy(matrix)
    return layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_forward_multiplies_with_the_weight_matrix(bias, shape):
    layer = LowRankLinear(5, 4, rank=2, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = x.numpy() @ layer.weight_matrix().detach().numpy().T
    if bias:
        expected = expected + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-14)
    assert np.linalg.matrix_rank(layer.weight_matrix().detach().numpy()) == 2


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_entries_start_with_the_variance_of_a_dense_layer(rank):
    torch.manual_seed(0)
    wide = torch.stack([LowRankLinear(128, 96, rank).weight_matrix() for _ in range(20)]).detach()
    dense = torch.stack([nn.Linear(128, 96).weight for _ in range(20)]).detach()
    assert wide.mean().item() == pytest.approx(0.0, abs=0.05 * dense.std().item())
    assert wide.var().item() == pytest.approx(1 / (3 * 128), rel=0.1)
    assert wide.var().item() == pytest.approx(dense.var().item(), rel=0.1)


def test_bias_starts_as_in_a_dense_layer():
    torch.manual_seed(0)
    bias = LowRankLinear(100, 5000, 1).bias
    assert bias.abs().max() <= 0.1
    assert bias.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.integers(1, 9))
def test_truncation_is_the_best_approximation_of_its_rank(matrix, rank):
    rank = min(rank, *matrix.shape)
    low = truncate(linear_of(matrix), rank).weight_matrix().detach().numpy()
    top = np.abs(matrix).max()
    if top == 0:
        assert (low == 0).all()
        return
    sigma = np.linalg.svd(matrix / top, compute_uv=False)
    # Eckart-Young: the error of the best approximation is the tail of the spectrum; nothing of that rank does better
    error = np.linalg.svd((matrix - low) / top, compute_uv=False)
    assert error[0] == pytest.approx(sigma[rank] if rank < len(sigma) else 0.0, abs=1e-13 * sigma[0])
    assert math.hypot(*error) == pytest.approx(math.hypot(*sigma[rank:]), abs=1e-13 * math.hypot(*sigma))
    assert (np.linalg.svd(low / top, compute_uv=False)[rank:] <= 1e-14 * sigma[0]).all()


def test_truncation_keeps_bias_dtype_and_the_original():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer = nn.Linear(6, 5).to(dtype)
        weight = layer.weight.detach().clone()
        low = truncate(layer, 3)
        assert {parameter.dtype for parameter in low.parameters()} == {dtype}
        assert torch.equal(low.bias, layer.bias)
        assert low.bias is not layer.bias
        assert torch.equal(layer.weight, weight)
        assert (low.in_features, low.out_features, low.rank) == (6, 5, 3)
    assert truncate(nn.Linear(6, 5, bias=False), 3).bias is None


def test_both_factors_have_the_roots_of_the_singular_values():
    matrix = np.random.default_rng(0).standard_normal((5, 6))
    low = truncate(linear_of(matrix), 3)
    sigma = np.linalg.svd(matrix, compute_uv=False)[:3]
    a, b = low.a.detach().numpy(), low.b.detach().numpy()
    np.testing.assert_allclose(a.T @ a, np.diag(sigma), atol=1e-13)
    np.testing.assert_allclose(b @ b.T, np.diag(sigma), atol=1e-13)


def test_truncation_sees_masked_weights_as_they_act():
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(10.0)
    expected = (layer.weight_orig * layer.weight_mask).detach()
    torch.testing.assert_close(truncate(layer, 3).weight_matrix().detach(), expected, rtol=0, atol=1e-5)


def test_repr_says_its_rank():
    assert repr(LowRankLinear(6, 4, 2)) == "LowRankLinear(in_features=6, out_features=4, rank=2)"


def test_what_is_refused():
    for rank in (0, -1, 5):
        text = f"the rank of a 4 x 6 layer lies in 1 ... 4, but got {rank}; choose one in that range."
        with refused(ModelError, text):
            LowRankLinear(6, 4, rank)
        with refused(ModelError, text):
            truncate(nn.Linear(6, 4), rank)
    broken = nn.Linear(3, 3)
    nn.init.constant_(broken.weight, math.nan)
    text = "weights must be finite, but got NaN or infinite values; "
    with refused(ModelError, text + "check that training did not diverge before measuring."):
        truncate(broken, 1)
