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
from pinchpoint.compress import ConstantFrobenius, FrobeniusBall, LowRankLinear, SpectralBall
from pinchpoint.errors import CheckpointError, ConfigError, ModelError


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


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.1, 1.0, 50.0]))
def test_the_frobenius_ball_takes_the_nearest_point(seed, radius):
    torch.manual_seed(seed)
    model = mixed()
    ball, before = FrobeniusBall(model, radius), matrices_of(model)
    ball(model)
    for there, kept in zip(before, matrices_of(model), strict=True):
        np.testing.assert_allclose(kept, there * min(1.0, radius / frobenius(there)), rtol=1e-12, atol=1e-15)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31 - 1), st.sampled_from([0.1, 0.5, 50.0]))
def test_the_spectral_ball_scales_by_the_largest_singular_value(seed, radius):
    """After 100 iterations the estimate is good unless the two largest values are close, and never above."""
    torch.manual_seed(seed)
    model = mixed()
    ball, before = SpectralBall(model, radius), matrices_of(model)
    ball(model)
    for there, kept in zip(before, matrices_of(model), strict=True):
        top = np.linalg.norm(there, 2)
        scale = np.linalg.norm(kept, 2) / top
        assert scale >= min(1.0, radius / top) * (1 - 1e-12)
        assert scale <= min(1.0, radius / top) * 1.02
        np.testing.assert_allclose(kept, there * scale, rtol=1e-10, atol=1e-15)


def test_the_spectral_ball_keeps_up_with_training():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    ball, optimiser = SpectralBall(model, 0.7), torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(60):
        optimiser.zero_grad()
        (-model(torch.rand(16, 20)).square().mean()).backward()
        optimiser.step()
        ball(model)
        tops = [torch.linalg.matrix_norm(layer.weight.detach(), 2).item() for layer in (model[0], model[2])]
        assert max(tops) < 0.7 * (1.02 if step else 1.05)
    assert max(tops) > 0.699


def test_a_layer_of_zeros_is_left_alone_by_balls():
    model = nn.Sequential(nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    for ball in (FrobeniusBall(model, 1.0), SpectralBall(model, 1.0)):
        ball(model)
        assert (model[0].weight == 0).all()


def test_interventions_in_turn():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    keep, ball, other = ConstantFrobenius(model), FrobeniusBall(model, 0.5), SpectralBall(model, 0.1)
    for both in (keep + ball + other, keep + (ball + other), (keep + ball) + other):
        assert both.parts == (keep, ball, other)
    with torch.no_grad():
        model[0].weight.mul_(9.0)
    (keep + ball)(model)
    assert model[0].weight.norm().item() == pytest.approx(0.5, rel=1e-6)


def test_what_interventions_remember():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    both = ConstantFrobenius(model) + SpectralBall(model, 0.4)
    both(model)
    saved = both.state_dict()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    again = ConstantFrobenius(model) + SpectralBall(model, 0.4)
    again.load_state_dict(saved)
    twin = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 2))
    twin.load_state_dict(model.state_dict())
    both(model)
    again(twin)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_balls_that_are_refused():
    model = nn.Sequential(nn.Linear(3, 3))
    for radius in (0.0, -1.0, math.inf, math.nan):
        text = f"the radius of a ball must be positive and finite, but got {radius}; try 1."
        for kind in (FrobeniusBall, SpectralBall):
            with refused(ConfigError, text):
                kind(model, radius)
    with refused(ConfigError, "power iteration takes one step or more, but got 0; use 2."):
        SpectralBall(model, 1.0, steps=0)
    text = "SpectralBall's state must be that of the same layers, but got '0'; resume the same run."
    with refused(CheckpointError, text):
        SpectralBall(model, 1.0).load_state_dict({})
    ball = SpectralBall(model, 1.0)
    nn.init.constant_(model[0].weight, math.nan)
    with refused(ModelError, "weights must be finite, but got NaN or infinite values in '0'; lower the learning rate."):
        ball(model)
