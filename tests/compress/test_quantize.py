"""Quantised weights: near, few, stable, against NumPy; and what is left alone."""

from __future__ import annotations

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from oracles.as_user import refused
from oracles.matrices import matrices
from pinchpoint.compress import LowRankConv2d, LowRankLinear, quantize
from pinchpoint.compress.prune import prune
from pinchpoint.compress.quantize import quantized
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.models.build import CifarResNetConfig, ModelConfig, build
from pinchpoint.records import Quantization


def naive(w, bits, per):
    """The nearest value of the grid for each weight, by looking at all of them."""
    n = 2 ** (bits - 1) - 1
    rows = w if per == "channel" else w.reshape(1, -1)
    found = np.empty_like(rows)
    for place, row in enumerate(rows):
        grid = np.abs(row).max() * np.arange(-n, n + 1) / n
        found[place] = grid[np.abs(row[:, None] - grid).argmin(1)]
    return found.reshape(w.shape)


@given(matrices(), st.integers(2, 8), st.sampled_from(["channel", "tensor"]), st.booleans())
def test_near_few_and_stable(w, bits, per, narrow):
    weight = torch.tensor(w)
    if narrow:
        weight = (weight / weight.abs().max().clamp_min(1e-300)).float()
    w = weight.double().numpy()
    found = quantized(weight, bits, per)
    assert torch.equal(quantized(found, bits, per), found)
    rows = w if per == "channel" else w.reshape(1, -1)
    for row, after in zip(rows, found.double().numpy().reshape(rows.shape), strict=True):
        top = np.abs(row).max()
        step = top / (2 ** (bits - 1) - 1)
        rounding = torch.finfo(weight.dtype).eps * top + torch.finfo(weight.dtype).tiny
        assert np.abs(after - row).max() <= step / 2 + rounding
        assert len(np.unique(after)) <= 2**bits - 1
        assert np.abs(after).max() == top
        assert not after[row == 0].any()


@pytest.mark.parametrize("per", ["channel", "tensor"])
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_nearest_value_of_the_grid(bits, per):
    w = np.random.default_rng(bits).normal(size=(7, 30))
    np.testing.assert_allclose(quantized(torch.tensor(w), bits, per).numpy(), naive(w, bits, per), rtol=0, atol=1e-15)


def test_filters_have_a_scale_each_and_more_bits_come_nearer():
    weight = torch.randn(6, 3, 3, 3, dtype=torch.float64) * torch.logspace(0, 3, 6, dtype=torch.float64).reshape(
        -1, 1, 1, 1
    )
    found = quantized(weight, 4)
    np.testing.assert_allclose(
        found.flatten(1).numpy(), naive(weight.flatten(1).numpy(), 4, "channel"), rtol=1e-12, atol=0
    )
    errors = [
        [float((quantized(weight, bits, per) - weight).norm()) for bits in (2, 4, 8, 16)]
        for per in ("channel", "tensor")
    ]
    assert all(fine < coarse / 3 for row in errors for coarse, fine in pairwise(row))
    assert all(channel < tensor for channel, tensor in zip(*errors, strict=True))
    small = weight[0]  # the smallest filter drowns in a scale it shares with the largest
    assert not quantized(weight, 4, "tensor")[0].any()
    assert quantized(weight, 4)[0].abs().max() == small.abs().max()


def small():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        LowRankConv2d(8, 6, 3, rank=4),
        nn.Flatten(),
        nn.ReLU(),
        LowRankLinear(24, 10, rank=3),
        nn.ReLU(),
        nn.Linear(10, 5),
    ).eval()


def test_a_network_is_copied_and_reported():
    model = small()
    before = copy.deepcopy(model.state_dict())
    coarse, report = quantize(model, 3, include_head=False)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    changed = {name for name, value in coarse.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"0.weight", "3.a", "3.b", "6.a", "6.b"}
    assert [(layer.name, layer.parameters) for layer in report.layers] == [("0", 216), ("3", 312), ("6", 102)]
    assert {skip.name: skip.reason for skip in report.left} == {
        "8": "it is the head",
        "1": "only fully connected layers and convolutions are quantised",
    }
    first = report.layers[0]
    assert first.step == pytest.approx(float(before["0.weight"].abs().max()) / 3)
    lost = coarse[0].weight.detach() - before["0.weight"]
    assert first.error == pytest.approx(float(lost.norm() / before["0.weight"].norm()), rel=1e-6)
    assert report == Quantization.model_validate_json(report.model_dump_json())
    again, _ = quantize(coarse, 3, include_head=False)
    assert all(torch.equal(value, coarse.state_dict()[name]) for name, value in again.state_dict().items())
    whole, _ = quantize(model, 3)
    assert not torch.equal(whole[8].weight, model[8].weight)


