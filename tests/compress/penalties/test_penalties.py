"""Values against NumPy, gradients against finite differences and closed forms, and which layers are touched."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.matrices import make, matrices
from pinchpoint.compress import L1, GroupLasso, LowRankLinear, NuclearNorm
from pinchpoint.errors import ConfigError

PENALTIES = (L1, GroupLasso, NuclearNorm)
NAIVE = {
    L1: lambda matrix: np.abs(matrix).sum(),
    GroupLasso: lambda matrix: sum(math.hypot(*row) for row in matrix),
    NuclearNorm: lambda matrix: np.linalg.norm(matrix, "nuc"),
}
kinds = st.sampled_from(PENALTIES)


def gradient(penalty, matrix):
    tensor = torch.from_numpy(matrix).requires_grad_()
    penalty.term(tensor).backward()
    return tensor.grad.numpy()


def model_with(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
    layer.weight.data = torch.from_numpy(matrix)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(len(matrix), 2).double())


@settings(max_examples=100, deadline=None)
@given(matrices(), kinds, st.sampled_from([0.0, 0.5, 3.0]))
def test_values_are_numpys(matrix, kind, strength):
    value = kind(strength)(model_with(matrix)).item()
    assert value == pytest.approx(strength * NAIVE[kind](matrix), rel=1e-13, abs=1e-320)


@settings(max_examples=60, deadline=None)
@given(kinds, st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_gradients_are_central_differences(kind, h, d, seed):
    """At matrices away from the kinks: entries of at least 0.1, singular values of at least 0.5."""
    rng = np.random.default_rng(seed)
    left, _, right = np.linalg.svd(rng.standard_normal((h, d)), full_matrices=False)
    matrix = (left * rng.uniform(0.5, 2.0, size=min(h, d))) @ right
    if kind is L1:
        matrix = np.sign(matrix) * np.maximum(np.abs(matrix), 0.1)
    if kind is NuclearNorm and h != d and np.linalg.svd(matrix, compute_uv=False).min() < 0.5:
        return
    step, expected = 1e-6, np.zeros((h, d))
    for entry in np.ndindex(h, d):
        shift = np.zeros((h, d))
        shift[entry] = step
        expected[entry] = (NAIVE[kind](matrix + shift) - NAIVE[kind](matrix - shift)) / (2 * step)
    np.testing.assert_allclose(gradient(kind(1.0), matrix), expected, atol=1e-7)


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_nuclear_norm_gradient_is_the_polar_factor_of_its_range(matrix):
    """<G, W> = ||W||_*, ||G||_2 <= 1, and G lives in W's row and column space: what a subgradient of least rank is."""
    found = gradient(NuclearNorm(1.0), matrix)
    top = np.abs(matrix).max()
    if top == 0:
        assert (found == 0).all()
        return
    scaled = matrix / top
    left, sigma, right = np.linalg.svd(scaled, full_matrices=False)
    assert (found * scaled).sum() == pytest.approx(sigma.sum(), rel=1e-12)
    assert np.linalg.norm(found, 2) <= 1 + 1e-12
    rank = int((sigma > 1e-9 * sigma[0]).sum())
    if rank == int((sigma > 1e-16 * sigma[0]).sum()) or sigma[rank] < 1e-15 * sigma[0]:
        np.testing.assert_allclose(found, left[:, :rank] @ right[:rank], atol=1e-5)


@settings(max_examples=100, deadline=None)
@given(matrices())
def test_group_lasso_gradient_is_the_unit_row_and_zero_at_zero_rows(matrix):
    found = gradient(GroupLasso(1.0), matrix)
    lengths = np.array([[math.hypot(*row)] for row in matrix])
    np.testing.assert_allclose(
        found, np.divide(matrix, lengths, out=np.zeros_like(matrix), where=lengths > 0), atol=1e-14
    )


@pytest.mark.parametrize("kind", PENALTIES)
def test_gradients_stay_finite_at_zero_and_rank_deficiency(kind):
    for name in ("zero", "zero rows", "rank one", "duplicated rows"):
        assert np.isfinite(gradient(kind(1.0), make(name, 5, 4, seed=0))).all()
    assert (gradient(kind(1.0), np.zeros((3, 2))) == 0).all()


