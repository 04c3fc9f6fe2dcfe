"""The record of a whole model against the definitions, layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles import compressibility as oracle
from oracles.as_user import refused
from oracles.matrices import KINDS, SCALES, make
from pinchpoint.errors import ModelError
from pinchpoint.measure import profile, spectra


def linear(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False).double()
    layer.weight.data = torch.from_numpy(matrix)
    return layer


def check_view(view, theta, k_share, target, q):
    theta = np.abs(theta)
    n, k = len(theta), math.ceil(k_share * len(theta))
    assert (view.n, view.k, view.q, view.target) == (n, k, q, target)
    assert view.residual == pytest.approx(oracle.residual(theta, k, q), rel=1e-10, abs=1e-12)
    assert view.spread == pytest.approx(oracle.spread(theta, k), rel=1e-10, abs=1e-12)
    assert view.ranks == list(range(1, n + 1))
    shares = np.sort(theta)[::-1] / theta.sum() if theta.sum() > 0 else theta
    assert view.values == pytest.approx(shares.tolist(), rel=1e-10, abs=1e-12)
    assert view.residuals == pytest.approx(
        [oracle.residual(theta, rank, q) for rank in view.ranks], rel=1e-10, abs=1e-12
    )
    scaled = theta / theta.max() if theta.max() > 0 else theta
    squares = math.fsum(scaled**2)
    assert view.participation_ratio == pytest.approx(math.fsum(scaled) ** 2 / squares if squares else 0.0, rel=1e-8)
    roots = math.fsum(np.sqrt(scaled)) ** 2
    assert view.pq_index == pytest.approx(1 - roots / n / math.fsum(scaled) if squares else 0.0, abs=1e-6)
    found = view.k_for_target
    assert oracle.residual(theta, found, q) <= target + 1e-12
    assert found == 1 or oracle.residual(theta, found - 1, q) > target - 1e-12


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("q", [1.0, 2.0])
def test_a_layer_is_profiled_by_the_definitions(kind, scale, q):
    matrix = make(kind, 12, 8, seed=3, scale=scale)
    layer = profile(nn.Sequential(linear(matrix)), k_share=0.25, target=0.2, q=q).layers[0]
    sigma, nu = oracle.singular_values(matrix), oracle.row_norms(matrix)
    assert (layer.rows, layer.columns, layer.parameters, layer.kind) == (12, 8, 96, "linear")
    assert layer.frobenius == pytest.approx(oracle.frobenius(matrix), rel=1e-13)
    assert layer.matrix_linf == pytest.approx(nu.max(), rel=1e-13)
    assert layer.matrix_l2 == pytest.approx(sigma.max(), rel=1e-13)
    if kind == "zero":
        assert layer.effective_rank == layer.stable_rank == 0.0
    else:
        assert layer.stable_rank == pytest.approx(((sigma / sigma.max()) ** 2).sum(), rel=1e-12)
        assert 1.0 - 1e-9 <= layer.stable_rank <= layer.effective_rank * (1 + 1e-9) <= 8 * (1 + 1e-8)
    check_view(layer.neuron, nu, 0.25, 0.2, q)
    check_view(layer.spectral, sigma, 0.25, 0.2, q)
    check_view(layer.column, oracle.row_norms(matrix.T), 0.25, 0.2, q)
    check_view(layer.entrywise, matrix.ravel(), 0.25, 0.2, q)
    by_row = [oracle.residual(row, 2, q) for row in matrix]
    assert layer.row_k == 2
    assert (layer.row_residual_mean, layer.row_residual_max) == pytest.approx((np.mean(by_row), max(by_row)), abs=1e-12)
    assert layer.numerical_rank == np.linalg.matrix_rank(matrix / np.abs(matrix).max() if matrix.any() else matrix)
    assert layer.rank_tolerance == 12 * 2.0**-52
    assert layer.linf >= nu.max() >= layer.linf * (1 - 1e-12)
    assert layer.l2_lower <= sigma[0] <= layer.l2_upper <= layer.l2_lower * (1 + 1e-12)
    assert (layer.norm_method, layer.norm_reason, layer.head) == ("the matrix itself", None, None)


@settings(max_examples=20, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.one_of(st.floats(1e-150, 1e150), st.sampled_from([1e-150, -1 / 3, 1e150])),
    st.integers(0, 99),
)
def test_scale_changes_no_number(kind, factor, seed):
    """On 40 x 36 matrices, large enough for Gram: every number without a unit."""
    matrix = make(kind, 40, 36, seed)
    one, other = (profile(linear(each)).layers[0].model_dump() for each in (matrix, matrix * factor))
    for record in (one, other):
        for unit in ("frobenius", "matrix_linf", "matrix_l2", "linf", "l2_lower", "l2_upper", "norm_method"):
            del record[unit]
        for view in ("neuron", "spectral", "entrywise", "column"):
            del record[view]["k_for_target"]  # jumps where the target is met to the last bit
    np.testing.assert_allclose(flat(other), flat(one), rtol=1e-12, atol=1e-12)


def flat(record):
    """All numbers of a record, nested ones too."""
    numbers = []
    for value in record.values():
        if isinstance(value, dict):
            numbers += flat(value)
        elif isinstance(value, list):
            numbers += value
        elif isinstance(value, int | float):
            numbers.append(value)
    return numbers


@pytest.mark.parametrize("scale", [1e-250, 1e250])
def test_frobenius_norm_where_squares_vanish_or_overflow(scale):
    layer = profile(linear(np.array([[3.0, 0.0], [0.0, 4.0]]) * scale)).layers[0]
    assert layer.frobenius == pytest.approx(5 * scale, rel=1e-14)


def test_the_network_is_the_mean_over_the_encoder():
    even, rank_one, head = make("orthogonal", 4, 4, 0), make("rank one", 4, 4, 0), make("random", 2, 4, 0)
    record = profile(nn.Sequential(linear(even), nn.ReLU(), linear(rank_one), nn.ReLU(), linear(head)), k_share=0.25)
    assert record.spectral == pytest.approx((0.25 + 1.0) / 2, abs=1e-12)
    assert record.neuron == pytest.approx(
        np.mean([1 - oracle.residual(oracle.row_norms(each), 1) for each in (even, rank_one)]), rel=1e-12
    )
    assert profile(linear(even), k_share=0.25).spectral == pytest.approx(0.25, abs=1e-12)


def test_all_views_of_the_network_and_their_weighted_means():
    matrices = [make("random", 6, 4, 0), make("heavy", 10, 6, 1), make("random", 2, 10, 2)]
    record = profile(nn.Sequential(*map(linear, matrices)), k_share=0.5)
    views = {
        "neuron": oracle.row_norms,
        "spectral": oracle.singular_values,
        "entrywise": np.ravel,
        "column": lambda matrix: oracle.row_norms(matrix.T),
    }
    for name, theta in views.items():
        kept = [1 - oracle.residual(theta(each), math.ceil(len(theta(each)) / 2)) for each in matrices[:2]]
        assert getattr(record, name) == pytest.approx(np.mean(kept), rel=1e-12)
        assert record.weighted[name] == pytest.approx(np.average(kept, weights=[24, 60]), rel=1e-12)


class _Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(12, 3, bias=False).double()
        self.head = nn.Linear(12, 2)


def test_heads_of_attention_are_a_view():
    """l1 norms of each head's four rows of q, k, v, and of its four columns of out."""
    model = _Attention()
    weights = model.attention.in_proj_weight.detach().numpy()
    found = {layer.kind: layer for layer in profile(model, k_share=0.3, target=0.2).layers}
    for part, kind in enumerate(("attention_q", "attention_k", "attention_v")):
        heads = np.abs(weights[12 * part : 12 * part + 12]).reshape(3, 4, 12).sum(axis=(1, 2))
        check_view(found[kind].head, heads, 0.3, 0.2, 1.0)
    out = np.abs(model.attention.out_proj.weight.detach().numpy()).reshape(12, 3, 4).sum(axis=(0, 2))
    check_view(found["attention_out"].head, out, 0.3, 0.2, 1.0)
    assert found["linear"].head is None