def test_many_bits_leave_the_answers(trained, digits):
    x = digits.x_test
    errors = [float((quantize(trained, bits)[0](x) - trained(x)).detach().abs().max()) for bits in (2, 8, 16)]
    assert errors[0] > 10 * errors[1] > 100 * errors[2]
    assert (quantize(trained, 8)[0](x).argmax(1) == trained(x).argmax(1)).double().mean() > 0.99


def test_masks_stay_and_what_cannot_be_quantised_is_named():
    masked = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    torch_prune.l1_unstructured(masked[0], "weight", amount=0.5)
    coarse, report = quantize(masked, 4)
    x = torch.rand(4, 6)
    coarse(x)
    assert [layer.name for layer in report.layers] == ["0", "2"]
    assert torch.equal(coarse[0].weight == 0, (masked[0].weight == 0) | (quantized(masked[0].weight_orig, 4) == 0))
    odd = nn.Sequential(
        nn.ConvTranspose1d(2, 3, 2), parametrizations.spectral_norm(nn.Linear(4, 4)), nn.MultiheadAttention(4, 2)
    )
    _, report = quantize(odd, 4)
    assert [layer.name for layer in report.layers] == ["2.out_proj"]
    assert {skip.name: skip.reason for skip in report.left} == {
        "0": "a transposed convolution's weight is no matrix of filters",
        "1": "its weight is computed from others; remove the parametrisation",
        "2": "only fully connected layers and convolutions are quantised",
    }


def test_mistakes_are_one_sentence():
    model = nn.Sequential(nn.Linear(2, 2))
    with refused(ConfigError, "bits must lie in 2 ... 16, but got 1; try 8."):
        quantize(model, 1)
    with refused(ConfigError, "per must be channel or tensor, but got row; use channel."):
        quantize(model, 4, per="row")
    rule = "a model must have a layer that can be quantised"
    with refused(ModelError, f"{rule}, but got none ('0': it is the head); give a network with plain layers."):
        quantize(model, 4, include_head=False)
    with refused(ModelError, f"{rule}, but got none; give a network with plain layers."):
        quantize(nn.Sequential(nn.ReLU()), 4)
    model[0].weight.data[0, 0] = torch.nan
    with refused(ModelError, "weights must be finite, but got NaN or infinite values in '0'; check the training."):
        quantize(model, 4)


# --- the other control: single weights -------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("kind", ["fcn", "cnn"])
def test_unstructured_sparsity(kind, share):
    """The smallest weights go, over the whole network or in each layer; what is left keeps its value."""
    if kind == "fcn":
        model, shape = build(ModelConfig(hidden=(64, 64)), (1, 8, 8), 10), (1, 8, 8)
    else:
        model, shape = build(CifarResNetConfig(depth=8, width=8), (3, 16, 16), 10), (3, 16, 16)
    weights = {name: w.detach() for name, w in model.named_parameters() if w.ndim > 1}
    total = sum(w.numel() for w in weights.values())
    for allocation in ("uniform", "global"):
        found = prune(model, share, input_shape=shape, unit="entries", allocation=allocation)
        after = dict(found.model.named_parameters())
        gone = {name: after[name] == 0 for name in weights}
        assert sum(int(mask.sum()) for mask in gone.values()) == pytest.approx(share * total, abs=len(weights))
        assert found.report.met == pytest.approx(share, abs=len(weights) / total)
        for name, w in weights.items():
            assert torch.equal(after[name][~gone[name]], w[~gone[name]])
            if allocation == "uniform":
                assert int(gone[name].sum()) == pytest.approx(share * w.numel(), abs=1)
                assert w[gone[name]].abs().max() <= w[~gone[name]].abs().min()
        if allocation == "global":
            lost = torch.cat([w[gone[name]].abs() for name, w in weights.items()])
            kept = torch.cat([w[~gone[name]].abs() for name, w in weights.items()])
            assert lost.max() <= kept.min()
        found.model.eval()(torch.rand(2, *shape))
