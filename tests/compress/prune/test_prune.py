"""Scores, masks, truncation and steps of pruning, against NumPy and by hand."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from oracles.as_user import refused
from pinchpoint.compress.prune import KeepPruned, prune
from pinchpoint.compress.prune.criteria import unit_scores
from pinchpoint.compress.prune.units import rows
from pinchpoint.errors import ConfigError, ModelError


def network(seed=0):
    """Two convolutions, the first with a batch norm, and two fully connected layers; nothing is fresh."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(2, 10, 3),
            nn.BatchNorm2d(10),
            nn.ReLU(),
            nn.Conv2d(10, 6, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24, 8),
            nn.Tanh(),
            nn.Linear(8, 3),
        )
        norm = model[1]
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model.eval()


SHAPE = (2, 6, 6)


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_scores_are_row_norms_and_biases_decide_what_is_zero(criterion, power):
    model = network()
    with torch.no_grad():
        model[1].weight[2] = model[1].bias[2] = 0.0  # whatever its filter, it says nothing
        model[0].weight[5] = 0.0  # a constant, which batch norm makes of its bias
        model[3].weight[1] = 0.0  # zero weights, but a bias
        model[6].weight[4] = model[6].bias[4] = 0.0
    found = unit_scores(model, rows(model, {"1": "0"}, "8", ()).groups, {"1": "0"}, criterion)
    conv, norm = model[0], model[1]
    w, b, gamma, beta, mean, var = (
        tensor.detach().double().numpy()
        for tensor in (conv.weight, conv.bias, norm.weight, norm.bias, norm.running_mean, norm.running_var)
    )
    expected = np.linalg.norm(w.reshape(10, -1), ord=power, axis=1)
    expected[2] = 0.0
    expected[5] = abs(gamma[5] * (b[5] - mean[5]) / np.sqrt(var[5] + norm.eps) + beta[5])
    np.testing.assert_allclose(found["0"].numpy(), expected, rtol=1e-12)
    w, b = (tensor.detach().double().numpy() for tensor in (model[6].weight, model[6].bias))
    np.testing.assert_allclose(found["6"].numpy(), np.linalg.norm(np.c_[w, b], ord=power, axis=1), rtol=1e-12)
    assert found["3"][1] == pytest.approx(abs(model[3].bias[1].item()))
    assert (found["6"] == 0).nonzero().flatten().tolist() == [4]


def test_rows_are_zeroed_with_their_biases_and_batch_norm():
    model = network()
    found = prune(model, 0.5, input_shape=SHAPE, unit="rows", allocation="uniform")
    assert [(layer.name, layer.units, layer.kept) for layer in found.report.layers] == [
        ("0", 10, 5),
        ("3", 6, 3),
        ("6", 8, 4),
    ]
    pruned = found.model
    outputs = pruned[:2](torch.rand(4, *SHAPE)).abs().amax((0, 2, 3))
    assert int((outputs == 0).sum()) == 5
    assert int((pruned[6].weight.abs().sum(1) + pruned[6].bias.abs() == 0).sum()) == 4
    assert torch.equal(pruned[8].weight, model[8].weight)
    scores = unit_scores(model, rows(model, {"1": "0"}, "8", ()).groups, {"1": "0"})["0"]
    assert set((outputs == 0).nonzero().flatten().tolist()) == set(scores.argsort()[:5].tolist())


@pytest.mark.parametrize("unit", ["filters", "rows", "entries"])
def test_training_does_not_revive_what_was_pruned(unit):
    model = network()
    found = prune(model, 0.5, input_shape=SHAPE, unit=unit, remove=False)
    pruned = found.model.train()
    zero = {name: (p == 0) & (model.get_parameter(name) != 0) for name, p in pruned.named_parameters()}
    optimizer = torch.optim.AdamW(pruned.parameters(), lr=0.05)
    x, y = torch.rand(32, *SHAPE), torch.randint(0, 3, (32,))
    revived = 0
    for _ in range(5):
        nn.functional.cross_entropy(pruned(x), y).backward()
        optimizer.step()
        with (
            torch.no_grad()
        ):  # as a penalty or noise may: filters with their columns gone have no gradient of their own
            for parameter in pruned.parameters():
                parameter.add_(0.01)
        revived += sum(int((p[zero[name]] != 0).sum()) for name, p in pruned.named_parameters())
        found.keep(pruned)
        assert all(bool((p[zero[name]] == 0).all()) for name, p in pruned.named_parameters())
    assert revived > 0  # without the masks it would have
    assert any(not torch.equal(p, model.get_parameter(name)) for name, p in pruned.named_parameters())


