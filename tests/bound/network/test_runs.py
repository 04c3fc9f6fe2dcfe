"""Runs of linear operations: their matrix is the Jacobian, their norms are certified, scalings disappear into neighbours."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.matrices import KINDS, make
from oracles.networks import operator_norm
from pinchpoint.bound import trace
from pinchpoint.bound.methods.product import items_of
from pinchpoint.bound.network.runs import LARGEST_MATRIX, Run

NORMS = ("linf", "l2")


class Moves(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def norm2d(channels):
    layer = nn.BatchNorm2d(channels)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.01, 3)
    layer.weight.data.normal_()
    return layer.eval()


IMAGE = (2, 4, 4)
MAKERS = {
    "conv bn": (lambda: nn.Sequential(nn.Conv2d(2, 3, 3), norm2d(3)), IMAGE, 1),
    "bn conv": (lambda: nn.Sequential(norm2d(2), nn.Conv2d(2, 3, 3, padding=1)), IMAGE, 1),
    "bn grouped": (lambda: nn.Sequential(norm2d(2), nn.Conv2d(2, 4, 3, groups=2), norm2d(4)), IMAGE, 2),
    "bn transposed bn": (lambda: nn.Sequential(norm2d(2), nn.ConvTranspose2d(2, 3, 2, stride=2), norm2d(3)), IMAGE, 2),
    "scale conv scale": (
        lambda: nn.Sequential(Moves(lambda x: (x - 0.5) / 0.25), nn.Conv2d(2, 3, 3), Moves(lambda x: -2 * x)),
        IMAGE,
        1,
    ),
    "dense bn dense": (
        lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), Moves(lambda x: 3 * x), nn.Linear(4, 3)).eval(),
        (5,),
        2,
    ),
    "conv bn pool flatten dense": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), norm2d(3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(3, 4)),
        IMAGE,
        3,
    ),
    "scale flatten dense": (
        lambda: nn.Sequential(Moves(lambda x: x * torch.arange(2).reshape(1, 2, 1, 1)), nn.Flatten(), nn.Linear(32, 3)),
        IMAGE,
        1,
    ),
    "permuted dense": (
        lambda: nn.Sequential(nn.Flatten(2), Moves(lambda x: x.transpose(1, 2)), nn.Linear(2, 3), nn.Flatten()),
        IMAGE,
        2,
    ),
    "scale per column": (lambda: nn.Sequential(Moves(lambda x: x * torch.arange(4.0)), nn.Conv2d(2, 1, 2)), IMAGE, 2),
    "images as a batch": (
        lambda: nn.Sequential(
            Moves(lambda x: (x * 3).reshape(2, 2, 8)), nn.Conv1d(2, 3, 3), Moves(lambda x: x.reshape(1, -1))
        ),
        (32,),
        2,
    ),
    "without batch": (
        lambda: nn.Sequential(
            Moves(lambda x: (x * torch.arange(2.0)[:, None])[0]), nn.Conv2d(2, 1, 1), Moves(lambda x: x[None])
        ),
        (2, 2, 2),
        3,
    ),
    "reshaped only": (lambda: nn.Sequential(nn.Flatten(), nn.Unflatten(1, (8, 4))), IMAGE, 0),
}


def the_run(model, shape):
    items = items_of(trace(model, shape))
    assert len(items) == 2
    assert isinstance(items[1].part, Run)
    return items[1].part


def jacobian(model, shape):
    start = torch.randn(1, *shape, dtype=torch.float64)
    return torch.func.jacrev(model.double().eval())(start).reshape(-1, math.prod(shape)).detach().numpy()


@pytest.mark.parametrize("name", MAKERS)
def test_the_matrix_is_the_jacobian_and_the_norms_are_above_its(name):
    make_model, shape, parts = MAKERS[name]
    torch.manual_seed(len(name))
    model = make_model().double()
    run, exact = the_run(model, shape), jacobian(model, shape)
    assert (run.rows, run.columns) == exact.shape
    assert len(run.folded) == parts
    matrix = run.matrix
    np.testing.assert_allclose(matrix.entries.numpy(), exact, rtol=1e-12, atol=1e-13)
    assert np.linalg.norm(matrix.entries.numpy() - exact, 2) <= matrix.error + 1e-15 * np.linalg.norm(exact)
    for norm in NORMS:
        low, high = run.norm_bounds(norm)
        truth = operator_norm(exact, norm)
        assert low <= truth * (1 + 1e-14)
        assert truth * (1 - 1e-14) <= high
        assert run.norm(norm) == high
        if parts > 1:  # so small that the matrix decides
            assert high <= truth * (1 + 1e-8)


def test_without_any_scaling_a_single_layer_is_its_own_matrix():
    layer = nn.Linear(5, 3).double()
    run = the_run(nn.Sequential(nn.Flatten(), layer, nn.Identity()), (5,))
    assert run.matrix.error == 0.0
    assert torch.equal(run.matrix.entries, layer.weight)
    assert run.name == "1"


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=1, max_size=3),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1.0, 1e150, 1e-150, 1e-3]),
)
def test_norms_of_products_are_certified_at_every_scale(kinds, seed, scale):
    """A run of layers without anything between them, against NumPy's longdouble."""
    widths = (4, 5, 3, 6)
    weights = [make(kind, widths[i + 1], widths[i], seed + i, scale if i == 0 else 1.0) for i, kind in enumerate(kinds)]
    layers = []
    for weight in weights:
        layers.append(nn.Linear(weight.shape[1], weight.shape[0], bias=False).double())
        layers[-1].weight.data = torch.from_numpy(weight)
    run = the_run(nn.Sequential(*layers), (4,))
    product = weights[0].astype(np.longdouble)
    for weight in weights[1:]:
        product = weight.astype(np.longdouble) @ product
    assert (
        np.linalg.norm(run.matrix.entries.numpy() / scale - (product / scale).astype(float), 2)
        <= run.matrix.error / scale
    )
    for norm in NORMS:
        low, high = run.norm_bounds(norm)
        truth = operator_norm(product.astype(float), norm)
        assert low * (1 - 1e-14) <= truth <= high * (1 + 1e-14)


def test_cancellation_leaves_an_error_that_is_stated():
    """(1e8 + 1) x - 1e8 x, written as two layers: the matrix is off by rounding, and says by how much."""
    first, second = nn.Linear(1, 2, bias=False).double(), nn.Linear(2, 1, bias=False).double()
    first.weight.data = torch.tensor([[1e8 + 0.1], [1e8]], dtype=torch.float64)
    second.weight.data = torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    run = the_run(nn.Sequential(first, second), (1,))
    assert run.matrix.error > 0.0
    for norm in NORMS:
        assert run.norm(norm) >= 0.1


def test_a_run_too_large_to_be_written_out_has_norms_but_no_matrix():
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.AvgPool2d(2))
    run = the_run(model, (2, 64, 64))
    assert run.rows * run.columns > LARGEST_MATRIX
    assert run.matrix is None
    small = the_run(model, (2, 8, 8))
    for norm in NORMS:
        assert run.norm(norm) >= small.norm_bounds(norm)[0] * (1 - 1e-12)


def test_negative_averages_have_positive_norms():
    run = the_run(nn.AvgPool2d(2, divisor_override=-1), (1, 4, 4))
    assert [run.norm(norm) for norm in NORMS] == pytest.approx([4.0, 2.0], rel=1e-12)
