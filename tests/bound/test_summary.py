"""The sheet against its parts computed alone, NumPy, and enumeration; budgets kept; what cannot be bounded is named."""

from __future__ import annotations

import itertools
import math
import time

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from oracles.networks import ORDER, largest_over_masks, relu_network
from pinchpoint.bound import alignment, lipschitz, structure_scale, trace
from pinchpoint.bound.methods.lower import empirical, starting_points
from pinchpoint.bound.methods.product import find_norms, items_of
from pinchpoint.bound.network.runs import Run
from pinchpoint.bound.summary import sheet
from pinchpoint.errors import ModelError
from pinchpoint.records import BoundSheet

NORMS = ("l2", "linf")


def weights(*widths: int, seed: int = 0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((h, d)) / math.sqrt(d) for d, h in itertools.pairwise(widths)]


def uppers(network):
    return {bound.method: bound.value for bound in network.uppers}


def with_norm(torch_seed: int = 0) -> nn.Sequential:
    """Convolution, batch norm with statistics of its own, ReLU, pooling, head."""
    torch.manual_seed(torch_seed)
    norm = nn.BatchNorm2d(4)
    norm.running_mean.uniform_(-1, 1)
    norm.running_var.uniform_(0.2, 3)
    nn.init.uniform_(norm.weight, -2, 2)
    body = (nn.Conv2d(2, 4, 3, padding=1), norm, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3))
    return nn.Sequential(*body).eval()


@pytest.fixture(scope="module")
def dense() -> tuple[list[np.ndarray], BoundSheet]:
    matrices = weights(4, 5, 5, 3)
    return matrices, sheet(relu_network(matrices), budget_s=30.0)


@pytest.mark.parametrize("place", [0, 1])
def test_a_small_network_is_bracketed_by_every_method(dense, place):
    matrices, found = dense
    network, norm = found.networks[place], NORMS[place]
    truth_at_most = largest_over_masks(matrices, norm)
    by_method = uppers(network)
    expected = {"structure", "product", "alignment", "fast", "first-order"} | (
        {"equivalence"} if norm == "linf" else set()
    )
    assert by_method.keys() == expected
    assert network.norm == norm
    assert 0 < network.sampled <= network.lower <= truth_at_most * (1 + 1e-12)
    assert all(truth_at_most <= value * (1 + 1e-12) for value in by_method.values())
    assert by_method["first-order"] <= by_method["fast"] <= by_method["product"] <= by_method["structure"]
    assert by_method["alignment"] <= by_method["product"]
    assert network.upper == min(by_method.values()) == by_method[network.method]
    assert network.lower <= network.empirical * (1 + 1e-9) <= network.upper * (1 + 1e-9)
    assert network.reasons == {}
    product = math.prod(np.linalg.norm(matrix, ORDER[norm]) for matrix in matrices)
    assert by_method["product"] == pytest.approx(product, rel=1e-10)


@pytest.mark.parametrize("place", [0, 1])
def test_encoder_and_margins_are_certified_and_no_looser_than_by_products(dense, place):
    matrices, found = dense
    network, norm = found.networks[place], NORMS[place]
    dual = 1 if norm == "linf" else 2
    before = largest_over_masks(matrices[:-1], norm)
    product = math.prod(np.linalg.norm(matrix, ORDER[norm]) for matrix in matrices[:-1])
    assert before <= network.encoder * (1 + 1e-12) <= product * (1 + 1e-9)
    head = matrices[-1]
    differences = [head[y] - head[j] for y in range(3) for j in range(3) if y != j]
    true = [largest_over_masks([*matrices[:-1], row[None]], norm) for row in differences]
    loose = [np.linalg.norm(row, dual) * product for row in differences]
    assert max(true) <= network.margin_largest * (1 + 1e-12) <= max(loose) * (1 + 1e-9)
    assert np.median(true) <= network.margin_median * (1 + 1e-12) <= network.margin_largest * (1 + 1e-12)