def test_singular_values_are_truncated_to_the_best_approximation():
    model = network()
    found = prune(model, 0.4, input_shape=SHAPE, unit="singular values", allocation="residual", q=2.0)
    total, kept = 0, 0
    for layer in found.report.layers:
        matrix = model.get_submodule(layer.name).weight.detach().flatten(1).double().numpy()
        u, sigma, vt = np.linalg.svd(matrix, full_matrices=False)
        best = (u[:, : layer.kept] * sigma[: layer.kept]) @ vt[: layer.kept]
        got = found.model.get_submodule(layer.name).weight.detach().flatten(1).numpy()
        np.testing.assert_allclose(got, best, atol=1e-6)
        left = np.sqrt((sigma[layer.kept :] ** 2).sum() / (sigma**2).sum())
        assert layer.residual == pytest.approx(left, abs=1e-9)
        assert left <= found.report.threshold + 1e-9
        total, kept = total + layer.units, kept + layer.kept
    assert [layer.name for layer in found.report.layers] == ["0", "3", "6", "8"]
    assert kept == total - round(0.4 * total)


def test_entries_are_the_smallest_of_all_layers():
    model = network()
    found = prune(model, 0.7, input_shape=SHAPE, unit="entries", allocation="global", keep=("8",))
    weights = {name: model.get_submodule(name).weight.detach().numpy() for name in ("0", "3", "6")}
    together = np.sort(np.abs(np.concatenate([w.ravel() for w in weights.values()])))
    threshold = together[round(0.7 * len(together)) - 1]
    for name, w in weights.items():
        expected = np.where(np.abs(w) > threshold, w, 0.0)
        np.testing.assert_array_equal(found.model.get_submodule(name).weight.detach().numpy(), expected)
    assert torch.equal(found.model[8].weight, model[8].weight)
    assert found.report.parameters_after == found.report.parameters_before - round(0.7 * len(together))


@pytest.mark.parametrize("unit", ["filters", "rows", "heads", "entries", "singular values"])
@pytest.mark.parametrize("allocation", ["uniform", "global", "residual"])
def test_every_unit_with_every_allocation_meets_its_ratio(unit, allocation):
    class Small(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(16, num_heads=8, batch_first=True)
            self.first, self.second, self.head = nn.Linear(16, 20), nn.Linear(20, 12), nn.Linear(12, 3)

        def forward(self, x):
            mixed = self.attention(x, x, x, need_weights=False)[0].mean(1)
            return self.head(torch.relu(self.second(torch.relu(self.first(mixed)))))

    torch.manual_seed(0)
    found = prune(Small(), 0.3, input_shape=(4, 16), unit=unit, allocation=allocation, remove=False)
    units = sum(layer.units for layer in found.report.layers)
    assert abs(found.report.met - 0.3) * units <= 0.5 + 1e-9
    assert all(layer.kept >= 1 for layer in found.report.layers)
    assert found.model(torch.rand(2, 4, 16)).isfinite().all()


@pytest.mark.parametrize("unit", ["filters", "rows", "entries", "singular values"])
def test_a_ratio_of_parameters(unit):
    model = network()
    found = prune(model, 0.5, input_shape=SHAPE, unit=unit, count="parameters").report
    whole = sum(p.numel() for p in model.parameters())
    assert found.parameters_before == whole
    assert found.met == pytest.approx(1 - found.parameters_after / whole)
    assert abs(found.met - 0.5) * whole <= 24 + 8 + 10  # the largest unit has fewer parameters
    if unit == "filters":
        assert found.parameters_after == sum(
            p.numel() for p in prune(model, 0.5, input_shape=SHAPE, count="parameters").model.parameters()
        )


def test_steps_prune_a_share_of_what_is_left_and_fine_tune_between():
    seen = []

    def fine_tune(model, after_step):
        seen.append(sum(int((p.abs().sum(1) > 0).sum()) for p in (model[0].weight.flatten(1), model[6].weight)))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)), alpha=0.1)
        after_step(model)

    model = network()
    found = prune(model, 0.75, input_shape=SHAPE, allocation="uniform", steps=2, fine_tune=fine_tune)
    assert seen == [9, 4]  # of 10 + 8: half; then a quarter, rounded
    assert found.report.steps == 2
    assert found.report.met == 0.75
    assert found.model[0].weight.shape[0] + found.model[3].weight.shape[0] + found.model[6].weight.shape[0] == 6
    assert found.keep.masks == {}