def materialised(module, shape):
    """The matrix of an affine module, one basis vector at a time."""
    count = math.prod(shape)
    with torch.no_grad():
        zero = module(torch.zeros(1, *shape, dtype=torch.float64))
        return (module(torch.eye(count, dtype=torch.float64).view(count, *shape)) - zero).flatten(1).T.numpy()


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv2d(4, 6, 3, padding=1, stride=2),
        nn.Conv2d(4, 6, 3, padding=1, groups=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2),
        nn.ConvTranspose2d(4, 6, 2, groups=2),
    ],
)
def test_norms_of_convolutions_are_those_of_the_operators(convolution, fold):
    norm = nn.BatchNorm2d(6)
    norm.running_var.copy_(torch.linspace(0.1, 4.0, 6))
    model = nn.Sequential(convolution, norm).double().eval()
    layer = profile(model, input_shape=(4, 5, 5), fold_batchnorm=fold, norm_tolerance=0.01).layers[0]
    matrix = materialised(model if fold else convolution, (4, 5, 5))
    assert layer.linf >= np.linalg.norm(matrix, np.inf) >= layer.linf * (1 - 1e-10)
    assert layer.l2_lower <= np.linalg.norm(matrix, 2) <= layer.l2_upper <= layer.l2_lower * 1.011
    assert layer.norm_reason is None
    assert layer.matrix_l2 != pytest.approx(layer.l2_upper, rel=1e-3)


