"""Low-rank layers against the matrix they stand for, and truncation against Eckart and Young."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional
from torch.nn.utils import prune

from oracles.as_user import refused
from oracles.matrices import matrices
from pinchpoint.bound import lipschitz
from pinchpoint.bound.network.trace import trace
from pinchpoint.compress import ConstantFrobenius, LowRankConv2d, LowRankLinear, truncate
from pinchpoint.errors import ModelError
from pinchpoint.measure import profile
from pinchpoint.measure.layers import layers

GEOMETRIES = [
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0), "dilation": (1, 2)},
    {"kernel_size": 3, "padding": 1, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 4, "bias": False},
    {"kernel_size": (4, 3), "padding": "same", "padding_mode": "circular"},
    {"kernel_size": (3, 5), "padding": (1, 2), "padding_mode": "reflect", "stride": 2},
    {"kernel_size": 2, "padding": "valid", "padding_mode": "replicate"},
    {"kernel_size": 3, "padding": "same", "dilation": 2},
]


def linear_of(matrix, bias=True):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=bias).double()
    layer.weight.data = torch.from_numpy(matrix)
    return layer


def of_rank(matrix, rank):
    """The truncated SVD, by NumPy."""
    u, sigma, vh = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * sigma[:rank]) @ vh[:rank]


# --- fully connected ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (3, 5), (2, 3, 5), (0, 5)])
def test_forward_multiplies_with_the_weight_matrix(bias, shape):
    layer = LowRankLinear(5, 4, rank=2, bias=bias).double()
    x = torch.randn(shape, dtype=torch.float64)
    expected = x.numpy() @ layer.weight_matrix().detach().numpy().T
    if bias:
        expected = expected + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(x).detach().numpy(), expected, atol=1e-14)
    assert np.linalg.matrix_rank(layer.weight_matrix().detach().numpy()) == 2


@pytest.mark.parametrize("rank", [1, 4, 64])
def test_entries_start_with_the_variance_of_a_dense_layer(rank):
    torch.manual_seed(0)
    wide = torch.stack([LowRankLinear(128, 96, rank).weight_matrix() for _ in range(20)]).detach()
    dense = torch.stack([nn.Linear(128, 96).weight for _ in range(20)]).detach()
    assert wide.mean().item() == pytest.approx(0.0, abs=0.05 * dense.std().item())
    assert wide.var().item() == pytest.approx(1 / (3 * 128), rel=0.1)
    assert wide.var().item() == pytest.approx(dense.var().item(), rel=0.1)


def test_bias_starts_as_in_a_dense_layer():
    torch.manual_seed(0)
    bias = LowRankLinear(100, 5000, 1).bias
    assert bias.abs().max() <= 0.1
    assert bias.std().item() == pytest.approx(0.1 / math.sqrt(3), rel=0.05)


@settings(max_examples=100, deadline=None)
@given(matrices(), st.integers(1, 9))
def test_truncation_is_the_best_approximation_of_its_rank(matrix, rank):
    rank = min(rank, *matrix.shape)
    low = truncate(linear_of(matrix), rank).weight_matrix().detach().numpy()
    top = np.abs(matrix).max()
    if top == 0:
        assert (low == 0).all()
        return
    sigma = np.linalg.svd(matrix / top, compute_uv=False)
    # Eckart-Young: the error of the best approximation is the tail of the spectrum; nothing of that rank does better
    error = np.linalg.svd((matrix - low) / top, compute_uv=False)
    assert error[0] == pytest.approx(sigma[rank] if rank < len(sigma) else 0.0, abs=1e-13 * sigma[0])
    assert math.hypot(*error) == pytest.approx(math.hypot(*sigma[rank:]), abs=1e-13 * math.hypot(*sigma))
    assert (np.linalg.svd(low / top, compute_uv=False)[rank:] <= 1e-14 * sigma[0]).all()


def test_truncation_keeps_bias_dtype_and_the_original():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer = nn.Linear(6, 5).to(dtype)
        weight = layer.weight.detach().clone()
        low = truncate(layer, 3)
        assert {parameter.dtype for parameter in low.parameters()} == {dtype}
        assert torch.equal(low.bias, layer.bias)
        assert low.bias is not layer.bias
        assert torch.equal(layer.weight, weight)
        assert (low.in_features, low.out_features, low.rank) == (6, 5, 3)
    assert truncate(nn.Linear(6, 5, bias=False), 3).bias is None


def test_both_factors_have_the_roots_of_the_singular_values():
    matrix = np.random.default_rng(0).standard_normal((5, 6))
    low = truncate(linear_of(matrix), 3)
    sigma = np.linalg.svd(matrix, compute_uv=False)[:3]
    a, b = low.a.detach().numpy(), low.b.detach().numpy()
    np.testing.assert_allclose(a.T @ a, np.diag(sigma), atol=1e-13)
    np.testing.assert_allclose(b @ b.T, np.diag(sigma), atol=1e-13)


def test_truncation_sees_masked_weights_as_they_act():
    layer = nn.Linear(4, 3)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    with torch.no_grad():
        layer.weight_orig.mul_(10.0)
    expected = (layer.weight_orig * layer.weight_mask).detach()
    torch.testing.assert_close(truncate(layer, 3).weight_matrix().detach(), expected, rtol=0, atol=1e-5)


# --- convolutions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", GEOMETRIES)
def test_a_convolution_does_what_the_plain_one_with_its_matrix_does(options):
    low = LowRankConv2d(4, 8, rank=3, **options).double()
    plain = nn.Conv2d(4, 8, **options).double()
    assert low.weight.shape == plain.weight.shape
    assert np.linalg.matrix_rank(low.weight_matrix().detach().numpy()) == 3
    plain.weight.data = low.weight_matrix().detach().view(plain.weight.shape)
    if plain.bias is not None:
        plain.bias.data = low.bias.detach()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    torch.testing.assert_close(low(x), plain(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(low(x[0]), low(x)[0], rtol=0, atol=1e-13)  # without a batch, as torch has it
    dense = low.dense()
    assert str(dense) == str(plain)
    assert torch.equal(dense.weight, plain.weight)
    torch.testing.assert_close(dense(x), plain(x), rtol=0, atol=0)


@pytest.mark.parametrize("options", GEOMETRIES)
@pytest.mark.parametrize("rank", [1, 3])
def test_a_truncated_convolution_is_the_truncated_svd_of_its_matrix(options, rank):
    plain = nn.Conv2d(4, 8, **options).double()
    low = truncate(plain, rank)
    expected = of_rank(plain.weight.detach().flatten(1).numpy(), rank)
    np.testing.assert_allclose(low.weight_matrix().detach().numpy(), expected, atol=1e-14)
    x = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    with torch.no_grad():
        plain.weight.copy_(torch.from_numpy(expected).view(plain.weight.shape))
    torch.testing.assert_close(low(x), plain(x), rtol=0, atol=1e-13)


def test_a_convolution_without_groups_is_two_convolutions():
    low = LowRankConv2d(3, 8, (3, 5), rank=2, stride=2, padding=1)
    x = torch.randn(2, 3, 9, 9)
    spatial = functional.conv2d(x, low.b, stride=2, padding=1)
    assert spatial.shape[1] == 2
    torch.testing.assert_close(low(x), functional.conv2d(spatial, low.a[:, :, None, None], low.bias))
    assert sum(parameter.numel() for parameter in low.parameters()) == 2 * (8 + 3 * 3 * 5) + 8


@pytest.mark.parametrize("groups", [1, 4])
def test_filters_start_with_the_variance_of_a_plain_convolution(groups):
    torch.manual_seed(0)
    low = torch.stack([LowRankConv2d(8, 32, 3, 5, groups=groups).weight for _ in range(40)]).detach()
    assert low.var().item() == pytest.approx(1 / (3 * 8 // groups * 9), rel=0.1)
    biases = torch.cat([LowRankConv2d(8, 32, 3, 5, groups=groups).bias for _ in range(40)])
    assert biases.abs().max() <= (8 / groups * 9) ** -0.5
    assert biases.var().item() == pytest.approx(1 / (3 * 8 // groups * 9), rel=0.1)


def test_gradients_of_the_matrix_reach_both_factors():
    low = LowRankConv2d(2, 3, 2, rank=2).double()
    a, b = low.a.detach().numpy(), low.b.detach().flatten(1).numpy()
    low.weight_matrix().square().sum().backward()
    np.testing.assert_allclose(low.a.grad.numpy(), 2 * a @ b @ b.T, atol=1e-14)
    np.testing.assert_allclose(low.b.grad.flatten(1).numpy(), 2 * a.T @ a @ b, atol=1e-14)


# --- as others see them -------------------------------------------------------------------------------------------------


def test_the_layer_as_it_was():
    for plain in (nn.Linear(6, 5), nn.Conv2d(2, 5, 3)):
        plain.eval()
        plain.weight.requires_grad_(False)
        low = truncate(plain, 2)
        assert [low.training, low.a.requires_grad, low.b.requires_grad, low.bias.requires_grad] == [False] * 3 + [True]
        back = low.dense()
        assert [back.training, back.weight.requires_grad, back.bias.requires_grad] == [False, False, True]
        assert all(parameter.is_contiguous() for layer in (low, back) for parameter in layer.parameters())


def test_truncation_and_merging_draw_no_random_numbers():
    layers = nn.Linear(6, 5), nn.Conv2d(2, 5, 3)
    before = torch.get_rng_state()
    for layer in layers:
        truncate(layer, 2).dense()
    assert torch.equal(torch.get_rng_state(), before)


def test_modules_that_read_the_weight_see_the_plain_one():
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    expected, _ = attention(x, x, x)
    attention.out_proj = truncate(attention.out_proj, 8)
    torch.testing.assert_close(attention(x, x, x)[0], expected, rtol=0, atol=1e-6)


def test_a_profile_gives_the_norms_of_the_operator_not_of_the_matrix():
    torch.manual_seed(0)
    low = LowRankConv2d(3, 6, 3, rank=2, padding=1)
    network = nn.Sequential(low, nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).double()
    found = profile(network, input_shape=(3, 6, 6)).layers[0]
    plain = nn.Sequential(low.dense(), *network[1:])
    expected = profile(plain, input_shape=(3, 6, 6)).layers[0]
    assert (found.kind, found.rows, found.columns, found.parameters) == ("LowRankConv2d", 6, 27, 2 * (6 + 27) + 6)
    assert found.numerical_rank == 2
    # the operator written out, column by column
    columns = functional.conv2d(torch.eye(108).double().view(108, 3, 6, 6), low.dense().weight, padding=1).flatten(1)
    true = np.linalg.norm(columns.detach().numpy(), 2)
    assert found.l2_lower <= true <= found.l2_upper
    assert found.matrix_l2 < 0.9 * true
    assert (found.linf, found.l2_upper) == pytest.approx((expected.linf, expected.l2_upper), rel=1e-12)
    assert profile(network).layers[0].linf is None


def test_batch_norms_fold_into_a_low_rank_convolution():
    network = nn.Sequential(LowRankConv2d(2, 4, 3, rank=2), nn.BatchNorm2d(4), nn.ReLU()).double().eval()
    network[1].running_var.uniform_(0.5, 2.0)
    found = layers(network, input_shape=(2, 5, 5), fold_batchnorm=True)
    scale = (network[1].running_var + network[1].eps).rsqrt()
    torch.testing.assert_close(found[0].matrix, scale[:, None] * network[0].weight_matrix().detach())
    assert (len(found), found[0].input_size) == (1, (5, 5))


def test_a_lipschitz_bound_holds_with_a_low_rank_convolution():
    torch.manual_seed(0)
    network = nn.Sequential(
        LowRankConv2d(2, 6, 3, rank=2, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(96, 3)
    ).double()
    operations = [type(node.operation).__name__ for node in trace(network, (2, 4, 4)).nodes]
    assert operations.count("Conv") == 2
    for norm in ("l2", "linf"):
        bound = lipschitz(network, norm=norm, method="product", input_shape=(2, 4, 4))
        order = 2 if norm == "l2" else math.inf
        x = torch.rand(50, 2, 4, 4, dtype=torch.float64)
        y = x + 0.01 * torch.randn_like(x)
        moved = torch.linalg.vector_norm(network(x) - network(y), order, dim=1)
        ratio = moved / torch.linalg.vector_norm((x - y).flatten(1), order, dim=1)
        assert 0 < ratio.max() <= bound.upper


def test_constant_frobenius_norm_of_a_low_rank_convolution():
    model = nn.Sequential(LowRankConv2d(2, 4, 3, rank=2))
    keep = ConstantFrobenius(model)
    before = model[0].weight.norm().item()
    with torch.no_grad():
        model[0].b.mul_(3.0)
    keep(model)
    assert model[0].weight.norm().item() == pytest.approx(before, rel=1e-5)


def test_repr_says_its_rank():
    assert repr(LowRankLinear(6, 4, 2)) == "LowRankLinear(in_features=6, out_features=4, rank=2)"
    assert repr(LowRankConv2d(6, 4, 3, 2)) == "LowRankConv2d(6, 4, kernel_size=(3, 3), rank=2)"
    shown = "LowRankConv2d(6, 4, kernel_size=(3, 3), rank=2, stride=(2, 2), padding=same, groups=2)"
    assert repr(LowRankConv2d(6, 4, 3, 2, stride=2, padding="same", groups=2)) == shown


def test_what_is_refused():
    for rank in (0, -1, 5):
        text = f"the rank of a 4 x 6 layer lies in 1 ... 4, but got {rank}; choose one in that range."
        with refused(ModelError, text):
            LowRankLinear(6, 4, rank)
        with refused(ModelError, text):
            truncate(nn.Linear(6, 4), rank)
    with refused(ModelError, "the rank of a 4 x 18 layer lies in 1 ... 4, but got 5; choose one in that range."):
        LowRankConv2d(2, 4, 3, 5)
    text = "groups must divide the channels of input and output, but got 3 groups of 6 and 4 channels; choose another "
    with refused(ModelError, text + "number."):
        LowRankConv2d(6, 4, 3, 2, groups=3)
    broken = nn.Linear(3, 3)
    nn.init.constant_(broken.weight, math.nan)
    text = "weights must be finite, but got NaN or infinite values; "
    with refused(ModelError, text + "check that training did not diverge before measuring."):
        truncate(broken, 1)