def test_layers_and_pairs_are_what_they_are_alone(dense):
    matrices, found = dense
    assert [(layer.name, layer.kind, layer.matrix_shape) for layer in found.layers] == [
        ("0", "linear", (5, 4)),
        ("2", "linear", (5, 5)),
        ("4", "linear", (3, 5)),
    ]
    for layer, matrix in zip(found.layers, matrices, strict=True):
        assert (layer.rows, layer.columns, layer.reason) == (*matrix.shape, None)
        for bounds, norm in zip(layer.norms, NORMS, strict=True):
            alone = structure_scale(torch.from_numpy(matrix), norm)
            exact = np.linalg.norm(matrix, ORDER[norm])
            assert bounds.lower <= exact * (1 + 1e-14) <= bounds.upper * (1 + 2e-14)
            assert bounds.upper - bounds.lower <= 1e-12 * exact
            assert (bounds.norm, bounds.structure, bounds.scale, bounds.bound, bounds.k, bounds.k_row) == (
                norm,
                *(alone.structure, alone.scale, alone.bound, alone.k, alone.k_row),
            )
            assert bounds.scale == pytest.approx(np.linalg.norm(matrix))
    assert [(pair.norm, pair.first, pair.second) for pair in found.pairs] == [
        (norm, *names) for norm in NORMS for names in (("0", "2"), ("2", "4"))
    ]
    for pair in found.pairs:
        place = int(pair.first) // 2
        first, second = (torch.from_numpy(matrix) for matrix in matrices[place : place + 2])
        alone = alignment(first, second, pair.norm)
        shown = (pair.lower, pair.upper, pair.exact, pair.factor, pair.reason)
        assert shown == (alone.lower, alone.upper, alone.exact, alone.factor, None)


def test_k_is_that_of_every_layer_as_far_as_it_has_so_many_terms(dense):
    matrices, _ = dense
    found = sheet(relu_network(matrices), norms=["l2"], budget_s=0.0, k=4)
    assert [layer.norms[0].k for layer in found.layers] == [4, 4, 3]
    assert found.layers[2].norms[0].structure == structure_scale(torch.from_numpy(matrices[2]), "l2", 3).structure


def test_batch_norm_is_folded_and_theorem_31_is_about_the_filter_bank():
    model = with_norm()
    found = sheet(model, input_shape=(2, 6, 6), budget_s=1.0)
    layer = found.layers[0]
    assert (layer.name, layer.kind, layer.rows, layer.columns) == ("0", "conv2d", 4 * 36, 2 * 36)
    convolution, norm = model[0], model[1]
    factor = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().double()
    bank = convolution.weight.detach().double().flatten(1) * factor[:, None]
    assert layer.matrix_shape == tuple(bank.shape)
    x = torch.eye(72).reshape(72, 2, 6, 6)
    with torch.no_grad():
        linear = (model[:2](x) - model[:2](torch.zeros(1, 2, 6, 6))).flatten(1).double().numpy().T
    for bounds in layer.norms:
        true = np.linalg.norm(linear, ORDER[bounds.norm])
        assert bounds.lower * (1 - 1e-5) <= true <= bounds.upper * (1 + 1e-5)  # the model itself is float32
        assert bounds.bound == pytest.approx(structure_scale(bank, bounds.norm).bound, rel=1e-6)
        assert bounds.matrix_norm == pytest.approx(np.linalg.norm(bank.numpy(), ORDER[bounds.norm]), rel=1e-6)
    assert layer.norms[0].matrix_norm < 0.95 * layer.norms[0].lower, "one is not the other"


def test_what_does_not_fit_the_budget_says_so_and_the_product_is_always_there():
    matrices = weights(20, 400, 400, 3)
    found = sheet(relu_network(matrices), norms=["l2"], budget_s=0.0)
    (network,) = found.networks
    assert network.method == "product"
    reasons = {bound.method: bound.reason for bound in network.uppers}
    assert reasons.keys() == {"structure", "product", "alignment", "fast", "first-order"}
    assert reasons.pop("product") is None
    assert all(reason.endswith(" of the budget are left") for reason in reasons.values())
    assert all(pair.reason is not None and pair.factor == 1.0 for pair in found.pairs)
    assert 0 < network.lower <= network.upper


@pytest.mark.long
def test_the_budget_is_kept():
    model = relu_network(weights(50, 300, 300, 300, 10))
    begin = time.process_time()
    sheet(model, budget_s=2.0)
    assert time.process_time() - begin < 2 * 4  # on at most two cores, and as much again for what must be computed


def test_norms_side_by_side_are_those_one_by_one(monkeypatch):
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))

    def runs(network):
        return [item.part for item in items_of(network) if isinstance(item.part, Run)]

    alone = [run.norm("l2") for run in runs(trace(model, (3, 20, 20)))]
    network = trace(model, (3, 20, 20))
    assert not any(run.knows("l2") for run in runs(network))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    find_norms(items_of(network), "l2")
    assert all(run.knows("l2") for run in runs(network))
    assert [run.norm("l2") for run in runs(network)] == alone


# --- what cannot be bounded -----------------------------------------------------------------------------------------------