def test_gradients_reach_both_factors_of_a_low_rank_layer():
    layer = LowRankLinear(5, 4, rank=2).double()
    model = nn.Sequential(layer, nn.Linear(4, 2).double())
    NuclearNorm(2.0)(model).backward()
    polar = 2.0 * gradient(NuclearNorm(1.0), layer.weight_matrix().detach().numpy())
    a, b = layer.a.detach().numpy(), layer.b.detach().numpy()
    np.testing.assert_allclose(layer.a.grad.numpy(), polar @ b.T, atol=1e-12)
    np.testing.assert_allclose(layer.b.grad.numpy(), a.T @ polar, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", PENALTIES)
def test_half_precision_weights(kind, dtype):
    matrix = torch.tensor([[3.0, 0.0], [0.0, -4.0]], dtype=dtype, requires_grad=True)
    value = kind(1.0).term(matrix)
    value.backward()
    assert value.item() == 7.0
    np.testing.assert_allclose(matrix.grad.float().numpy(), [[1.0, 0.0], [0.0, -1.0]], atol=1e-3)


def five():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3),
        nn.Conv2d(2, 2, 3),
        nn.Flatten(),
        LowRankLinear(8, 4, rank=2),
        nn.Sequential(nn.Linear(4, 4)),
        nn.Linear(4, 2),
    ).double()


@pytest.mark.parametrize("kind", PENALTIES)
def test_head_and_input_convolution_are_left_out(kind):
    model = five()
    kind(1.0)(model).backward()
    touched = [name for name, parameter in model.named_parameters() if parameter.grad is not None]
    assert touched == ["1.weight", "3.a", "3.b", "4.0.weight"]
    assert kind(0.25).describe(model) == f"{kind.__name__}(0.25) on 1, 3, 4.0"
    assert kind(1e-4, include_head=True).describe(model) == f"{kind.__name__}(0.0001) on 1, 3, 4.0, 5"
    layers = [model[1].weight.flatten(1), model[3].weight_matrix(), model[4][0].weight, model[5].weight]
    expected = [NAIVE[kind](each.detach().numpy()) for each in layers]
    assert kind(2.0)(model).item() == pytest.approx(2.0 * sum(expected[:3]), rel=1e-12)
    assert kind(2.0, include_head=True)(model).item() == pytest.approx(2.0 * sum(expected), rel=1e-12)


def test_a_layer_used_twice_is_penalised_once():
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(3, 2))
    assert L1(1.0)(model).item() == shared.weight.abs().sum().item()


def test_frozen_layers_count_and_get_no_gradient():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].requires_grad_(False)
    value = GroupLasso(1.0)(model)
    value.backward()
    assert value.item() == pytest.approx(sum(model[i].weight.norm(dim=1).sum().item() for i in (0, 1)), rel=1e-6)
    assert model[0].weight.grad is None


def test_sums():
    model = five()
    l1, lasso, nuclear = L1(0.1), GroupLasso(0.2, include_head=True), NuclearNorm(0.3)
    total = l1(model) + lasso(model) + nuclear(model)
    for combined in (l1 + lasso + nuclear, l1 + (lasso + nuclear), (l1 + lasso) + (nuclear + L1(0.0))):
        assert combined(model).item() == pytest.approx(total.item(), rel=1e-14)
        assert combined.parts[:3] == (l1, lasso, nuclear)
    described = (l1 + lasso).describe(model).splitlines()
    assert described == ["L1(0.1) on 1, 3, 4.0", "GroupLasso(0.2) on 1, 3, 4.0, 5"]


def test_what_is_refused():
    for strength in (-1.0, math.nan, math.inf):
        text = f"a penalty's strength must be finite, zero or more, but got {strength}; use 0 for no penalty."
        with refused(ConfigError, text):
            L1(strength)
    remedy = "use include_head=True or a deeper model."
    for model in (nn.Linear(2, 2), nn.Sequential(nn.ReLU()), nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(2, 2))):
        for call in (lambda model=model: NuclearNorm(1.0)(model), lambda model=model: NuclearNorm(1.0).describe(model)):
            with refused(ConfigError, f"NuclearNorm must touch at least one layer, but got none; {remedy}"):
                call()
