"""Norms of convolutions against the dense matrix of the module itself."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.compressibility import row_norms, singular_values
from oracles.convolutions import jacobian, modules
from pinchpoint.errors import ModelError
from pinchpoint.measure.convolution import norms
from pinchpoint.measure.convolution.gram import SlicedGram
from pinchpoint.measure.convolution.norms import convolution_l2, convolution_linf
from pinchpoint.measure.convolution.operator import Convolution, convolution
from pinchpoint.measure.convolution.symbol import group_norms, largest_norm, symbol_norm, tori


@pytest.fixture
def _no_small_matrices(monkeypatch):
    """Tori and Cholesky factors have to do it all."""
    monkeypatch.setattr(norms, "_MATRIX_SIDE", 0)


def _l2(module, op) -> float:
    return float(singular_values(jacobian(module, op.input_shape))[0])


@given(modules())
def test_linf_is_the_largest_row_sum(made):
    module, size = made
    op = convolution(module, size)
    bounds, true = convolution_linf(op), row_norms(jacobian(module, op.input_shape)).max()
    assert bounds.lower <= true <= bounds.upper <= bounds.lower * (1 + 1e-11)


@given(modules())
def test_l2_of_small_operators_is_exact(made):
    module, size = made
    op = convolution(module, size)
    bounds, true = convolution_l2(op), _l2(module, op)
    assert bounds.lower <= true * (1 + 1e-13)
    assert true <= bounds.upper * (1 + 1e-13)  # the oracle rounds too
    assert bounds.upper <= (1 + 1e-9) * bounds.lower + 1e-140 * float(op.weight.abs().max())


@pytest.mark.usefixtures("_no_small_matrices")
class TestLargeRoutes:
    """What large operators take, on operators small enough to check."""

    @given(modules(), st.booleans())
    def test_l2_lies_between_its_bounds(self, made, refine):
        module, size = made
        op = convolution(module, size)
        bounds, true = convolution_l2(op, refine=refine), _l2(module, op)
        assert bounds.lower <= true * (1 + 1e-13)
        assert true <= bounds.upper * (1 + 1e-13)

    @given(modules())
    def test_refined_bounds_reach_the_tolerance_where_the_lower_bound_has_converged(self, made):
        module, size = made
        op = convolution(module, size)
        bounds, true = convolution_l2(op), _l2(module, op)
        if bounds.lower >= 0.999 * true:
            assert bounds.upper <= 1.01 * (1 + 1e-9) * bounds.lower + 1e-140 * float(op.weight.abs().max())


@given(modules())
def test_every_torus_bounds_the_operator(made):
    module, size = made
    op = convolution(module, size)
    top = float(op.weight.abs().max())
    if top == 0.0:
        return
    true = _l2(module, op) / top
    direct = replace(op.direct, weight=op.direct.weight / top)
    for torus in tori(direct):
        assert symbol_norm(direct, torus) >= true * (1 - 1e-13) - 1e-150


@given(modules())
def test_every_group_is_bounded(made):
    module, size = made
    op = convolution(module, size).direct
    blocks = op.blocks()
    for torus in tori(op):
        for found, block in zip(group_norms(op, torus).tolist(), blocks, strict=True):
            assert found >= float(singular_values(block.numpy())[0]) * (1 - 1e-13) - 1e-150


@pytest.mark.usefixtures("_no_small_matrices")
@pytest.mark.parametrize("large", [1.0, 1.2, 5.0])
@pytest.mark.parametrize("per_group", [1, 2])
def test_groups_of_small_norms_are_left_out_of_the_factor(monkeypatch, large, per_group):
    """Only groups that may exceed the bound are certified by a Cholesky factor, and the bound holds for all of them."""
    torch.manual_seed(0)
    module = nn.Conv2d(6 * per_group, 6 * per_group, 5, padding=2, groups=6, bias=False)
    module.weight.data[:per_group] *= large
    op = convolution(module, (9, 9))
    groups = []
    upper = SlicedGram.upper
    monkeypatch.setattr(SlicedGram, "upper", lambda gram, bound: groups.append(gram.conv.groups) or upper(gram, bound))
    bounds = convolution_l2(op, tolerance=0.001)
    true = max(float(singular_values(block.numpy())[0]) for block in op.blocks())
    assert bounds.lower <= true * (1 + 1e-13)
    assert true <= bounds.upper * (1 + 1e-13)
    assert bounds.upper <= 1.001 * (1 + 1e-9) * bounds.lower
    assert groups
    assert max(groups) < 6 or large == 1.0


@given(modules(), st.floats(0.2, 2.0))
def test_a_certificate_is_given_for_upper_bounds_only(made, factor):
    module, size = made
    op = convolution(module, size)
    top = float(op.weight.abs().max())
    true = _l2(module, op) / top if top > 0 else 0.0
    if true < 1e-100:
        return
    direct = replace(op.direct, weight=op.direct.weight / top)
    certified = SlicedGram(direct).upper(factor * true)
    if factor > 1 + 1e-6:
        assert certified == pytest.approx(factor * true, rel=1e-9)
    if certified is not None:
        assert certified >= true * (1 - 1e-13)


def test_blur_meets_its_closed_form():
    """[1, 1, 1] with zero padding is a tridiagonal Toeplitz matrix; its twisted torus knows the norm exactly."""
    for size in (3, 10, 1000):
        blur = Convolution(torch.ones(1, 1, 3, dtype=torch.float64), (size,), (1,), (1,), ((1, 1),))
        true = 1 + 2 * math.cos(math.pi / (size + 1))
        twisted = next(torus for torus in tori(blur) if torus.twist == (1,))
        assert true <= symbol_norm(blur, twisted, slack=1e-10) * (1 + 1e-15) <= true * (1 + 1e-9)


def test_a_circular_convolution_is_its_torus():
    weight = torch.randn(4, 3, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    op = Convolution(weight, (6, 4), (2, 1), (1, 1), ((1, 1), (1, 1)), padding_mode="circular")
    (torus,) = tori(op)
    true = float(torch.linalg.matrix_norm(op.dense(), 2))
    assert true <= symbol_norm(op, torus, slack=1e-8) <= true * (1 + 1e-7)


def test_depthwise_and_pointwise_norms_are_exact():
    depthwise = nn.Conv2d(64, 64, 1, groups=64, bias=False)
    bounds = convolution_l2(convolution(depthwise, (14, 14)))
    assert bounds.lower == pytest.approx(float(depthwise.weight.detach().abs().max()), rel=1e-12)
    pointwise = nn.Conv2d(300, 200, 1, stride=2, bias=False)
    true = float(torch.linalg.matrix_norm(pointwise.weight.detach().double().flatten(1), 2))
    bounds = convolution_l2(convolution(pointwise, (14, 14)))
    assert bounds.lower <= true * (1 + 1e-13)
    assert true <= bounds.upper * (1 + 1e-13)
    assert bounds.upper <= 1.01 * bounds.lower


@pytest.mark.parametrize(("size", "stride"), [(32, 1), (32, 2), (8, 1), (7, 2)])
def test_layers_of_a_network_are_bracketed_to_one_percent(size, stride):
    torch.manual_seed(0)
    module = nn.Conv2d(16, 24, 3, stride=stride, padding=1, bias=False)
    bounds = convolution_l2(convolution(module, (size, size)))
    assert bounds.lower <= bounds.upper <= 1.01 * bounds.lower * (1 + 1e-9)


def test_the_matricised_kernel_is_another_number():
    torch.manual_seed(0)
    module = nn.Conv2d(4, 4, 3, padding=1, bias=False)
    matricised = float(torch.linalg.matrix_norm(module.weight.detach().double().flatten(1), 2))
    assert convolution_l2(convolution(module, (16, 16))).lower > 1.2 * matricised


@given(st.integers(1, 6), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_the_largest_norm_of_a_batch(batch, h, d, seed, share):
    made = np.random.default_rng(seed).standard_normal((batch, h, d)) * np.logspace(0, -2, batch)[:, None, None]
    true = max(singular_values(matrix)[0] for matrix in made)
    value, upper = largest_norm(torch.from_numpy(made), at_least=share * true)
    assert share * true * (1 - 1e-15) <= value <= true * (1 + 1e-12)
    assert true <= upper <= true * (1 + 1.1e-4)


def test_a_tolerance_must_be_positive():
    op = Convolution(torch.ones(1, 1, 1, dtype=torch.float64), (2,), (1,), (1,), ((0, 0),))
    with refused(ModelError, "tolerance must be positive, but got 0.0; give for example 0.01."):
        convolution_l2(op, tolerance=0.0)
