"""One model, one record: complete, consistent with itself, and honest about what could not be done."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from oracles.whole_audit import audit
from pinchpoint.attack import Threat
from pinchpoint.auditing.config import AuditConfig, ThreatConfig
from pinchpoint.evaluate import accuracy, adversarial_loss
from pinchpoint.records import Audit

CONFIG = AuditConfig(
    threats=(
        ThreatConfig(norm="linf", eps=0.05, curve=(0.1, 0.0, 0.005, 0.02)),
        ThreatConfig(norm="l2", eps=0.3, curve=(0.3, 0.05), universal_eps=0.9),
    ),
    steps=15,
    curve_steps=6,
    universal_steps=20,
    samples=100,
    jacobian_samples=3,
    bound_steps=20,
)


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def record(trained, digits, stages):
    return audit(trained, digits, CONFIG, seed=1, on_stage=stages.append)


def test_the_record_is_complete(record, trained, digits, stages):
    x, y = digits.x_test[:100], digits.y_test[:100]
    assert record.samples == 100
    assert record.clean_accuracy == accuracy(trained, x, y)
    assert [layer.name for layer in record.profile.layers] == ["1", "3", "5"]
    assert [bounds.norm for bounds in record.bounds] == ["linf", "l2"]
    assert [result.norm for result in record.robustness] == ["linf", "l2"]
    assert [mechanism.norm for mechanism in record.mechanism] == ["linf", "l2"]
    assert [[layer.name for layer in bounds.layers] for bounds in record.bounds] == [["1", "3", "5"]] * 2
    assert [[layer.name for layer in mechanism.layers] for mechanism in record.mechanism] == [["1", "3", "5"]] * 2
    assert record.warnings == []
    assert list(record.seconds) == stages
    assert stages[0] == "profile"
    steps = ("bound", "attack", "universal", "mechanism")
    assert set(stages[1:]) == {f"{kind} {norm}" for kind in steps for norm in ("linf", "l2")}
    assert all(seconds >= 0 for seconds in record.seconds.values())


def test_curves_hold_the_judged_budget_and_never_rise(record):
    assert [[point.eps for point in result.curve] for result in record.robustness] == [
        [0.0, 0.005, 0.02, 0.05, 0.1],
        [0.05, 0.3],
    ]
    for result in record.robustness:
        accuracies = [point.robust_accuracy for point in result.curve]
        assert accuracies == sorted(accuracies, reverse=True)
        (judged,) = (point for point in result.curve if point.eps == result.eps)
        assert judged.robust_accuracy == result.robust_accuracy
        assert result.robust_accuracy < record.clean_accuracy
        assert result.robust_over_clean == pytest.approx(result.robust_accuracy / record.clean_accuracy)
        assert sum(result.settled.values()) == 100
        assert result.settled["survived"] == round(100 * result.robust_accuracy)
    assert record.robustness[0].curve[0].robust_accuracy == record.clean_accuracy


def test_certificates_stay_below_attacks_and_bounds_above_gaps(record):
    certified = []
    for result, bounds in zip(record.robustness, record.bounds, strict=True):
        for point in result.curve:
            assert point.certified_accuracy <= point.robust_accuracy
            certified.append(point.certified_accuracy)
        assert 0 < result.gap <= result.gap_bound
        assert result.gap == pytest.approx(result.adversarial_loss - result.clean_loss)
        assert result.gap_bound <= result.eps * bounds.lipschitz * bounds.head_factor * (1 + 1e-12)
        assert 0 < bounds.lipschitz_lower <= bounds.lipschitz <= bounds.lipschitz_product <= bounds.lipschitz_structure
        assert bounds.median_radius > 0
    assert max(certified) > 0, "nothing certified compares nothing"


def test_lipschitz_constants_against_numpy(record, trained):
    weights = [trained[i].weight.detach().double().numpy() for i in (1, 3)]
    for bounds, order in zip(record.bounds, (np.inf, 2), strict=True):
        product = np.prod([np.linalg.norm(w, order) for w in weights])
        assert bounds.lipschitz_product == pytest.approx(product, rel=1e-9)
        assert bounds.lipschitz <= bounds.lipschitz_product
    assert record.bounds[1].lipschitz < 0.99 * record.bounds[1].lipschitz_product, "ellipsoids beat the product in l2"


def test_universal_accuracy_is_judged_at_its_own_budget(record, trained, digits):
    assert all(result.universal_accuracy <= record.clean_accuracy for result in record.robustness)
    smaller = CONFIG.model_copy(update={"threats": (CONFIG.threats[1].model_copy(update={"universal_eps": None}),)})
    (l2,) = audit(trained, digits, smaller, seed=1).robustness
    assert record.robustness[1].universal_accuracy < l2.universal_accuracy
    assert (record.robustness[1].universal_eps, l2.universal_eps) == (0.9, l2.eps)


def test_amplification_is_that_of_the_heads_input(record, trained, digits):
    x, y = digits.x_test[:100], digits.y_test[:100]
    _, where = adversarial_loss(trained, x, y, Threat("l2", 0.3), steps=15, seed=1)
    moved = (where != x).flatten(1).any(1)
    z, z_adv = (trained[:5](points[moved]).detach().double().numpy() for points in (x, where))
    expected = (np.linalg.norm(z_adv - z, axis=1) / np.linalg.norm(z, axis=1)).mean()
    assert record.mechanism[1].amplification == pytest.approx(expected, rel=1e-5)
    for mechanism, result in zip(record.mechanism, record.robustness, strict=True):
        assert mechanism.eps == result.eps
        assert 0 < mechanism.amplification < 10
        assert all(0 < layer.alignment <= 1 + 1e-9 for layer in mechanism.layers)
        assert [layer.baseline for layer in mechanism.layers] == pytest.approx(
            [math.sqrt(7 / 64), math.sqrt(7 / 64), math.sqrt(1 / 64)]
        )


def test_the_record_goes_through_json(record):
    assert Audit.model_validate_json(record.model_dump_json()) == record


def test_same_seed_same_record(record, trained, digits):
    again = audit(trained, digits, CONFIG, seed=1)
    assert again.model_copy(update={"seconds": {}}) == record.model_copy(update={"seconds": {}})


def test_model_and_global_rng_stay_as_they_were(trained, digits):
    state = {name: tensor.clone() for name, tensor in trained.state_dict().items()}
    rng, dtype = torch.random.get_rng_state(), next(trained.parameters()).dtype
    trained.zero_grad(set_to_none=True)
    audit(trained, digits, quick())
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert next(trained.parameters()).dtype == dtype
    assert all(parameter.grad is None for parameter in trained.parameters())
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, state[name])


def quick():
    return AuditConfig(
        threats=(ThreatConfig(norm="linf", eps=0.05, curve=(0.02,)),),
        steps=5,
        curve_steps=3,
        universal_steps=3,
        samples=40,
        jacobian_samples=2,
        bound_steps=2,
    )


class Square(nn.Module):
    """Not globally Lipschitz."""

    def forward(self, x):
        return x * x


def test_a_model_that_cannot_be_bounded_is_attacked_all_the_same(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.LayerNorm(16), Square(), nn.Linear(16, 10))
    result = audit(model, digits, quick())
    assert result.bounds == []
    (linf,) = result.robustness
    assert linf.gap > 0
    assert linf.gap_bound is None
    assert [point.certified_accuracy for point in linf.curve] == [None, None]
    assert len(result.mechanism) == 1
    skipped, unbounded = result.warnings
    assert skipped.startswith("not measured: LayerNorm at '2'")
    assert unbounded.startswith("not bounded in linf: ")
    assert "got mul in Square at '3' (a product of two values" in unbounded
    assert Audit.model_validate_json(result.model_dump_json()) == result


def test_a_convolution_is_bounded_too(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    result = audit(model, digits, quick())
    (linf,) = result.bounds
    filters = model[0].weight.detach().double().abs().sum((1, 2, 3)).max()
    head = model[3].weight.detach().double()
    assert linf.lipschitz_product == pytest.approx(float(filters), rel=1e-9)  # of the encoder: a valid convolution
    assert result.robustness[0].gap_bound <= 0.05 * float(filters) * float((head[:, None] - head).abs().sum(2).max())
    assert [layer.name for layer in linf.layers] == ["0", "3"]
    assert result.warnings == []


def test_a_model_whose_gradient_is_dead_has_no_mechanism(digits):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16, bias=False), nn.ReLU(), nn.Linear(16, 10, bias=False))
    nn.init.constant_(model[1].weight, -1.0)  # every unit is off on [0, 1]
    result = audit(model, digits, quick())
    assert result.mechanism == []
    assert result.warnings == [
        "no mechanism in linf: at least one perturbed input must differ from the input, but got none; use a larger "
        "budget."
    ]
    assert result.robustness[0].gap == 0
    assert result.clean_accuracy == pytest.approx(float((digits.y_test[:40] == 0).double().mean()))


def test_all_samples_where_none_are_left_out(trained, digits):
    small = dataclasses.replace(digits, x_test=digits.x_test[:23], y_test=digits.y_test[:23])
    assert audit(trained, small, quick().model_copy(update={"samples": None})).samples == 23


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"threats": []}, "threats must name at least one norm, and each once"),
        ({"threats": [{"norm": "l2", "eps": 1}, {"norm": "l2", "eps": 2}]}, r"each once, but got \['l2', 'l2'\]"),
        ({"threats": [{"norm": "l0", "eps": 1}]}, "Input should be 'linf', 'l2' or 'l1'"),
        ({"threats": [{"norm": "l2", "eps": -1}]}, "greater than or equal to 0"),
        (
            {"threats": [{"norm": "l2", "eps": 1, "curve": [0.1, -0.5]}]},
            "eps must be zero or more, and finite in float32",
        ),
        (
            {"threats": [{"norm": "l2", "eps": 1, "universal_eps": -2}]},
            "eps must be zero or more, and finite in float32",
        ),
        ({"threats": [{"norm": "l2", "eps": 1, "universal_eps": float("nan")}]}, "eps must be zero or more"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"k_share": 0}, "greater than 0"),
        ({"step": 10}, "Extra inputs are not permitted"),
    ],
)
def test_configurations_that_make_no_sense(config, text):
    with pytest.raises(ValidationError, match=text):
        AuditConfig.model_validate(config)


def test_a_model_in_training_mode_is_audited_in_eval_mode(digits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
    resting = audit(model.eval(), digits, quick()).model_copy(update={"seconds": {}})
    model.train()
    assert audit(model, digits, quick()).model_copy(update={"seconds": {}}) == resting
    assert all(module.training for module in model.modules())