class Product(nn.Module):
    """x -> (A x)(B x), which no constant bounds."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)

    def forward(self, x):
        return self.left(x) * self.right(x)


def test_a_network_without_a_bound_names_what_is_in_the_way_and_gives_estimates_only():
    model = nn.Sequential(nn.Linear(5, 3), nn.Sequential(Product()), nn.Linear(4, 2))
    found = sheet(model, budget_s=1.0)
    (module,) = found.unbounded
    assert (module.name, module.kind) == ("1.0", "Product")
    assert module.reason == "mul: a product of two values that depend on the input is not globally Lipschitz"
    assert [layer.name for layer in found.layers] == ["0", "1.0.left", "1.0.right", "2"]
    for layer in found.layers:
        matrix = model.get_submodule(layer.name).weight.detach().double().numpy()
        for bounds in layer.norms:
            assert np.linalg.norm(matrix, ORDER[bounds.norm]) <= bounds.bound * (1 + 1e-12)
    assert found.pairs == []
    for network in found.networks:
        assert (network.lower, network.sampled, network.upper, network.method, network.encoder) == (None,) * 5
        assert network.uppers == []
        assert network.empirical > 0


@pytest.mark.parametrize("norm", NORMS)
def test_the_estimate_of_a_linear_map_is_close_to_its_norm_and_of_a_constant_zero(norm):
    (matrix,) = weights(6, 4, seed=3)
    network = trace(relu_network([matrix]))
    points = starting_points(network, None, 2)
    true = np.linalg.norm(matrix, ORDER[norm])
    found = empirical(network, points, norm)
    assert 0.98 * true <= found.quotient <= true * (1 + 1e-9)
    moved = matrix @ (found.b - found.a).numpy()[0]
    ratio = np.linalg.norm(moved, ORDER[norm]) / np.linalg.norm((found.b - found.a).numpy()[0], ORDER[norm])
    assert ratio == pytest.approx(found.quotient)
    assert empirical(trace(relu_network([0 * matrix])), points, norm).quotient == 0.0


def test_an_estimate_makes_one_step_where_there_is_no_time():
    network = trace(relu_network(weights(6, 5, 4)))
    points = starting_points(network, None, 2)
    assert 0 < empirical(network, points, "l2", seconds=0.0).quotient <= empirical(network, points, "l2").quotient


def test_no_head_and_one_logit_are_reasons():
    (whole,) = sheet(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), norms=["l2"], budget_s=0.0).networks
    assert whole.encoder is whole.margin_largest is whole.margin_median is None
    assert whole.reasons["encoder"] == (
        "an encoder and a head need a last fully connected layer that gives the logits, but got ReLU at '1' at the end; "
        "return logits from the model."
    )
    torch.manual_seed(2)  # both units are alive: a dead network has no lower bound to sharpen
    (whole,) = sheet(nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1)), norms=["l2"], budget_s=0.0).networks
    assert whole.encoder is not None
    assert whole.margin_largest is None
    assert whole.reasons.pop("lower").startswith("no ascent")  # without a budget
    assert whole.reasons == dict.fromkeys(("margin_largest", "margin_median"), "there is one logit only")


def test_numbers_beyond_float64_are_no_number_but_a_reason_and_a_zero_network_is_zero():
    apart = [np.diag([1e200, 0.0]), np.diag([0.0, 1e200])]  # what the first gives, the second does not read
    (network,) = sheet(relu_network(apart), norms=["l2"], budget_s=1.0).networks
    product = next(bound for bound in network.uppers if bound.method == "product")
    assert (product.value, product.reason) == (None, "larger than float64 can say")
    matrices = [1e160 * matrix for matrix in weights(3, 3, 3)]
    with pytest.raises(ModelError, match="finite answers, but got NaN or inf"):
        sheet(relu_network(matrices), norms=["l2"], budget_s=1.0)
    (network,) = sheet(relu_network([0 * matrix for matrix in matrices]), norms=["linf"], budget_s=1.0).networks
    assert (network.lower, network.upper) == (0.0, 0.0)


def test_a_record_survives_json(dense):
    _, found = dense
    assert BoundSheet.model_validate_json(found.model_dump_json()) == found


def test_the_network_of_lipschitz_is_the_same(dense):
    matrices, found = dense
    alone = lipschitz(relu_network(matrices), norm="l2", method="product")
    assert uppers(found.networks[0])["product"] == alone.upper


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"norms": []}, "bounds need at least one norm, but got none; write l2 or linf."),
        ({"norms": ["l1"]}, "norm must be one of linf, l2, but got l1; write linf or l2."),
        ({"budget_s": -1.0}, "budget_s must be zero or more seconds, but got -1.0; try 20."),
        ({"budget_s": math.nan}, "budget_s must be zero or more seconds, but got nan; try 20."),
        ({"k": 0}, "k must be at least 1, but got 0; leave it out for the tightest choice."),
    ],
)
def test_refusals(options, text):
    with refused(ModelError, text):
        sheet(relu_network(weights(3, 2)), **options)
