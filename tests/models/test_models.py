"""Networks as configured: shapes, seeds, normalisation, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.models import ModelConfig, Normalize, build


def shapes(model):
    return [tuple(tensor.shape) for tensor in model.state_dict().values()]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"hidden": ()}, [(3, 12)]),
        ({"hidden": (5,)}, [(5, 12), (3, 5)]),
        ({"hidden": (5, 7, 6), "bias": True}, [(5, 12), (5,), (7, 5), (7,), (6, 7), (6,), (3, 6), (3,)]),
        ({"hidden": (5, 7), "rank": 2}, [(5, 2), (2, 12), (7, 2), (2, 5), (3, 7)]),
        ({"hidden": (4,), "rank": 3, "bias": True}, [(4, 3), (3, 12), (4,), (3, 4), (3,)]),
    ],
)
def test_width_depth_rank_and_bias(options, expected):
    model = build(ModelConfig(**options), (1, 3, 4), 3)
    found = sorted(shapes(model))
    assert found == sorted(expected)
    assert model(torch.rand(2, 1, 3, 4)).shape == (2, 3)
    activations = [module for module in model if isinstance(module, nn.ReLU)]
    assert len(activations) == len(options["hidden"])


def test_forward_against_numpy():
    model = build(ModelConfig(hidden=(5,), bias=True, mean=(0.2, 0.4), std=(0.5, 2.0)), (2, 3, 3), 4, seed=1)
    x = np.random.default_rng(0).uniform(size=(6, 2, 3, 3))
    state = {name: tensor.double().numpy() for name, tensor in model.state_dict().items()}
    w1, b1, w2, b2 = (state[name] for name in ("2.weight", "2.bias", "4.weight", "4.bias"))
    normal = (x - np.array([0.2, 0.4])[:, None, None]) / np.array([0.5, 2.0])[:, None, None]
    expected = np.maximum(normal.reshape(6, -1) @ w1.T + b1, 0) @ w2.T + b2
    np.testing.assert_allclose(model(torch.tensor(x).float()).detach().numpy(), expected, atol=1e-5)


def test_rank_is_that_of_the_product_and_the_head_stays_dense():
    model = build(ModelConfig(hidden=(20, 20), rank=3), (1, 5, 5), 10)
    low = [module for module in model if isinstance(module, LowRankLinear)]
    assert [np.linalg.matrix_rank(module.weight_matrix().detach().numpy()) for module in low] == [3, 3]
    assert isinstance(model[-1], nn.Linear)


def test_seeds():
    config = ModelConfig(hidden=(8,), rank=2, bias=True)
    rng = torch.random.get_rng_state()
    first, again, other = (build(config, (1, 4, 4), 3, seed=seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_normalisation_is_one_over_the_smallest_std_lipschitz():
    layer = Normalize((0.0, 0.1), (0.25, 4.0))
    for norm in ("linf", "l2"):
        assert layer.lipschitz_constant(norm) == pytest.approx(4.0)
    x, step = torch.rand(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    step[0, 0, 0, 0] = 0.01
    assert float((layer(x + step) - layer(x)).norm() / step.norm()) == pytest.approx(4.0, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "shape", "text"),
    [
        ({"hidden": (8, 0)}, (1, 4, 4), r"hidden widths must be one or more, but got \(8, 0\); check model.hidden"),
        ({"hidden": (8,), "rank": 9}, (1, 4, 4), r"the rank of a 8 x 16 layer lies in 1 \.\.\. 8, but got 9; choose"),
        ({"mean": (0.5,)}, (1, 4, 4), "mean and std come together, but got only one of them; give both or none"),
        ({"std": (0.5,)}, (1, 4, 4), "mean and std come together"),
        (
            {"mean": (0.5, 0.5), "std": (1.0, 1.0)},
            (3, 4, 4),
            "mean needs one value or one a channel, but got 2; give 3",
        ),
        ({"mean": (0.5,), "std": (0.0,)}, (1, 4, 4), "equal lengths and every std must be positive"),
        ({"mean": (0.5,), "std": (math.nan,)}, (1, 4, 4), "equal lengths and every std must be positive"),
        ({"mean": (0.5,), "std": (1.0, 1.0)}, (1, 4, 4), "equal lengths and every std must be positive"),
        (
            {"mean": (0.5,), "std": (1.0,)},
            (16,),
            r"mean and std need images .*, but got \(16,\); leave mean and std out",
        ),
    ],
)
def test_networks_that_make_no_sense(options, shape, text):
    with pytest.raises(ModelError, match=text):
        build(ModelConfig(**options), shape, 3)


def test_one_class_is_none():
    with pytest.raises(ModelError, match=r"a model needs two classes or more, but got 1; check the data"):
        build(ModelConfig(hidden=(8,)), (1, 4, 4), 1)


@pytest.mark.parametrize("options", [{"name": "resnet"}, {"rank": 0}, {"width": 3}, {"hidden": ("wide",)}])
def test_configurations_are_validated(options):
    with pytest.raises(ValidationError):
        ModelConfig(**options)