def test_norms_that_are_not_known_say_why():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 9, 2))
    size = "a convolution's norm depends on the size of its input: give input_shape, and see that it is used"
    for options, reason in (
        ({}, size),
        ({"norms": False, "input_shape": (1, 5, 5)}, "not asked for (norms=False)"),
        ({"input_shape": (1, 5, 5)}, None),
    ):
        first, last = profile(model, **options).layers
        assert first.norm_reason == reason
        assert (first.linf is None, first.l2_lower is None, first.l2_upper is None, first.norm_method is None) == (
            (reason is not None,) * 4
        )
        assert last.norm_method == "the matrix itself"
    table = profile(nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 2))).layers[0]
    assert table.norm_reason == "an embedding looks rows up and multiplies nothing"
    assert table.l2_upper is None


def test_the_rank_tolerance_is_that_of_the_stored_weights():
    layer = nn.Linear(30, 20)
    assert profile(layer).layers[0].rank_tolerance == 30 * 2.0**-23
    assert profile(layer.half()).layers[0].rank_tolerance == 30 * 2.0**-10


def test_layers_side_by_side_give_the_same_record():
    model = nn.Sequential(*(nn.Linear(width, width) for width in (40, 50, 60)))
    alone = profile(model)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        beside = profile(model)
    finally:
        torch.set_num_threads(before)
    assert beside == alone
    assert [layer.name for layer in beside.layers] == ["0", "1", "2"]
    expected = {"0": 40, "1": 50, "2": 60}
    assert {name: len(sigma) for name, sigma in spectra(model).items()} == expected


def test_a_record_becomes_rows_a_frame_and_json():
    record = profile(_Attention())
    frame = record.frame()
    assert frame.shape[0] == len(record.layers) == 5
    assert frame["entrywise_pq_index"].to_list() == [layer.entrywise.pq_index for layer in record.layers]
    assert frame["head_n"].to_list() == [3, 3, 3, 3, None]
    assert all(isinstance(value, str | int | float | None) for row in record.rows() for value in row.values())
    assert type(record).model_validate_json(record.model_dump_json()) == record


def test_values_of_wide_layers_are_thinned_out_evenly():
    matrix = np.arange(1000.0, 0.0, -1.0)[:, None]
    view = profile(linear(matrix)).layers[0].neuron
    assert len(view.values) == len(view.ranks) == 256
    assert (view.ranks[0], view.ranks[-1]) == (1, 1000)
    assert set(np.diff(view.ranks)) <= {3, 4}
    assert view.values == pytest.approx([(1001 - rank) / 500500 for rank in view.ranks], rel=1e-12)


def test_k_is_the_ceiling_of_the_exact_share():
    layer = linear(make("random", 100, 100, 0))
    assert [profile(layer, k_share=share).layers[0].neuron.k for share in (0.001, 0.07, 0.28, 0.55, 1.0)] == [
        1,
        7,
        28,
        55,
        100,
    ]


def test_the_trained_network(trained):
    record = profile(trained)
    weights = [module.weight.detach().double().numpy() for module in trained if isinstance(module, nn.Linear)]
    assert len(record.layers) == len(weights) == 3
    for layer, matrix in zip(record.layers, weights, strict=True):
        check_view(layer.neuron, oracle.row_norms(matrix), 0.1, 0.1, 1.0)
        check_view(layer.spectral, oracle.singular_values(matrix), 0.1, 0.1, 1.0)
    assert [row["spectral_k"] for row in record.rows()] == [7, 7, 1]
    assert all("neuron_values" not in row for row in record.rows())


def test_what_is_skipped_stands_in_the_record():
    record = profile(nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3)))
    assert [(skipped.name, skipped.kind) for skipped in record.skipped] == [("1", "LayerNorm")]
    record = profile(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2)))
    assert [layer.name for layer in record.layers] == ["0", "2"]
    assert [(skipped.kind, skipped.parameters) for skipped in record.skipped] == [("BatchNorm1d", 6)]
    assert record.skipped[0].reason == "a diagonal, one number a channel: it has no rows or entries to leave out"


def test_what_is_refused():
    for share in (0.0, -0.1, 1.01, math.nan):
        with refused(ModelError, f"k_share lies in (0, 1], but got {share}; try 0.1."):
            profile(nn.Linear(2, 2), k_share=share)
    with refused(ModelError, "a target residual lies in [0, 1], but got 2.0; try 0.1."):
        profile(nn.Linear(2, 2), target=2.0)
