"""Convolutions as operators, against the modules they come from and against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from oracles.as_user import refused
from oracles.convolutions import by_hand, jacobian, modules
from pinchpoint.errors import ModelError
from pinchpoint.measure.convolution.operator import Convolution, convolution


@given(modules())
def test_an_operator_is_what_its_module_does(made):
    module, size = made
    op = convolution(module, size)
    true = jacobian(module, op.input_shape)
    top = max(np.abs(true).max(), 1e-300)
    assert np.array_equal(op.dense().numpy(), true) or np.abs(op.dense().numpy() - true).max() <= 1e-15 * top
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, true.shape[1])), rng.standard_normal((2, true.shape[0]))
    applied = op.apply(torch.from_numpy(x).view(2, *op.input_shape))
    assert applied.shape == (2, *op.output_shape)
    np.testing.assert_allclose(applied.flatten(1).numpy() / top, x @ true.T / top, rtol=0, atol=1e-12)
    back = op.adjoint(torch.from_numpy(y).view(2, *op.output_shape))
    assert back.shape == (2, *op.input_shape)
    np.testing.assert_allclose(back.flatten(1).numpy() / top, y @ true / top, rtol=0, atol=1e-12)


@given(modules())
def test_the_adjoint_identity_holds(made):
    op = convolution(*made)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, *op.input_shape, generator=generator, dtype=torch.float64)
    y = torch.randn(1, *op.output_shape, generator=generator, dtype=torch.float64)
    top = float(op.weight.abs().max())
    left, right = float((op.apply(x) * y).sum()), float((x * op.adjoint(y)).sum())
    assert left == pytest.approx(right, rel=1e-9, abs=1e-11 * top)


@given(
    taps=st.integers(1, 4),
    size=st.integers(1, 9),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 3),
    padding=st.integers(0, 5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_matrix_agrees_with_the_definition(taps, size, stride, dilation, padding, seed):
    if size + 2 * padding < dilation * (taps - 1) + 1:
        return
    weight = np.random.default_rng(seed).standard_normal((3, 2, taps))
    op = Convolution(torch.from_numpy(weight), (size,), (stride,), (dilation,), ((padding, padding),))
    assert np.array_equal(op.dense().numpy(), by_hand(weight, size, stride, dilation, padding))


def test_padding_may_differ_before_and_after():
    weight = torch.randn(2, 3, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    op = Convolution(weight, (5, 4), (2, 1), (1, 2), ((2, 0), (0, 3)))
    padded = nn.Sequential(nn.ZeroPad2d((0, 3, 2, 0)), nn.Conv2d(3, 2, (3, 2), (2, 1), 0, (1, 2), bias=False))
    padded[1].weight.data = weight
    assert np.array_equal(op.dense().numpy(), jacobian(padded, (3, 5, 4)))


def test_weights_are_seen_as_they_act():
    pruned = nn.Conv2d(2, 3, 3, bias=False)
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    scaled = parametrizations.weight_norm(nn.Conv2d(2, 3, 3, bias=False))
    for module in (pruned, scaled):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(2)  # as a step of an optimiser would
        op = convolution(module, (4, 4))
        np.testing.assert_allclose(op.dense().numpy(), jacobian(module, (2, 4, 4)), rtol=0, atol=1e-7)
    assert int((convolution(pruned, (4, 4)).weight == 0).sum()) == 27


@pytest.mark.parametrize(
    ("module", "size", "text"),
    [
        (
            nn.Linear(2, 2),
            (4,),
            "a convolution must be nn.Conv1d, 2d, 3d or nn.ConvTranspose1d, 2d, 3d, but got Linear; "
            "give one of these layers.",
        ),
        (
            nn.Conv2d(1, 1, 3),
            None,
            "a convolution is a linear operator only on inputs of a known size, but got no input size; "
            "give the spatial size of what the layer sees, for example (32, 32).",
        ),
        (
            nn.Conv2d(1, 1, 3),
            (4,),
            "the input size of this convolution must be 2 positive number(s), but got (4,); "
            "give the spatial size of what the layer sees, for example (32, 32).",
        ),
        (
            nn.Conv2d(1, 1, 3),
            (4, 2),
            "the padded input must be at least as large as the kernel (3, 3) with dilation (1, 1), "
            "but got input size (4, 2) with padding ((0, 0), (0, 0)); give a larger input size.",
        ),
        (
            nn.Conv1d(1, 1, 3, padding=2, padding_mode="reflect"),
            (2,),
            "reflect padding must be smaller than the input, but got input size (2,) with padding ((2, 2),); "
            "give a larger input size.",
        ),
        (
            nn.Conv1d(1, 1, 5, padding=3, padding_mode="circular"),
            (2,),
            "circular padding must be at most the input, but got input size (2,) with padding ((3, 3),); "
            "give a larger input size.",
        ),
        (
            nn.LazyConv2d(1, 3),
            (4, 4),
            "weights must exist, but got a lazy module without weights; run a batch through the model first.",
        ),
        (
            nn.Conv1d(1, 1, 3, dtype=torch.complex64),
            (4,),
            "weights must be real floating point numbers, but got torch.complex64; convert the model, e.g. model.float().",
        ),
    ],
)
def test_what_is_no_operator_is_refused(module, size, text):
    with refused(ModelError, text):
        convolution(module, size)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_must_be_finite(value):
    module = nn.Conv2d(1, 1, 3)
    module.weight.data[0, 0, 1, 1] = value
    text = (
        "weights must be finite, but got NaN or infinite values; check that training did not diverge before measuring."
    )
    with refused(ModelError, text):
        convolution(module, (4, 4))


def test_integer_weights_are_refused():
    module = nn.Conv1d(1, 1, 3)
    module.weight = nn.Parameter(torch.ones(1, 1, 3, dtype=torch.int64), requires_grad=False)
    with refused(
        ModelError,
        "weights must be real floating point numbers, but got torch.int64; convert the model, e.g. model.float().",
    ):
        convolution(module, (4,))
