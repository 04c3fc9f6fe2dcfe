"""Which modules become which matrices, and what is said about the others."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from oracles.as_user import refused
from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.measure import layers
from pinchpoint.measure.layers import float64_copy, linear_modules, matrix64, weight_matrix


class Doubled(nn.Module):
    """A parametrisation: acts with twice the weight."""

    def forward(self, weight):
        return 2.0 * weight


def names(model):
    return [layer.name for layer in layers(model)]


def test_linear_and_convolution_as_matrices():
    linear, conv = nn.Linear(6, 4), nn.Conv2d(4, 6, (3, 2), groups=2, bias=False)
    found = layers(nn.Sequential(conv, nn.Flatten(), linear))
    assert [(layer.name, layer.kind, layer.parameters) for layer in found] == [("0", "conv2d", 72), ("2", "linear", 28)]
    filters = np.stack([kernel.detach().double().numpy().ravel() for kernel in conv.weight])
    assert found[0].matrix.shape == (6, 12)
    assert (found[0].matrix.numpy() == filters).all()
    assert found[0].bias is None
    assert torch.equal(found[1].matrix, linear.weight.detach().double())
    assert torch.equal(found[1].bias, linear.bias.detach().double())
    assert not found[1].matrix.requires_grad
    assert found[1].module is linear


def test_encoder_head_and_sequence():
    found = layers(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    assert len(found) == 3
    assert [layer.name for layer in found.encoder] == ["0", "2"]
    assert found.head is found[-1] is found[2]
    assert found[:2] == found.encoder


def test_nested_and_low_rank_layers_have_their_paths():
    inner = nn.Sequential(LowRankLinear(5, 4, rank=2), nn.Sequential(nn.Linear(4, 3)))
    found = layers(nn.ModuleDict({"body": inner, "head": nn.Linear(3, 2)}))
    assert [(layer.name, layer.kind) for layer in found] == [
        ("body.0", "LowRankLinear"),
        ("body.1.0", "linear"),
        ("head", "linear"),
    ]
    assert found[0].parameters == 4 * 2 + 2 * 5 + 4


def test_low_rank_products_are_taken_in_float64():
    torch.manual_seed(0)
    layer = LowRankLinear(40, 30, rank=7)
    expected = layer.a.detach().double().numpy() @ layer.b.detach().double().numpy()
    np.testing.assert_allclose(layers(layer)[0].matrix.numpy(), expected, rtol=1e-12, atol=1e-14)
    half = LowRankLinear(4, 3, rank=2).half()
    expected = half.a.detach().double().numpy() @ half.b.detach().double().numpy()
    np.testing.assert_allclose(layers(half)[0].matrix.numpy(), expected, rtol=1e-12, atol=1e-14)


def test_a_module_that_offers_a_matrix_is_not_looked_into():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 2, bias=False), nn.Linear(2, 3, bias=False)

        def weight_matrix(self):
            return self.second.weight @ self.first.weight

    product = Product()
    found = layers(nn.Sequential(product, nn.Linear(3, 2)))
    assert [(layer.name, layer.kind, layer.parameters) for layer in found] == [("0", "Product", 14), ("1", "linear", 8)]
    assert names(product) == [""]


def test_modules_used_twice_are_listed_once_and_tied_weights_each():
    shared = nn.Linear(3, 3)
    assert names(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(3, 2))) == ["0", "4"]
    tied = nn.Linear(3, 3)
    tied.weight = shared.weight
    assert names(nn.Sequential(shared, tied)) == ["0", "1"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_precision_is_read_exactly(dtype):
    model = nn.Linear(3, 2).to(dtype)
    assert torch.equal(layers(model)[0].matrix, model.weight.detach().double())
    assert layers(model)[0].bias.dtype == torch.float64


def test_frozen_weights_are_measured():
    model = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    assert names(model) == ["0"]


def test_parametrised_weights_are_seen_as_they_act():
    linear = nn.Linear(4, 3)
    plain = linear.weight.detach().double().clone()
    parametrize.register_parametrization(linear, "weight", Doubled())
    found = layers(nn.Sequential(linear, nn.Linear(3, 2)))
    assert [layer.name for layer in found] == ["0", "1"]
    assert torch.equal(found[0].matrix, 2.0 * plain)
    orthogonal = layers(nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4))))[0].matrix
    np.testing.assert_allclose(orthogonal @ orthogonal.T, np.eye(4), atol=1e-6)


def test_parametrised_weights_are_computed_in_float64():
    linear = parametrizations.weight_norm(nn.Linear(6, 5))
    length, direction = (each.detach().double().numpy() for each in linear.parametrizations.weight.parameters())
    expected = length * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    np.testing.assert_allclose(layers(linear)[0].matrix.numpy(), expected, rtol=1e-14)


def test_masks_are_seen_as_they_act_at_the_next_forward_pass():
    linear = nn.Linear(4, 3)
    prune.l1_unstructured(linear, "weight", amount=0.5)
    with torch.no_grad():  # as an optimiser step or load_state_dict does: module.weight is stale now
        linear.weight_orig.mul_(10.0)
    seen = layers(nn.Sequential(linear))[0].matrix
    assert torch.equal(seen, (linear.weight_orig * linear.weight_mask).detach().double())
    linear(torch.zeros(1, 4))
    assert torch.equal(seen, linear.weight.detach().double())
    weight_matrix(linear).sum().backward()
    assert torch.equal(linear.weight_orig.grad, linear.weight_mask)


def test_masks_inside_a_low_rank_layer():
    layer = LowRankLinear(6, 5, rank=3)
    prune.random_unstructured(layer, "a", amount=0.5)
    with torch.no_grad():
        layer.a_orig.mul_(10.0)
    expected = (layer.a_orig * layer.a_mask).double() @ layer.b.double()
    np.testing.assert_allclose(matrix64(layer).numpy(), expected.detach().numpy(), rtol=1e-13, atol=1e-14)


def test_float64_copy_leaves_the_module_alone():
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.Linear(3, 2))
    prune.l1_unstructured(model[0], "weight", amount=0.5)
    weight = model[0].weight
    copied = float64_copy(model)
    assert not copied.training
    assert copied(torch.zeros(1, 4, dtype=torch.float64)).dtype == torch.float64
    assert model.training
    assert model[0].weight is weight
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_what_is_skipped_is_named():
    attention = nn.MultiheadAttention(4, 2)
    found = layers(nn.ModuleList([nn.Linear(4, 4), nn.LayerNorm(4), nn.Conv1d(2, 2, 3), nn.ReLU(), attention]))
    assert [(skipped.name, skipped.kind) for skipped in found.skipped] == [
        ("1", "LayerNorm"),
        ("2", "Conv1d"),
        ("4", "MultiheadAttention"),
    ]
    assert all("are not seen as linear operators yet" in skipped.reason for skipped in found.skipped)


def test_linear_modules_lists_what_has_a_matrix():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), LowRankLinear(8, 4, 2), nn.Linear(4, 2))
    assert [name for name, _ in linear_modules(model)] == ["0", "3", "4"]
    assert weight_matrix(nn.ReLU()) is None
    assert matrix64(nn.ReLU()) is None


def test_what_is_refused():
    rule = "a model must have at least one linear or convolutional layer"
    with refused(ModelError, f"{rule}, but got Sequential; give a network."):
        layers(nn.Sequential(nn.ReLU()))
    for bad in (math.nan, math.inf):
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
        nn.init.constant_(model[1].weight, bad)
        text = "layer '1': weights must be finite, but got NaN or infinite values; "
        with refused(ModelError, text + "check that training did not diverge before measuring."):
            layers(model)
    text = "layer '0': weights must be real floating point numbers, but got torch.complex64; "
    with refused(ModelError, text + "convert the model, e.g. model.float()."):
        layers(nn.Sequential(nn.Linear(2, 2, dtype=torch.complex64)))
    text = "layer '0': a layer's matrix must be two-dimensional and not empty, but got shape (2, 0); "
    with refused(ModelError, text + "look the layer up with pinchpoint.measure.layers.layers(model)."):
        layers(nn.Sequential(nn.Linear(0, 2)))
    text = "layer '0': weights must exist, but got a lazy module without weights; run a batch through the model first."
    with refused(ModelError, text):
        layers(nn.Sequential(nn.LazyLinear(3)))
