"""Scale alone: what changes with it, and what must not."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from pinchpoint.compress import ConstantFrobenius, LowRankLinear, rescale
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure import profile
from pinchpoint.models import ModelConfig, build


@given(st.integers(0, 2**31 - 1), st.integers(0, 3), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_logits_are_multiplied_and_decisions_stay(seed, depth, factor):
    """Powers of two multiply without rounding."""
    model = build(ModelConfig(hidden=(9,) * depth), (12,), 4, seed=seed)
    x = torch.rand(20, 12, generator=torch.Generator().manual_seed(seed))
    before, after = model(x), rescale(model, factor)(x)
    assert torch.equal(after, factor**depth * before)
    assert torch.equal(after.argmax(1), before.argmax(1))
    assert torch.equal(rescale(model, factor, include_head=True)(x), factor ** (depth + 1) * before)


def test_compressibility_stays_and_frobenius_norms_do_not(trained):
    large = rescale(trained, 3.0)
    before, after = profile(trained), profile(large)
    assert after.neuron == pytest.approx(before.neuron, rel=1e-5)
    assert after.spectral == pytest.approx(before.spectral, rel=1e-5)
    factors = [one.frobenius / other.frobenius for one, other in zip(after.layers, before.layers, strict=True)]
    assert factors == pytest.approx([3.0, 3.0, 1.0], rel=1e-6)


def test_the_model_stays_and_each_tensor_is_multiplied_once():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), LowRankLinear(4, 4, rank=2), nn.Linear(4, 2))
    model[2].weight = shared.weight
    before = copy.deepcopy(model.state_dict())
    found = rescale(model, 9.0)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert found[0].weight is found[2].weight
    torch.testing.assert_close(found[0].weight, 9.0 * model[0].weight)
    torch.testing.assert_close(found[4].a, 3.0 * model[4].a)
    torch.testing.assert_close(found[4].weight_matrix(), 9.0 * model[4].weight_matrix())
    for name in ("0.bias", "2.bias", "4.bias", "5.weight", "5.bias"):
        assert torch.equal(found.state_dict()[name], before[name])


def test_running_statistics_would_no_longer_fit():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 3))
    text = (
        "rescaling needs a network without running statistics, but got BatchNorm2d at '1'; take a network without, or "
        "train with constant_frobenius and frobenius_scale."
    )
    with refused(ModelError, text):
        rescale(model, 2.0)
    batchwise = nn.Sequential(model[0], nn.BatchNorm2d(4, track_running_stats=False, eps=1e-12), *model[2:])
    x = torch.rand(8, 3, 5, 5)
    torch.testing.assert_close(rescale(batchwise, 10.0)(x), batchwise(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_constant_norms_at_a_multiple_of_the_first(factor):
    model = build(ModelConfig(hidden=(9, 7)), (12,), 4).double()
    first = [float(model[place].weight.detach().norm()) for place in (1, 3, 5)]
    keep = ConstantFrobenius(model, include_head=False, factor=factor)
    for _ in range(3):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn_like(weight))
        keep(model)
        norms = [float(model[place].weight.detach().norm()) for place in (1, 3, 5)]
        assert norms[:2] == pytest.approx([factor * norm for norm in first[:2]], rel=1e-12)
    resumed = ConstantFrobenius(model, include_head=False, factor=7.0)
    resumed.load_state_dict(keep.state_dict())
    assert resumed.norms == keep.norms


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_mistakes_are_one_sentence(factor):
    text = f"a factor of norms must be positive and finite, but got {factor}; use 1 to leave them as they are."
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    with refused(ConfigError, text):
        rescale(model, factor)
    with refused(ConfigError, text):
        ConstantFrobenius(model, factor=factor)


def test_a_parametrised_layer_is_refused():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    text = (
        "rescaling needs layers that own their weights, but got ParametrizedLinear at '0'; remove the parametrisation."
    )
    with refused(ModelError, text):
        rescale(model, 2.0)
