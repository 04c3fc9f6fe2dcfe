"""``pinchpoint.audit`` from Python: modules and tensors, a budget that is kept, what cannot be done."""

from __future__ import annotations

import time

import pytest
import torch
from torch import Tensor, nn

import pinchpoint
from oracles.as_user import refused
from pinchpoint.errors import ConfigError, DataError, ModelError
from pinchpoint.records import AuditReport


class Slow(nn.Module):
    """A small network that takes its time."""

    def __init__(self, seconds: float = 0.0) -> None:
        super().__init__()
        self.seconds = seconds
        self.network = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))

    def forward(self, x: Tensor) -> Tensor:
        time.sleep(self.seconds)
        logits: Tensor = self.network(x)
        return logits


@pytest.fixture(scope="module")
def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.rand(60, 1, 4, 4, generator=generator), torch.randint(3, (60,), generator=generator)


def quick(model: nn.Module, data: tuple[Tensor, Tensor], **more: object) -> AuditReport:
    found: AuditReport = pinchpoint.audit(
        model, data, ["l1:1.5"], samples=20, standard=False, **more
    )  # l1: no bounds to wait for
    return found


def test_tensors_are_judged_and_the_rest_of_them_fitted_on(samples):
    report = quick(Slow(), samples)
    assert (report.data.name, report.data.count, report.data.of) == ("tensors", 20, 20)
    assert report.threats[0].universal is not None
    assert report.subject.notes == ["a module is taken to expect pixels in [0, 1]"]
    alone = quick(Slow(), (samples[0][:20], samples[1][:20]))
    assert alone.threats[0].universal is None
    assert "universal l1:1.5" in [phase.name for phase in alone.phases if not phase.done]


def test_a_budget_is_kept_and_the_answer_is_whole(samples):
    torch.manual_seed(0)
    start = time.perf_counter()
    report = quick(Slow(0.002), samples, budget=4.0)
    took = time.perf_counter() - start
    assert took < 8.0  # what is had whatever the budget takes most of it
    assert report.budget == 4.0
    assert len(report.verdict) == 3
    assert report.pinch_points
    assert report.threats[0].robust.of == 20


def test_where_answers_take_the_time_fewer_samples_are_audited(samples, monkeypatch):
    monkeypatch.setattr("pinchpoint.attack.gradient._NUMBERS", 2 * 16)  # two samples in a pass
    torch.manual_seed(0)
    report = quick(Slow(0.05), samples, budget=1.0, against=Slow())
    count = report.data.count
    assert 2 <= count < 20
    assert report.clean.of == count >= report.threats[0].robust.of
    assert f"only the first {count} of 20 samples were audited: the time was up" in report.warnings
    assert report.other.data.count == 20
    assert report.comparison.rows[0].first.of == count


def test_two_models_of_one_class_are_told_apart(samples):
    report = quick(Slow(), samples, against=Slow())
    assert report.comparison is not None
    assert (report.comparison.first, report.comparison.second) == ("Slow", "the other Slow")


def test_under_a_budget_two_models_are_compared_where_both_faced_the_same(samples):
    torch.manual_seed(0)
    report = quick(Slow(0.004), samples, budget=4.0, against=Slow())
    (clean, *robust) = report.comparison.rows
    assert clean.attacks == ""
    for row in robust:
        assert row.attacks
        assert row.first.of == row.second.of <= min(report.threats[0].robust.of, report.other.threats[0].robust.of)
        assert report.comparison.said[1].endswith(f"Both faced {row.attacks}.")
    if not robust:
        assert "is not compared: no sample faced the same attacks of both" in report.comparison.said[1]


def test_without_a_budget_two_models_face_everything(samples):
    report = quick(Slow(), samples, against=Slow())
    row = report.comparison.rows[1]
    assert row.attacks.endswith(" on 20 samples")
    assert "quick" in row.attacks
    assert (row.first, row.second) == (report.threats[0].robust, report.other.threats[0].robust)


class Detached(Slow):
    """No gradient."""

    def forward(self, x):
        return super().forward(x).detach()


def test_a_model_without_gradient_is_attacked_all_the_same_and_it_is_said(samples):
    torch.manual_seed(0)
    model = Detached()
    plain = Slow()
    plain.load_state_dict(model.state_dict())
    y = model(samples[0]).argmax(1)
    blind, led = (quick(one, (samples[0], y)) for one in (model, plain))
    assert led.threats[0].robust.value < 0.7
    assert blind.threats[0].robust.value <= led.threats[0].robust.value + 0.1
    said = "the model is not differentiable in its input, so gradient attacks say nothing about it"
    assert f"{said}; attacks that need none were added" in blind.warnings
    assert not [warning for warning in led.warnings if "gradient" in warning]


def test_a_model_is_left_as_it_was(samples):
    model = Slow().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    quick(model, samples)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not model._forward_pre_hooks


def test_mistakes(samples):
    x, y = samples
    with refused(ConfigError, "an audit needs one sample or more, but got 0; use for example 1000."):
        pinchpoint.audit(Slow(), samples, samples=0)
    with refused(
        ConfigError, "an audit takes one threat or more, each norm once, but got none; give for example linf:8/255."
    ):
        pinchpoint.audit(Slow(), samples, [])
    with refused(DataError, "labels must be whole numbers from 0, but got -1; leave out what has no class."):
        pinchpoint.audit(Slow(), (x, y - 1))
    with refused(DataError, "there must be one label for each input, but got 60 inputs and 59 labels; check the data."):
        pinchpoint.audit(Slow(), (x, y[1:]))
    with pytest.raises(ModelError, match="a logit for each of the 3 classes"):
        pinchpoint.audit(nn.Sequential(nn.Flatten(), nn.Linear(16, 2)), samples)
