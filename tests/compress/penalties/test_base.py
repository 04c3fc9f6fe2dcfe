"""What penalties share: patterns, memory; and the small ones: Hoyer and spread control."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from oracles.as_user import refused
from oracles.matrices import make, matrices
from pinchpoint.compress import L1, GroupLasso, Hoyer, NuclearNorm, SpreadControl
from pinchpoint.errors import CheckpointError, ConfigError
from pinchpoint.measure import spread


def naive_hoyer(matrix):
    return float(np.abs(matrix).sum() / np.sqrt((matrix**2).sum()))


def naive_spread(matrix, share=0.05):
    norms = sorted((sum(abs(x) for x in row) for row in matrix), reverse=True)
    top = np.array(norms[: min(len(norms), max(2, math.ceil(share * len(norms) - 1e-9)))])
    return float(((top - top.mean()) ** 2).mean() / top.mean() ** 2)


@given(matrices(), st.sampled_from([(Hoyer, naive_hoyer), (SpreadControl, naive_spread)]))
def test_values_are_numpys_at_any_scale(matrix, kind):
    penalty, naive = kind
    found = penalty(1.0).term(torch.from_numpy(matrix)).item()
    top = np.abs(matrix).max()
    assert found == pytest.approx(naive(matrix / top) if top else 0.0, rel=1e-11, abs=1e-13)
    for scale in (0.25, 1024.0):
        assert penalty(1.0).term(torch.from_numpy(matrix * scale)).item() == pytest.approx(found, rel=1e-11, abs=1e-13)
    h, d = matrix.shape
    low, high = (1, math.sqrt(h * d)) if penalty is Hoyer else (0, max(1, h - 1))
    assert top == 0 or low - 1e-12 <= found <= high + 1e-12


@pytest.mark.parametrize(
    ("penalty", "naive"),
    [(Hoyer(1.0), naive_hoyer), (SpreadControl(1.0), naive_spread), (SpreadControl(1.0, share=0.6), None)],
)
def test_gradients_are_central_differences(penalty, naive):
    naive = naive or (lambda matrix: naive_spread(matrix, 0.6))
    matrix = make("random", 7, 4, seed=3)
    tensor = torch.from_numpy(matrix).requires_grad_()
    penalty.term(tensor).backward()
    step, expected = 1e-6, np.zeros_like(matrix)
    for entry in np.ndindex(*matrix.shape):
        shift = np.zeros_like(matrix)
        shift[entry] = step
        expected[entry] = (naive(matrix + shift) - naive(matrix - shift)) / (2 * step)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(tensor.grad.numpy(), expected, atol=1e-8)


def test_spread_control_vanishes_with_the_spread_and_lowers_it():
    torch.manual_seed(0)
    layer = nn.Linear(10, 60, bias=False)
    model = nn.Sequential(layer, nn.Linear(60, 2))
    before = spread(layer.weight.abs().sum(1), 3).item()
    optimizer = torch.optim.SGD([layer.weight], lr=1.0)
    for _ in range(50):
        optimizer.zero_grad()
        SpreadControl(1.0)(model).backward()
        optimizer.step()
    after = spread(layer.weight.abs().sum(1), 3).item()
    assert after < before / 2
    assert SpreadControl(1.0).term(torch.ones(40, 3)).item() == 0
    for zero in (torch.zeros(5, 3), torch.ones(1, 3)):
        zero.requires_grad_()
        SpreadControl(1.0).term(zero).backward()
        assert (zero.grad == 0).all()


def names():
    body = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))
    return nn.ModuleDict({"body": body, "attention": nn.MultiheadAttention(4, 2), "head": nn.Linear(4, 2)})


@pytest.mark.parametrize(
    ("patterns", "touched"),
    [
        (None, "body.1, attention.in_proj_weight, attention.out_proj"),
        (["head"], "head"),
        (["body.*"], "body.0, body.1"),
        (("*.0", "att*proj"), "body.0, attention.out_proj"),
    ],
)
def test_layers_are_chosen_by_patterns(patterns, touched):
    model = names()
    penalty = L1(1.0, layers=patterns)
    assert penalty.describe(model) == f"L1(1) on {touched}"
    penalty(model).backward()
    seen = {name.removesuffix(".weight") for name, value in model.named_parameters() if value.grad is not None}
    assert seen == set(touched.split(", "))


def test_what_is_refused():
    text = "L1's layers must match at least one layer, but got conv*, fc; choose among body.0, body.1, "
    with refused(ConfigError, text + "attention.in_proj_weight, attention.out_proj, head."):
        L1(1.0, layers=["conv*", "fc"])(names())
    with refused(ConfigError, "layers are a list of patterns, but got 'conv*'; write [...] around it."):
        L1(1.0, layers="conv*")
    with refused(ConfigError, "the share of dominant rows lies in (0, 1], but got 0.0; the paper's is 0.05."):
        SpreadControl(1.0, share=0.0)


def test_memory_is_kept_by_number_and_others_is_refused():
    both = GroupLasso(1.0) + NuclearNorm(1.0)
    model = nn.Sequential(nn.Linear(150, 140), nn.Linear(140, 2))
    both(model)
    assert set(both.state_dict()) == {"1.0/counts", "1.0/polar", "1.0/reference"}
    again = GroupLasso(1.0) + NuclearNorm(1.0)
    again.load_state_dict(both.state_dict())
    assert again.parts[1].memory["0"].steps == 1
    text = "GroupLasso remembers nothing, but got '0/counts'; resume with the same penalties."
    with refused(CheckpointError, text):
        (NuclearNorm(1.0) + GroupLasso(1.0)).load_state_dict(both.state_dict())
    with refused(CheckpointError, "the state must be that of 2 parts, but got '2.x'; resume with the same ones."):
        both.load_state_dict({"2.x": torch.zeros(1)})
