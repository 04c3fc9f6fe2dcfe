"""Attacks by name: against closed forms of linear models, what is written down, and what is refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import norm as gaussian
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat
from pinchpoint.errors import ConfigError, DataError, ThreatError
from pinchpoint.evaluate import Samples, attack_sheet, within
from pinchpoint.evaluate.named_attacks import Plan, write_sheet
from pinchpoint.records import AttackSheet

DUAL = {"linf": 1, "l2": 2, "l1": np.inf}


@dataclass(frozen=True)
class Linear:
    """Four classes told apart linearly, away from the box's edges; the distance of each sample to the boundary."""

    model: nn.Module
    data: Samples
    distance: dict[str, np.ndarray]

    def eps(self, norm: str) -> float:
        """The budget that half of the samples withstand."""
        return float(np.median(self.distance[norm]))


@pytest.fixture(scope="module")
def linear() -> Linear:
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(4, 12, generator=generator)
    weight -= weight.mean(1, keepdim=True)  # where the box's middle lies makes no difference
    model = nn.Linear(12, 4, bias=False)
    model.weight.data.copy_(weight)
    x = 0.5 + 0.16 * (torch.rand(60, 12, generator=generator) - 0.5)
    logits = (x.double() @ weight.double().T).numpy()
    y = logits.argmax(1)
    y[:4] = (y[:4] + 1) % 4  # wrong without attack
    gaps = logits[np.arange(60), y][:, None] - logits
    distance = {}
    for norm, dual in DUAL.items():
        apart = np.linalg.norm(weight.double().numpy()[None] - weight.double().numpy()[y][:, None], dual, axis=2)
        ratio = np.divide(gaps, apart, out=np.full_like(gaps, np.inf), where=apart > 0)
        distance[norm] = ratio.min(1).clip(0)
    return Linear(model, Samples(x, torch.tensor(y)), distance)


@pytest.mark.parametrize("norm", list(DUAL))
@pytest.mark.parametrize(
    "attack", [pytest.param("standard", marks=pytest.mark.slow), "quick", "apgd", "pgd", "fgsm", "square"]
)
def test_no_attack_goes_beyond_the_closed_form_and_the_ensembles_reach_it(linear, attack, norm):
    threat, exact = Threat(norm, linear.eps(norm)), linear.distance[norm]
    clear = np.abs(exact / threat.eps - 1) > 1e-3
    plan = Plan(attack, steps=100 if attack == "square" else None, checks=False)
    sheet = attack_sheet(linear.model, linear.data, [threat], plan)
    (found,) = sheet.threats
    fallen = np.array([stage != "survived" for stage in found.stage])
    assert 0.2 < (exact > threat.eps).mean() < 0.8
    assert not (fallen & clear & (exact > threat.eps)).any()
    if attack in ("standard", "quick"):  # every class is a target
        np.testing.assert_array_equal(fallen[clear], (exact <= threat.eps)[clear])
    assert found.stage[:4] == ["clean"] * 4
    assert found.robust_accuracy == pytest.approx(1 - fallen.mean())
    assert sheet.clean_accuracy == pytest.approx(56 / 60)
    assert sum(found.settled.values()) == sheet.samples == 60


def test_the_interval_is_wilsons(linear):
    (found,) = attack_sheet(linear.model, linear.data, [Threat("l2", 0.05)], Plan("fgsm")).threats
    z, n, p = gaussian.ppf(0.975), 60, found.robust_accuracy
    middle, half = (p + z**2 / (2 * n)) / (1 + z**2 / n), z / (1 + z**2 / n)
    half *= np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.robust_low, found.robust_high) == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize("norm", list(DUAL))
def test_the_curve_is_the_share_whose_distance_is_larger(linear, norm):
    (found,) = attack_sheet(
        linear.model, linear.data, [Threat(norm, 2 * linear.eps(norm))], Plan("apgd", curve=8, checks=False)
    ).threats
    assert [point.eps for point in found.curve] == pytest.approx([2 * linear.eps(norm) * k / 8 for k in range(1, 9)])
    for point in found.curve:
        assert (linear.distance[norm] > point.eps).mean() <= point.robust_accuracy
        assert point.robust_accuracy <= (linear.distance[norm] > 0.97 * point.eps).mean()
    assert found.curve[-1].robust_accuracy <= found.robust_accuracy


@pytest.mark.parametrize("norm", list(DUAL))
def test_what_is_certified_is_not_attacked(linear, norm):
    """The radius of a linear model is its distance to the boundary; in l1 the one in l2 is used, which is no larger."""
    threat = Threat(norm, linear.eps(norm))
    plan = Plan("apgd", certify_s=1.0, curve=4, checks=False)
    (found,) = attack_sheet(linear.model, linear.data, [threat], plan).threats
    radius = linear.distance["l2" if norm == "l1" else norm]
    certified = np.array([stage == "certified" for stage in found.stage])
    clear = np.abs(radius / threat.eps - 1) > 1e-3
    np.testing.assert_array_equal(certified[clear], (radius >= threat.eps)[clear])
    assert found.certified_accuracy == pytest.approx(certified.mean())
    assert found.certified_accuracy <= found.robust_accuracy
    assert all(point.certified_accuracy <= point.robust_accuracy for point in found.curve)


