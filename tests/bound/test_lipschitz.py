"""Certified constants against enumeration of ReLU masks, random pairs, and everything that could make them wrong."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, prune

from oracles.as_user import refused
from oracles.matrices import KINDS, make
from oracles.networks import ORDER, largest_over_masks
from pinchpoint.bound import encoder, lipschitz
from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.learn import ModelConfig, build
from pinchpoint.learn.models import Normalize

NORMS = ("linf", "l2")
seeds = st.integers(0, 2**32 - 1)
EDGES = "a Lipschitz bound needs a chain of fully connected layers and known 1-Lipschitz activations"
REMEDY = "bound a network without it, or give the module a lipschitz_constant(norm) method."


def network(weights):
    """A ReLU network in float64 without biases."""
    steps = []
    for matrix in weights:
        layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
        layer.weight.data = torch.from_numpy(matrix)
        steps += [layer, nn.ReLU()]
    return nn.Sequential(*steps[:-1])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(KINDS), min_size=2, max_size=3), st.sampled_from(NORMS), seeds)
def test_sampled_below_enumerated_below_product_below_structure(kinds, norm, seed):
    widths = (3, 4, 4, 2)
    weights = [make(kind, widths[i + 1], widths[i], seed + i) for i, kind in enumerate(kinds)]
    model = network(weights)
    inputs = torch.from_numpy(np.random.default_rng(seed).standard_normal((4, 3)))
    product = lipschitz(model, norm=norm, method="product", inputs=inputs)
    structure = lipschitz(model, norm=norm, method="structure")
    tightest = lipschitz(model, norm=norm)
    truth_at_most = largest_over_masks(weights, norm)
    assert 0.0 <= product.lower <= truth_at_most
    assert truth_at_most <= product.upper * (1 + 1e-14)
    assert product.upper <= structure.upper
    assert tightest.upper == min(product.upper, structure.upper)
    exact = math.prod(float(np.linalg.norm(matrix, ORDER[norm])) for matrix in weights)
    assert exact <= product.upper <= exact * (1 + 1e-12)
    assert (product.norm, product.method, structure.method) == (norm, "product", "structure")


@pytest.mark.parametrize("norm", NORMS)
def test_without_activations_the_bracket_closes(norm):
    matrix = make("random", 5, 7, seed=0)
    result = lipschitz(network([matrix]), norm=norm, inputs=torch.zeros(1, 7))
    assert result.lower == pytest.approx(np.linalg.norm(matrix, ORDER[norm]), rel=1e-9)
    assert result.lower <= np.linalg.norm(matrix, ORDER[norm]) <= result.upper


def test_inputs_give_lower_bounds_and_their_absence_gives_zero(trained, digits):
    for norm in NORMS:
        features, _ = encoder(trained)
        result = lipschitz(features, norm=norm, inputs=digits.x_test[:8])
        assert 0.0 < result.lower < result.upper
        assert lipschitz(features, norm=norm).lower == 0.0
        assert lipschitz(features, norm=norm, inputs=digits.x_test[:0]).lower == 0.0
        assert len(result.assumptions) == 2
        assert result.seconds >= 0.0


def tied():
    shared = nn.Linear(6, 6)
    return nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Tanh(), nn.Linear(6, 3))


def normalised_low_rank():
    return build(ModelConfig(hidden=(8, 5), rank=2, bias=True, mean=(0.3,), std=(0.2,)), (1, 2, 3), 3)


def steep():
    return nn.Sequential(nn.Flatten(), nn.Linear(6, 5), nn.LeakyReLU(-3.0), nn.Linear(5, 4), nn.LeakyReLU(0.1))


def nested():
    inner = nn.Sequential(nn.Linear(6, 6), nn.Hardtanh(), nn.Sequential(nn.ReLU6(), nn.Dropout(0.5), nn.Identity()))
    return nn.Sequential(Normalize((0.1,), (0.5,)), nn.Flatten(), inner, nn.Linear(6, 2)).eval()


def reparametrised():
    pruned, orthogonal = nn.Linear(6, 4), parametrizations.orthogonal(nn.Linear(4, 4))
    prune.l1_unstructured(pruned, "weight", amount=0.5)
    return nn.Sequential(nn.Flatten(), pruned, nn.ReLU(), orthogonal, parametrizations.weight_norm(nn.Linear(4, 3)))


NETWORKS = (tied, normalised_low_rank, steep, nested, reparametrised)


@pytest.fixture(scope="module", params=NETWORKS, ids=lambda make: make.__name__)
def certified(request):
    torch.manual_seed(0)
    model = request.param().double().eval()
    return model, {norm: lipschitz(model, norm=norm) for norm in NORMS}


@settings(max_examples=60, deadline=None)
@given(seeds, st.sampled_from(NORMS), st.sampled_from([1e-4, 1.0, 1e4]))
def test_no_pair_of_inputs_is_further_apart_than_certified(certified, seed, norm, size):
    model, bounds = certified
    rng = np.random.default_rng(seed)
    here = torch.from_numpy(rng.standard_normal((40, 1, 2, 3)))
    there = here + size * torch.from_numpy(rng.standard_normal((40, 1, 2, 3)))
    with torch.no_grad():
        changed = np.linalg.norm((model(there) - model(here)).numpy(), ORDER[norm], axis=1)
    moved = np.linalg.norm((there - here).flatten(1).numpy(), ORDER[norm], axis=1)
    assert (changed <= bounds[norm].upper * moved + 1e-12).all()


def test_sampled_lower_bounds_of_the_same_networks(certified):
    model, bounds = certified
    for norm in NORMS:
        lower = lipschitz(model, norm=norm, inputs=torch.rand(3, 1, 2, 3)).lower
        assert 0.0 < lower <= bounds[norm].upper


def test_constants_of_single_steps():
    scaled = nn.Sequential(Normalize((0.0, 0.0), (0.5, 0.25)))
    for norm in NORMS:
        assert lipschitz(scaled, norm=norm).upper == pytest.approx(4.0, rel=1e-14)
        assert lipschitz(nn.Sequential(nn.LeakyReLU(-3.0)), norm=norm).upper == pytest.approx(3.0, rel=1e-14)
        assert lipschitz(nn.Sequential(nn.LeakyReLU(0.5), nn.ReLU()), norm=norm).upper == pytest.approx(1.0, rel=1e-14)
        assert lipschitz(nn.Sequential(), norm=norm, inputs=torch.ones(1, 2)).lower == pytest.approx(1.0, rel=1e-9)


def test_low_rank_products_are_certified_in_float64():
    """A B in float32 is off by its rounding, which may make a norm taken of it too small."""
    torch.manual_seed(0)
    for _ in range(20):
        layer = LowRankLinear(30, 20, rank=5)
        exact = layer.a.detach().double().numpy() @ layer.b.detach().double().numpy()
        for norm in NORMS:
            assert lipschitz(nn.Sequential(layer), norm=norm).upper >= np.linalg.norm(exact, ORDER[norm])


def test_products_that_underflow_or_meet_zero():
    small, large, zero = (np.full((2, 2), value) for value in (1e-200, 1e200, 0.0))
    assert lipschitz(network([small, small]), norm="l2").upper > 0.0
    for order in ([large, large, zero], [zero, large, large]):
        assert lipschitz(network(order), norm="l2").upper == 0.0
    assert lipschitz(network([large, large]), norm="l2").upper == math.inf
    tiny = lipschitz(network([np.full((1, 2), 5e-324)]), norm="l2").upper
    assert Fraction(tiny) ** 2 >= 2 * Fraction(5e-324) ** 2


def test_lower_bound_survives_cancellation():
    """1e-8 x + 1e8 - 1e8: in float64 the quotient at a step is rounding only, 15 times the truth."""
    model = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1)).double()
    for value, parameter in zip((1e-8, 1e8, 1.0, -1e8), model.parameters(), strict=True):
        nn.init.constant_(parameter, value)
    assert lipschitz(model, norm="l2", inputs=torch.rand(20, 1)).lower <= 1e-8


def test_lower_bound_of_inputs_so_large_that_steps_vanish():
    assert lipschitz(nn.Sequential(nn.Linear(2, 2)), norm="l2", inputs=torch.full((1, 2), 1e30)).lower == 0.0


def test_dropout_is_bounded_in_eval_mode_and_the_mode_is_kept():
    model = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.9), nn.Linear(3, 3)).train()
    result = lipschitz(model, norm="l2", inputs=torch.rand(20, 3))
    assert result.lower <= result.upper
    assert model.training
    assert model[1].training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_models_are_bounded_in_float64(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), LowRankLinear(4, 3, rank=2)).to(dtype)
    for norm in NORMS:
        result = lipschitz(model, norm=norm, inputs=torch.rand(2, 3))
        assert 0.0 < result.lower <= result.upper


def test_encoder_and_head_make_the_model(trained, digits):
    features, head = encoder(trained)
    x = digits.x_test[:5]
    assert torch.equal(head(features(x)), trained(x))
    assert head is trained[-1]
    with_tail = nn.Sequential(
        nn.Linear(4, 4), nn.ReLU(), nn.Sequential(nn.Linear(4, 2), nn.Dropout(0.1)), nn.Identity()
    )
    assert encoder(with_tail)[1] is with_tail[2][0]
    shared = nn.Linear(3, 3)
    features, head = encoder(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), shared))
    assert head is shared
    assert [type(step) for step in features] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU]


def test_the_encoder_of_a_linear_model_is_the_identity():
    features, _ = encoder(nn.Sequential(nn.Flatten(), nn.Linear(4, 3)))
    for norm in NORMS:
        assert lipschitz(features, norm=norm).upper == pytest.approx(1.0, rel=1e-14)


class Louder(nn.Linear):
    """A layer that does more than its class says."""

    def forward(self, x):
        return 10.0 * super().forward(x)


class LouderReLU(nn.ReLU):
    def forward(self, x):
        return 10.0 * super().forward(x)


class Residual(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


class KnowsItself(Residual):
    def lipschitz_constant(self, norm):
        return 7.0


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv2d(1, 1, 3),
        nn.BatchNorm1d(3),
        nn.GELU(),
        nn.PReLU(),
        nn.Bilinear(2, 2, 2),
        nn.MultiheadAttention(4, 2),
        Louder(3, 3),
        LouderReLU(),
        Residual(nn.Linear(3, 3)),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_cannot_be_bounded_is_named(module):
    model = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.ReLU(), module))
    for call in (lambda: lipschitz(model, norm="l2"), lambda: encoder(model)):
        with refused(ModelError, f"{EDGES}, but got {type(module).__name__} at '1.1'; {REMEDY}"):
            call()
    with refused(ModelError, f"{EDGES}, but got {type(module).__name__} at 'the top level'; {REMEDY}"):
        lipschitz(module, norm="l2")


def test_a_forward_replaced_on_the_instance_is_not_trusted():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: 10.0 * x
    with refused(ModelError, f"{EDGES}, but got Linear at '0'; {REMEDY}"):
        lipschitz(nn.Sequential(layer), norm="l2")


def test_hooks_are_not_trusted():
    layer, outer = nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 3))
    layer.register_forward_hook(lambda module, inputs, output: 10.0 * output)
    outer.register_forward_pre_hook(lambda module, inputs: (10.0 * inputs[0],))
    for model, seen in (
        (nn.Sequential(layer), "Linear at '0'"),
        (nn.Sequential(outer), "Sequential at '0'"),
        (outer, "Sequential at 'the top level'"),
    ):
        rule = "a Lipschitz bound needs modules whose output no hook can change"
        with refused(ModelError, f"{rule}, but got a forward hook on {seen}; remove the hook."):
            lipschitz(model, norm="l2")


def test_a_module_that_knows_its_constant_is_believed_unless_it_makes_no_sense():
    model = nn.Sequential(KnowsItself(nn.Linear(3, 3)), nn.ReLU())
    assert lipschitz(model, norm="linf").upper == pytest.approx(7.0, rel=1e-14)
    for bad in (-1.0, math.nan):
        model[0].lipschitz_constant = lambda norm, bad=bad: bad
        with refused(ModelError, f"lipschitz_constant(norm) must be zero or more, but got {bad}; correct KnowsItself."):
            lipschitz(model, norm="linf")


def test_what_else_is_refused():
    model = nn.Sequential(nn.Linear(2, 2))
    with refused(ModelError, "norm must be one of linf, l2, but got l1; write linf or l2."):
        lipschitz(model, norm="l1")
    text = "method must be one of tightest, product, structure, but got sdp; leave it out for the tightest."
    with refused(ModelError, text):
        lipschitz(model, norm="l2", method="sdp")
    text = "an encoder and a head need at least one linear layer, but got none; give a network."
    with refused(ModelError, text):
        encoder(nn.Sequential(nn.ReLU()))
    text = "the last linear layer must give the logits, but got ReLU at '1' after it; return logits from the model."
    with refused(ModelError, text):
        encoder(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    nn.init.constant_(model[0].weight, math.nan)
    text = (
        "weights must be finite, but got NaN or infinite values; check that training did not diverge before measuring."
    )
    with refused(ModelError, text):
        lipschitz(model, norm="l2")
