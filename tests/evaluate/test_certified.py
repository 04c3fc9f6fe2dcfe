"""Certified samples under attack: true certificates withstand, false ones stop with a sentence that asks for a report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import pinchpoint
from pinchpoint.attack import Threat
from pinchpoint.auditing import steps
from pinchpoint.errors import ContradictionError
from pinchpoint.evaluate import Samples, attack_certified, attack_sheet, named_attacks
from pinchpoint.evaluate.certified import chosen
from pinchpoint.evaluate.named_attacks import Plan


@pytest.fixture
def linear() -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """Two classes told apart by the first pixel; in l_inf, radii are distances from one half."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0, 0, 0], [-1.0, 0, 0, 0]]))
        model[1].bias.copy_(torch.tensor([-0.5, 0.5]))
    x = torch.rand(40, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x[:, 0, 0, 0] = torch.where(x[:, 0, 0, 0] > 0.5, 0.8, 0.2)
    return model.eval(), x, (x[:, 0, 0, 0] < 0.5).long(), torch.full((40,), 0.3)


def test_a_share_is_drawn_by_the_seed_among_what_is_certified():
    certified = torch.arange(600) % 2 == 0
    rows = chosen(certified, seed=1)
    assert len(rows) == 30
    assert bool(certified[rows].all())
    assert torch.equal(rows, chosen(certified, seed=1))
    assert not torch.equal(rows, chosen(certified, seed=2))
    assert len(chosen(torch.zeros(5, dtype=torch.bool))) == 0


def test_true_certificates_withstand_and_false_ones_ask_for_a_report(linear):
    model, x, y, radii = linear
    assert attack_certified(model, x, y, Threat("linf", 0.29), radii) == 40
    with pytest.raises(ContradictionError, match=rf"certified up to 0.45.*pinchpoint {pinchpoint.__version__}"):
        attack_certified(model, x, y, Threat("linf", 0.4), radii * 1.5)


def test_what_falls_beyond_its_radius_contradicts_nothing(linear):
    model, x, y, radii = linear
    assert attack_certified(model, x, y, Threat("linf", 0.4), radii) == 40


def test_the_sheet_tells_how_many_and_stops_at_a_false_bound(linear, monkeypatch):
    model, x, y, radii = linear
    plan = Plan("quick", certify_s=1.0, checks=False)
    assert attack_sheet(model, Samples(x, y), [Threat("linf", 0.2)], plan).threats[0].certified_attacked == 16
    monkeypatch.setattr(named_attacks, "radii_from_margins", lambda *args: 2 * radii)
    with pytest.raises(ContradictionError, match="please report"):
        attack_sheet(model, Samples(x, y), [Threat("linf", 0.5)], plan)


def test_an_audit_tells_how_many_and_stops_at_a_false_bound(linear, monkeypatch):
    model, x, y, radii = linear
    report = pinchpoint.audit(model, (x, y), ["linf:0.2"], standard=False)
    assert report.threats[0].certified_attacked == 16
    monkeypatch.setattr(steps, "radii_from_margins", lambda logits, *rest: 2 * radii[: len(logits)].double())
    with pytest.raises(ContradictionError, match="please report"):
        pinchpoint.audit(model, (x, y), ["linf:0.5"], standard=False)
