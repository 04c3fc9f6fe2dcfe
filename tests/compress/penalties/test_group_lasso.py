"""Group lasso over rows, columns and heads against loops in NumPy, and where it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from oracles.as_user import refused
from pinchpoint.compress import GroupLasso
from pinchpoint.errors import ConfigError, ModelError


def norm(*parts):
    return math.sqrt(sum(float((np.asarray(part) ** 2).sum()) for part in parts))


def numpy(tensor):
    return tensor.detach().double().numpy()


@given(st.integers(0, 2**31 - 1), st.sampled_from(["rows", "columns"]), st.floats(1e-3, 1e3))
def test_the_scale_invariant_form_is_the_papers_and_does_not_see_scale(seed, over, scale):
    torch.manual_seed(seed)
    layer = nn.Linear(5, 4, bias=False).double()
    model = nn.Sequential(layer, nn.Linear(4, 2).double())
    penalty = GroupLasso(1.0, over=over, scale_invariant=True)
    weight = numpy(layer.weight)
    groups = weight if over == "rows" else weight.T
    before = penalty(model)
    assert before.item() == pytest.approx(sum(norm(row) for row in groups) / norm(weight), rel=1e-12)
    assert 1 <= before.item() <= math.sqrt(len(groups)) + 1e-12
    before.backward()
    assert (
        abs(float((layer.weight.grad * layer.weight.detach()).sum())) < 1e-12
    )  # no force along the weights themselves
    layer.weight.data *= scale
    assert penalty(model).item() == pytest.approx(before.item(), rel=1e-12)


@pytest.mark.parametrize("scale_invariant", [False, True])
def test_zero_layers_have_value_and_gradient_zero(scale_invariant):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    nn.init.zeros_(model[0].weight)
    value = GroupLasso(1.0, scale_invariant=scale_invariant)(model)
    value.backward()
    assert value.item() == 0
    assert (model[0].weight.grad == 0).all()


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(6, 4),
        nn.Conv2d(6, 4, 3),
        nn.Conv2d(6, 4, 3, groups=2),
        nn.Conv1d(6, 6, 2, groups=6),
        nn.ConvTranspose2d(6, 4, 3),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
    ],
    ids=str,
)
def test_columns_are_all_weights_that_read_one_channel(layer):
    """Found by what changes: a channel's weights are those whose gradient a 1 in that channel alone switches on."""
    layer = layer.double()
    expected = 0.0
    for channel in range(6):
        x = torch.zeros(1, 6, *([7] * (layer.weight.ndim - 2)), dtype=torch.float64)
        x[:, channel] = 1.0
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), layer.weight)
        expected += norm(numpy(layer.weight)[numpy(gradient) != 0])
    model = nn.Sequential(layer, nn.Linear(1, 1))
    assert GroupLasso(1.0, layers=["0"], over="columns")(model).item() == pytest.approx(expected, rel=1e-12)


def expected_heads(attention, heads, width):
    q, k, v = numpy(attention.in_proj_weight).reshape(3, heads, width, -1)
    out = numpy(attention.out_proj.weight).reshape(-1, heads, width)
    return sum(norm(q[head], k[head], v[head], out[:, head]) for head in range(heads))


def test_heads_of_torchs_attention():
    attention = nn.MultiheadAttention(8, num_heads=2)
    model = nn.Sequential(nn.Linear(8, 8), attention, nn.Linear(8, 2))
    penalty = GroupLasso(1.0, over="heads")
    assert penalty.describe(model) == "GroupLasso(1) on 1"
    value = penalty(model)
    assert value.item() == pytest.approx(expected_heads(attention, 2, 4), rel=1e-6)
    value.backward()
    touched = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert touched == {"1.in_proj_weight", "1.out_proj.weight"}
    with torch.no_grad():  # a head of zeros costs nothing, and has gradient zero
        attention.in_proj_weight.view(3, 2, 4, 8)[:, 0] = 0
        attention.out_proj.weight.view(8, 2, 4)[:, 0] = 0
    model.zero_grad()
    value = GroupLasso(1.0, over="heads", scale_invariant=True)(model)
    value.backward()
    assert value.item() == pytest.approx(1.0, rel=1e-6)
    assert (attention.in_proj_weight.grad.view(3, 2, 4, 8)[:, 0] == 0).all()


class Grouped(nn.Module):
    """Four query heads that share two keys and values."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = 4, 2, 3
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(5, rows, bias=False) for rows in (12, 6, 6))
        self.proj = nn.Linear(12, 5)


def test_heads_that_share_a_key_are_one_group():
    module = Grouped()
    q = numpy(module.q_proj.weight).reshape(2, 6, 5)
    k, v = (numpy(part.weight).reshape(2, 3, 5) for part in (module.k_proj, module.v_proj))
    out = numpy(module.proj.weight).reshape(5, 2, 6)
    expected = sum(norm(q[group], k[group], v[group], out[:, group]) for group in range(2))
    assert GroupLasso(1.0, over="heads")(nn.Sequential(module)).item() == pytest.approx(expected, rel=1e-6)


def test_which_attention_is_chosen_by_its_name():
    model = nn.Sequential(nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2))
    assert GroupLasso(2.0, layers=["1"], over="heads").describe(model) == "GroupLasso(2) on 1"


def test_what_is_refused():
    with refused(ConfigError, "a group lasso goes over rows, columns, heads, but got blocks; choose one of them."):
        GroupLasso(1.0, over="blocks")
    with refused(ConfigError, "GroupLasso over heads needs attention, but got none in Linear; use rows or columns."):
        GroupLasso(1.0, over="heads")(nn.Linear(2, 2))
    text = "GroupLasso's layers must match at least one layer, but got x*; choose among 0."
    with refused(ConfigError, text):
        GroupLasso(1.0, over="heads", layers=["x*"])(nn.Sequential(nn.MultiheadAttention(4, 2)))
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    parametrizations.weight_norm(model[0], "in_proj_weight")
    text = (
        "a group lasso over heads needs attention weights that are stored as they act, but got computed ones in '0'; "
    )
    with refused(ModelError, text + "remove the parametrisation or mask."):
        GroupLasso(1.0, over="heads")(model)
