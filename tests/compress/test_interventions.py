"""Norms that stay whatever a training step does to the weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from oracles.as_user import refused
from oracles.compressibility import frobenius
from pinchpoint.compress import ConstantFrobenius, LowRankLinear
from pinchpoint.errors import ModelError


def mixed():
    return nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 6), nn.ReLU(), LowRankLinear(6, 5, rank=2), nn.Linear(5, 3)
    ).double()


def matrices_of(model):
    found = [model[0].weight.flatten(1), model[2].weight, model[4].weight_matrix(), model[5].weight]
    return [matrix.detach().numpy().copy() for matrix in found]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([1e-3, 1.0, 1e3]))
def test_norms_stay_and_directions_are_those_of_the_step(seed, size):
    torch.manual_seed(seed)
    model = mixed()
    before = [frobenius(matrix) for matrix in matrices_of(model)]
    keep = ConstantFrobenius(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))
    stepped = matrices_of(model)
    bias = model[2].bias.detach().clone()
    keep(model)
    for norm, there, kept in zip(before, stepped, matrices_of(model), strict=True):
        assert frobenius(kept) == pytest.approx(norm, rel=1e-13)
        np.testing.assert_allclose(kept, there * (norm / frobenius(there)), rtol=1e-12, atol=1e-15 * norm)
    assert torch.equal(model[2].bias, bias)


def test_both_factors_of_a_low_rank_layer_take_the_same_share():
    model = nn.Sequential(LowRankLinear(5, 4, rank=2, bias=False).double())
    keep = ConstantFrobenius(model)
    a, b = model[0].a.detach().clone(), model[0].b.detach().clone()
    with torch.no_grad():
        model[0].a.mul_(9.0)
    keep(model)
    torch.testing.assert_close(model[0].a.detach(), 3.0 * a, rtol=1e-12, atol=0)
    torch.testing.assert_close(model[0].b.detach(), b / 3.0, rtol=1e-12, atol=0)


def test_zero_layers_stay_zero_and_harm_nothing():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    keep = ConstantFrobenius(model)
    keep(model)
    assert (model[0].weight == 0).all()
    nn.init.ones_(model[0].weight)
    keep(model)
    assert (model[0].weight == 0).all()
    nn.init.zeros_(model[1].weight)  # collapsed: there is no direction to rescale
    keep(model)
    assert (model[1].weight == 0).all()


@pytest.mark.parametrize("scale", [1e-170, 1e170])
def test_norms_whose_squares_vanish_or_overflow(scale):
    model = nn.Sequential(nn.Linear(2, 2, bias=False).double())
    nn.init.constant_(model[0].weight, scale)
    keep = ConstantFrobenius(model)
    with torch.no_grad():
        model[0].weight.mul_(3.0)
    keep(model)
    np.testing.assert_allclose(model[0].weight.detach(), np.full((2, 2), scale), rtol=1e-14)


def test_the_head_can_be_left_free():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    norm = model[0].weight.norm().item()
    keep = ConstantFrobenius(model, include_head=False)
    with torch.no_grad():
        for layer in model:
            layer.weight.mul_(5.0)
    head = model[1].weight.detach().clone()
    keep(model)
    assert model[0].weight.norm().item() == pytest.approx(norm, rel=1e-6)
    assert torch.equal(model[1].weight, head)


def test_masked_weights_keep_the_norm_they_act_with():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    norm = model[0].weight.norm().item()
    keep = ConstantFrobenius(model)
    with torch.no_grad():
        model[0].weight_orig.mul_(7.0)
    keep(model)
    model(torch.zeros(1, 6))  # applies the mask anew
    assert model[0].weight.norm().item() == pytest.approx(norm, rel=1e-6)
    assert (model[0].weight == 0).sum() == 15


def test_a_module_with_one_matrix_of_its_own():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(2, 2))

        def weight_matrix(self):
            return self.weight

    model = nn.Sequential(Own())
    keep = ConstantFrobenius(model)
    with torch.no_grad():
        model[0].weight.mul_(9.0)
    keep(model)
    torch.testing.assert_close(model[0].weight.detach(), torch.ones(2, 2))


def test_tied_weights_are_rescaled_once():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    model[2].weight = model[0].weight
    norm = model[0].weight.norm().item()
    keep = ConstantFrobenius(model)
    with torch.no_grad():
        model[0].weight.mul_(4.0)
    keep(model)
    assert model[2].weight.norm().item() == pytest.approx(norm, rel=1e-6)


def test_training_goes_on_after_rescaling():
    model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    keep, optimiser = ConstantFrobenius(model), torch.optim.SGD(model.parameters(), lr=0.5)
    norms = [layer.weight.norm().item() for layer in (model[0], model[2])]
    for _ in range(3):
        optimiser.zero_grad()
        model(torch.rand(8, 4)).square().sum().backward()
        optimiser.step()
        keep(model)
    assert [layer.weight.norm().item() for layer in (model[0], model[2])] == pytest.approx(norms, rel=1e-6)
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())


def test_what_is_refused():
    keep = ConstantFrobenius(nn.Sequential(nn.Linear(3, 3)))
    text = "the model must be the one the norms were taken from, but got layer '1'; make anew."
    with refused(ModelError, text):
        keep(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)))
    rule = "constant Frobenius norms need layers that own their weights"
    text = f"{rule}, but got ParametrizedLinear at '0'; remove the parametrisation."
    with refused(ModelError, text):
        ConstantFrobenius(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))))
    model = nn.Sequential(nn.Linear(3, 3))
    keep = ConstantFrobenius(model)
    nn.init.constant_(model[0].weight, math.nan)
    text = "weights must be finite, but got NaN or infinite values; "
    with refused(ModelError, text + "check that training did not diverge before measuring."):
        keep(model)