def test_units_once_pruned_stay_pruned_in_later_steps():
    gone = []

    def fine_tune(model, after_step):
        zero = {
            (name, i) for name in ("0", "3", "6") for i, r in enumerate(model.get_submodule(name).weight) if not r.any()
        }
        gone.append(zero)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(-3.0).add_(0.1)
        after_step(model)

    prune(network(), 0.6, input_shape=SHAPE, unit="rows", steps=4, fine_tune=fine_tune)
    assert [len(zero) for zero in gone] == sorted(len(zero) for zero in gone)
    assert all(before <= after for before, after in pairwise(gone))
    assert len(gone[-1]) == round(0.6 * 24)


def test_the_same_call_gives_the_same_network_and_leaves_the_rng_alone():
    before = torch.random.get_rng_state()
    first, second = (prune(network(), 0.5, input_shape=SHAPE).model.state_dict() for _ in range(2))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_weights_that_are_computed_are_left_alone():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 6)), nn.Linear(6, 5), nn.Linear(5, 2))
    found = prune(model, 0.5, input_shape=(4,), unit="rows").report
    assert [layer.name for layer in found.layers] == ["1"]
    assert found.left[0].reason == "its weight is computed from others; remove the parametrisation"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"ratio": 1.0}, "a pruning ratio lies in [0, 1), but got 1.0; 0.5 removes half of the units."),
        ({"keep": ("conv1",)}, "keep must name layers of the model, but got conv1; use names such as 0, 1, 2."),
        (
            {"unit": "columns"},
            "unit must be one of filters, rows, heads, singular values, entries, but got columns; choose one.",
        ),
        ({"count": "bytes"}, "count must be one of units, parameters, but got bytes; choose one."),
        ({"criterion": "l3"}, "criterion must be one of l1, l2, but got l3; choose one."),
        ({"steps": 0}, "pruning takes one step or more, but got 0; use steps=1."),
        (
            {"unit": "rows", "remove": True},
            "only filters and heads can be removed, but got rows; leave remove out, or use unit='filters'.",
        ),
        (
            {"unit": "singular values", "fine_tune": lambda model, after_step: None},
            "truncated matrices would regain their rank in training, so they are not fine-tuned, but got fine_tune; "
            "train the low-rank layers of pinchpoint.compress.factorize instead.",
        ),
    ],
)
def test_options_that_make_no_sense(options, text):
    with refused(ConfigError, text):
        prune(network(), **{"ratio": 0.5, "input_shape": SHAPE, **options})


def test_models_that_cannot_be_pruned():
    with refused(
        ModelError,
        "a model must have a layer that can be pruned by filters, but got none (0: its rows are the network's outputs); "
        "choose another unit.",
    ):
        prune(nn.Sequential(nn.Linear(4, 3)), 0.5, input_shape=(4,))
    with refused(
        ModelError, "a model must have a layer that can be pruned by heads, but got none; choose another unit."
    ):
        prune(network(), 0.5, input_shape=SHAPE, unit="heads")
    with pytest.raises(ModelError, match=r"the model must run on an input of shape \(3, 6, 6\), but got"):
        prune(network(), 0.5, input_shape=(3, 6, 6))


def test_masks_belong_to_the_model_they_were_made_from():
    keep = KeepPruned({"weight": [torch.tensor([[True, False]])]})
    with refused(ModelError, "the model must be the one that was pruned, but got no parameter weight; make anew."):
        keep(nn.Sequential(nn.Linear(2, 1)))