def test_a_universal_perturbation_is_fitted_on_other_data(linear):
    x, y = linear.data.x, linear.data.y
    data, threat = Samples(x[:30], y[:30], (x[30:], y[30:])), Threat("linf", 0.05)
    sheet = attack_sheet(linear.model, data, [threat], Plan("universal", steps=50))
    (found,) = sheet.threats
    assert (sheet.fitted_on, sheet.samples, sheet.steps) == (30, 30, 50)
    assert set(found.stage) <= {"clean", "universal", "survived"}
    wrong = [stage == "universal" for stage in found.stage]
    own = attack_sheet(linear.model, data, [threat], Plan("apgd", checks=False)).threats[0]
    assert 0 < sum(wrong) <= own.settled.get("apgd-ce", 0) + own.settled.get("apgd-dlr", 0)


def test_examples_and_record_are_written(linear, tmp_path):
    threats = [Threat("linf", 0.02), Threat("l2", 0.05)]
    sheet = attack_sheet(linear.model, linear.data, threats, Plan("quick", checks=False), out=tmp_path)
    assert AttackSheet.model_validate_json(write_sheet(sheet, tmp_path).read_text()) == sheet
    names = {"linf-0.02.safetensors", "l2-0.05.safetensors"}
    assert {path.name for path in tmp_path.iterdir()} == names | {"attack.json"}
    for threat, found in zip(threats, sheet.threats, strict=True):
        with safe_open(found.examples, framework="pt") as file:
            adversarial, fallen, header = file.get_tensor("adversarial"), file.get_tensor("fallen"), file.metadata()
        assert (header["norm"], float(header["eps"])) == (threat.norm, threat.eps)
        assert within(adversarial, linear.data.x, threat).all()
        assert torch.equal(linear.model(adversarial).argmax(1) != linear.data.y, fallen)
        assert fallen.tolist() == [stage != "survived" for stage in found.stage]


def test_what_was_interrupted_goes_on_to_the_same_end(linear, tmp_path):
    def stop(now: object) -> None:
        if now.stage == "apgd-dlr":
            raise KeyboardInterrupt

    threat, plan = Threat("linf", 0.02), Plan("apgd", checks=False, batch_size=20)
    with pytest.raises(KeyboardInterrupt):
        attack_sheet(linear.model, linear.data, [threat], plan, out=tmp_path, watcher=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["linf-0.02.state.safetensors"]
    seen = []
    resumed = attack_sheet(
        linear.model, linear.data, [threat], plan, out=tmp_path, watcher=lambda p: seen.append(p.stage)
    )
    assert "apgd-ce" not in seen
    whole = attack_sheet(linear.model, linear.data, [threat], plan)
    assert resumed.threats[0].stage == whole.threats[0].stage
    assert [path.name for path in tmp_path.iterdir()] == ["linf-0.02.safetensors"]


def test_masked_gradients_are_a_warning(linear):
    class Rounded(nn.Module):
        def forward(self, x):
            return linear.model((x * 16).round() / 16)

    (found,) = attack_sheet(Rounded(), linear.data, [Threat("linf", 0.02)], Plan("apgd")).threats
    assert any(warning.startswith("the gradient is zero at ") for warning in found.warnings)
    (found,) = attack_sheet(Rounded(), linear.data, [Threat("linf", 0.02)], Plan("apgd", checks=False)).threats
    assert found.warnings == ["the gradient is zero at 8 of 8 samples"]  # that much is looked at in any case


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"attack": "cw"},
            "attack must be one of standard, quick, apgd, pgd, fgsm, square, universal, but got cw; write one of these.",
        ),
        (
            {"attack": "standard", "steps": 10},
            "steps can be chosen for apgd, pgd, square, universal, but got 10; leave them out for standard.",
        ),
        ({"attack": "pgd", "steps": 0}, "an attack needs one step or more, but got 0; leave them out for 40."),
        ({"curve": -1}, "a curve has zero budgets or more, but got -1; use for example 20."),
        ({"certify_s": -1.0}, "certifying takes zero seconds or more, but got -1.0; use for example 10."),
    ],
)
def test_plans_that_make_no_sense(options, text):
    with refused(ConfigError, text):
        Plan(**options)


def test_what_is_refused(linear):
    model, data = linear.model, linear.data
    with refused(ThreatError, "an attack needs a threat, but got none; give for example linf:8/255."):
        attack_sheet(model, data, [])
    twice = [Threat("linf", 0.02), Threat("linf", 0.02)]
    with refused(ThreatError, "each threat is attacked once, but got linf:0.02, linf:0.02; leave out the second."):
        attack_sheet(model, data, twice)
    with refused(
        ConfigError, "a universal perturbation is fitted on other data, but got none; give training data as fit."
    ):
        attack_sheet(model, data, twice[:1], Plan("universal"))
    with pytest.raises(DataError):
        attack_sheet(model, Samples(data.x + 1.0, data.y), twice[:1])


@pytest.mark.parametrize("name", ["standard", "quick", "apgd"])
@pytest.mark.parametrize("checks", [True, False])
def test_a_model_without_a_gradient_is_attacked_without_and_it_is_said(trained, digits, name, checks):
    class Detached(nn.Module):
        def forward(self, x):
            return trained(x).detach()

    x, y = digits.x_test[:12], digits.y_test[:12]
    plan = Plan(name, curve=2, checks=checks)
    (found,) = attack_sheet(Detached(), Samples(x, y), [Threat("linf", 0.1)], plan).threats
    said = "the model is not differentiable in its input, so gradient attacks say nothing about it"
    assert said in found.warnings
    assert found.robust_accuracy < 0.5
    assert found.curve[0].robust_accuracy >= found.curve[-1].robust_accuracy
