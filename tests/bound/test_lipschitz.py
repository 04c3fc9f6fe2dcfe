"""The bracket: sampled <= ascended <= maximum over masks <= first-order <= fast <= product, and what else must hold."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.matrices import KINDS, make
from oracles.networks import ORDER, largest_over_masks, operator_norm, relu_network
from pinchpoint.bound import encoder, lipschitz, margins, trace
from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError

NORMS = ("linf", "l2")
seeds = st.integers(0, 2**32 - 1)


class Hasty:
    """A clock that says that a million seconds passed since it was last looked at."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1e6
        return self.now


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("budget", [0.0, 0.05, 60.0, math.inf])
@pytest.mark.parametrize("outputs", [4, 70])  # few: whole Jacobians; many: a power iteration
def test_where_predictions_decide_no_clock_does(monkeypatch, norm, budget, outputs):
    """Two calls give the same numbers, however slow the machine."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 30), nn.Tanh(), nn.Linear(30, outputs))
    inputs = torch.rand(3, 12)

    def both():
        whole = lipschitz(net, norm=norm, inputs=inputs, budget_s=budget, steps=7, by_clock=False)
        return replace(whole, seconds=0.0), margins(net, norm=norm, budget_s=budget, steps=7, by_clock=False).upper

    first, theirs = both()
    monkeypatch.setattr("time.perf_counter", Hasty())
    second, again = both()
    assert first == second
    assert torch.equal(theirs, again)
    assert 0.0 < first.lower <= first.upper


def bracket(weights, norm, biases=None):
    """One network, traced once, in the order that theory.md claims."""
    network = trace(relu_network(weights, biases))
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((2, weights[0].shape[1])))
    result = lipschitz(network, norm=norm, inputs=inputs, steps=6, budget_s=60.0)
    most = largest_over_masks(weights, norm)
    assert 0.0 <= result.sampled <= result.lower <= most * (1 + 1e-14)
    for upper in result.uppers.values():
        assert most * (1 - 1e-14) <= upper
    assert result.upper == min(result.uppers.values()) == result.uppers[result.method]
    assert result.uppers["first-order"] <= result.uppers["fast"] * (1 + 1e-12)
    assert result.uppers["fast"] <= result.uppers["product"] * (1 + 1e-12)
    return result


@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.sampled_from(KINDS), min_size=2, max_size=3),
    seeds,
    st.sampled_from([1.0, 1e150, 1e-150]),
    st.booleans(),
    st.sampled_from(NORMS),
)
def test_the_chain_of_bounds(kinds, seed, scale, biased, norm):
    widths = (3, 4, 4, 2)
    weights = [make(kind, widths[i + 1], widths[i], seed + i, scale if i == 0 else 1.0) for i, kind in enumerate(kinds)]
    rng = np.random.default_rng(seed)
    biases = [scale * rng.standard_normal(len(weight)) for weight in weights] if biased else None
    bracket(weights, norm, biases)


@pytest.mark.parametrize("norm", NORMS)
def test_the_chain_of_bounds_of_a_trained_network(trained, norm):
    first, second, head = (trained[place].weight.detach().double().numpy() for place in (1, 3, 5))
    result = bracket([first[:5, 20:30], second[:5, :5], head[:, :5]], norm)
    assert result.lower > 0


@pytest.mark.parametrize("norm", NORMS)
def test_the_trained_network_itself(trained, digits, norm):
    features, _ = encoder(trained)
    result = lipschitz(features, norm=norm, inputs=digits.x_test[:4], steps=20, budget_s=60.0)
    assert 0.0 < result.sampled <= result.lower <= result.upper
    assert result.uppers["first-order"] <= result.uppers["fast"] <= result.uppers["product"]
    assert norm == "linf" or result.uppers["first-order"] < result.uppers["fast"]
    assert (result.norm, len(result.assumptions)) == (norm, 2)
    again = lipschitz(features, norm=norm, inputs=digits.x_test[:4], steps=20, budget_s=60.0)
    assert (again.lower, again.sampled, again.uppers) == (result.lower, result.sampled, result.uppers)


@pytest.mark.parametrize("norm", NORMS)
def test_without_activations_the_bracket_closes(norm):
    matrix = make("random", 5, 7, seed=0)
    result = lipschitz(relu_network([matrix]), norm=norm, inputs=torch.zeros(1, 7), steps=0)
    exact = operator_norm(matrix, norm)
    assert exact * (1 - 1e-9) <= result.lower <= exact <= result.upper <= exact * (1 + 1e-11)


def test_methods_one_by_one():
    weights = [make("random", h, d, seed=h) for d, h in ((3, 4), (4, 5), (5, 2))]
    network = trace(relu_network(weights))
    for norm in NORMS:
        most = largest_over_masks(weights, norm)
        names = ("product", "structure", "alignment", "fast", "first-order") + (
            ("equivalence",) if norm == "linf" else ()
        )
        for name in names:
            result = lipschitz(network, norm=norm, method=name, steps=10, inputs=torch.ones(1, 3))
            assert list(result.uppers) == [name] == [result.method]
            assert result.upper >= most * (1 - 1e-14)
    assert lipschitz(network, norm="l2", method="first-order", budget_s=0.0).upper > 0.0


def test_low_rank_products_are_certified_in_float64():
    """A B in float32 is off by its rounding, which may make a norm taken of it too small."""
    torch.manual_seed(0)
    for _ in range(3):
        layer = LowRankLinear(30, 20, rank=5)
        exact = layer.a.detach().double().numpy() @ layer.b.detach().double().numpy()
        for norm in NORMS:
            found = lipschitz(nn.Sequential(layer), norm=norm, input_shape=(30,), method="product").upper
            assert found >= np.linalg.norm(exact, ORDER[norm]) * (1 - 1e-14)


def test_products_that_underflow_or_meet_zero():
    small, large, zero = (np.full((2, 2), value) for value in (1e-200, 1e200, 0.0))
    assert lipschitz(relu_network([small, small]), norm="l2", steps=0).upper > 0.0
    assert lipschitz(relu_network([zero, large, large]), norm="l2", steps=0).upper == 0.0
    for order in ([large, large, zero], [large, large]):  # the first gives NaN, the other infinity
        with pytest.raises(ModelError, match="finite answers, but got NaN or inf"):
            lipschitz(relu_network(order), norm="l2", steps=0)
    tiny = lipschitz(relu_network([np.full((1, 2), 5e-324)]), norm="l2", steps=0).upper
    assert Fraction(tiny) ** 2 >= 2 * Fraction(5e-324) ** 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_bounded_in_float64(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), LowRankLinear(4, 3, rank=2)).to(dtype)
    for norm in NORMS:
        result = lipschitz(model, norm=norm, inputs=torch.rand(2, 3), steps=0)
        assert 0.0 < result.lower <= result.upper


def test_encoder_and_head_make_the_model(trained, digits):
    features, head = encoder(trained)
    wide = digits.x_test[:1].double()
    torch.testing.assert_close(features(wide.flatten(1)) @ head.T, trace(trained)(wide.flatten(1)))
    tail = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), nn.Identity())
    assert torch.equal(encoder(tail)[1], tail[2][0].weight.double())
    shared = nn.Linear(3, 3)
    features, head = encoder(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared))
    assert [type(node.operation).__name__ for node in features.nodes[1:]] == ["Dense", "Slope", "Dense", "Slope"]
    for norm in NORMS:
        alone = encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))[0]
        assert lipschitz(alone, norm=norm, steps=0).upper == pytest.approx(1.0, rel=1e-13)


def test_attention_is_named():
    layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=8, batch_first=True)
    with pytest.raises(ModelError) as caught:
        lipschitz(layer, norm="l2", input_shape=(3, 4))
    assert "scaled_dot_product_attention in MultiheadAttention at 'self_attn'" in str(caught.value)
    assert "dot-product attention is not globally Lipschitz" in str(caught.value)


def test_what_else_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        lipschitz(model, norm="l1")
    methods = "tightest, product, structure, alignment, fast, first-order, equivalence"
    with refused(ModelError, f"method must be one of {methods}, but got sdp; leave it out for the tightest."):
        lipschitz(model, norm="l2", method="sdp")
    for bad in (-1.0, math.nan):
        with refused(ModelError, f"budget_s must be zero or more seconds, but got {bad}; try 10."):
            lipschitz(model, norm="l2", budget_s=bad)
    text = "the method equivalence must apply to the norm, but got l2; "
    with refused(ModelError, text + "leave method out for the tightest bound that applies."):
        lipschitz(model, norm="l2", method="equivalence")
    text = "a bound needs the shape of one input, but got Conv2d without a fully connected layer in front; "
    with refused(ModelError, text + "give input_shape, for example (3, 32, 32)."):
        lipschitz(nn.Conv2d(1, 1, 3), norm="l2")
    with refused(ModelError, "inputs must be a batch of shape (n, 2), but got (3, 5); reshape them."):
        lipschitz(model, norm="l2", inputs=torch.rand(3, 5), input_shape=(2,))
    text = "an encoder and a head need a last fully connected layer that gives the logits, but got ReLU at '1' at the end; "
    with refused(ModelError, text + "return logits from the model."):
        encoder(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
