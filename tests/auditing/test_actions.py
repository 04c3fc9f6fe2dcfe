"""Clipping against NumPy's SVD and whole operators' norms; every kind of layer written and nothing else touched."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinchpoint.auditing.actions import apply, clipped, raised
from pinchpoint.compress import LowRankConv2d, LowRankLinear
from pinchpoint.compress.prune import prune
from pinchpoint.errors import ConfigError, ModelError
from pinchpoint.measure import layers
from pinchpoint.measure.convolution.operator import convolution


def matrix_of(model, name):
    return next(layer for layer in layers(model) if layer.name == name).matrix.numpy()


@given(
    st.integers(1, 6),
    st.integers(1, 6),
    st.sampled_from([1, 2, 3]),
    st.floats(0.2, 5),
    st.booleans(),
    st.integers(0, 99),
)
def test_clipping_never_raises_the_norm(rows, columns, groups, factor, keep, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(groups * rows, columns)) * rng.choice([0.0, 1.0, 30.0], size=(groups * rows, 1))
    result = clipped(torch.tensor(matrix), factor, groups, keep).numpy()
    blocks = [np.linalg.svd(block, full_matrices=False) for block in np.split(matrix, groups)]
    sigma = np.concatenate([block[1] for block in blocks])
    present = sigma[sigma > 1e-6 * sigma.max(initial=0)]
    if len(present) == 0:
        assert (result == matrix).all()
        return
    limit = factor * np.median(present)
    expected = np.concatenate([u * np.minimum(s, limit) @ vh for u, s, vh in blocks])
    if keep:
        expected *= np.linalg.norm(matrix) / np.linalg.norm(expected)
        assert np.linalg.norm(result) == pytest.approx(np.linalg.norm(matrix))
    np.testing.assert_allclose(result, expected, atol=1e-9 * np.abs(matrix).max())
    before, after = (max(np.linalg.norm(block, 2) for block in np.split(one, groups)) for one in (matrix, result))
    assert after <= before * (1 + 1e-12)


CONVOLUTIONS = [
    nn.Conv2d(3, 6, 3, padding=1),
    nn.Conv2d(4, 6, 3, stride=2, groups=2),
    nn.Conv2d(5, 5, 3, padding=1, groups=5),
    nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"),
    nn.Conv1d(3, 6, 2, dilation=2),
    nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
]


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("conv", CONVOLUTIONS, ids=str)
def test_clipping_never_raises_the_norm_of_a_convolution(conv, factor):
    model = nn.Sequential(copy.deepcopy(conv)).double()
    model[0].weight.data.normal_().mul_(torch.linspace(0.1, 3, conv.weight.shape[-1]))
    size = (5,) * (conv.weight.ndim - 2)
    changed = apply(model, {"kind": "clip", "layer": "0", "factor": factor, "keep_frobenius": False})
    before, after = (np.linalg.norm(convolution(one[0], size).dense().numpy(), 2) for one in (model, changed))
    assert after <= before * (1 + 1e-9)
    assert after < 0.999 * before or factor > 1


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(4, 12), nn.Linear(4, 4)
        self.other = nn.MultiheadAttention(4, 2)
        self.wide = nn.MultiheadAttention(4, 2, kdim=6, vdim=5)


LAYERS = {
    "0": nn.Linear(7, 5),
    "q": Attention(),
    "k": Attention(),
    "v": Attention(),
    "out": Attention(),
    "other.k": Attention(),
    "other.out": Attention(),
    "wide.v": Attention(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_only_the_layer_named_changes(name):
    model = (nn.Sequential(LAYERS[name]) if name == "0" else LAYERS[name]).double()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    before = {layer.name: layer.matrix.clone() for layer in layers(model)}
    changed = apply(model, {"kind": "clip", "layer": name, "factor": 0.5, "keep_frobenius": False})
    for other, matrix in before.items():
        assert torch.equal(next(layer.matrix for layer in layers(model) if layer.name == other), matrix)
        if other != name:
            np.testing.assert_array_equal(matrix_of(changed, other), matrix.numpy())
    np.testing.assert_allclose(matrix_of(changed, name), clipped(before[name], 0.5, keep_frobenius=False), atol=1e-12)


def test_layers_of_low_rank_get_a_floor():
    torch.manual_seed(1)
    model = nn.Sequential(LowRankConv2d(2, 8, 3, rank=2), nn.Flatten(), LowRankLinear(8, 6, rank=2)).double()
    for name, rank in (("0", 5), ("2", 4)):
        changed = apply(model, {"kind": "rank floor", "layer": name, "rank": rank})
        old, new = (np.linalg.svd(matrix_of(one, name))[1] for one in (model, changed))
        assert (np.linalg.matrix_rank(matrix_of(changed, name)), changed[int(name)].rank) == (rank, rank)
        floor = np.concatenate([old[:2], [np.sort(old[:2])[0]] * (rank - 2)])  # torch's median of two is the lower
        np.testing.assert_allclose(new[:rank], floor * np.linalg.norm(old) / np.linalg.norm(floor), rtol=1e-9)
        assert changed(torch.rand(1, 2, 3, 3, dtype=torch.float64)).shape == (1, 6)


def test_a_rank_that_is_there_is_left():
    matrix = torch.eye(3, dtype=torch.float64)
    assert torch.equal(raised(matrix, 2), matrix)
    with pytest.raises(ConfigError, match="the rank of a 3 x 3 layer is at most 3, but got 4; lower it"):
        raised(matrix, 4)


def test_frobenius_ball():
    model = nn.Sequential(nn.Linear(3, 2))
    weight = model[0].weight.detach().clone()
    size = float(weight.norm())
    inside = apply(model, {"kind": "frobenius ball", "layer": "0", "radius": 2 * size})
    assert torch.equal(inside[0].weight, weight)
    smaller = apply(model, {"kind": "frobenius ball", "layer": "0", "radius": size / 4})
    torch.testing.assert_close(smaller[0].weight, weight / 4)


def test_pruning_is_that_of_compress():
    model = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 3))
    changed = apply(
        model, {"kind": "prune", "ratio": 0.5, "unit": "rows", "allocation": "residual", "input_shape": [8]}
    )
    expected = prune(model, 0.5, input_shape=(8,), unit="rows", allocation="residual").model
    for one, other in zip(changed.parameters(), expected.parameters(), strict=True):
        assert torch.equal(one, other)


def test_leaving_is_a_copy():
    model = nn.Sequential(nn.Linear(3, 2))
    left = apply(model, {"kind": "leave"})
    assert left[0].weight is not model[0].weight
    assert torch.equal(left[0].weight, model[0].weight)


@pytest.mark.parametrize(
    ("action", "said"),
    [
        (
            {"kind": "burn"},
            "an action's kind is one of clip, rank floor, frobenius ball, prune, leave, but got burn; take",
        ),
        ({"kind": "clip", "layer": "0"}, "the action 'clip' needs layer, factor, but got"),
        (
            {"kind": "clip", "layer": "0", "factor": -1},
            "the factor of the action 'clip' must be positive and finite, but got -1",
        ),
        (
            {"kind": "clip", "layer": "7", "factor": 2},
            "an action names a layer of the model, but got 7; see pinchpoint profile",
        ),
    ],
)
def test_actions_that_make_no_sense(action, said):
    with pytest.raises((ConfigError, ModelError), match=said):
        apply(nn.Sequential(nn.Linear(3, 2)), action)


def test_a_layer_that_computes_its_weights_is_refused():
    model = nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)))
    with pytest.raises(ModelError, match="a change needs a layer that owns its weights, but got 0; remove the param"):
        apply(model, {"kind": "clip", "layer": "0", "factor": 0.5})
