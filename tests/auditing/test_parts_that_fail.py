"""An audit that can attack goes on where a part of it cannot be had, and says why; a figure that fails costs that figure."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import pinchpoint
from pinchpoint.auditing import steps
from pinchpoint.data.load import Dataset
from pinchpoint.errors import PinchpointWarning
from pinchpoint.report.audit import print_decisions
from pinchpoint.report.audit.files import read, write


class Casts(nn.Module):
    """Half precision inside."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).to(torch.bfloat16)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.body(x.to(torch.bfloat16)).float()
        return logits


def plain(outputs: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, outputs))


def test_one_sample_is_audited_without_axes():
    x = torch.rand(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    model = plain()
    report = pinchpoint.audit(model, (x, model(x).argmax(1)), ["linf:0.05"], standard=False)
    assert report.data.count == 1
    assert all(item.pca.labels == [] for item in report.pictures)


def test_half_precision_inside_is_attacked_and_what_is_left_out_is_said():
    torch.manual_seed(0)
    x, model = torch.rand(12, 1, 4, 4), Casts().eval()
    report = pinchpoint.audit(model, (x, model(x).argmax(1)), ["linf:0.05"], standard=False)
    assert report.threats[0].robust.of == 12
    assert any(line.startswith("operator norms of convolutions are left out") for line in report.warnings)


def test_more_outputs_than_classes_are_carried_through_and_a_failing_figure_costs_itself(tmp_path: Path, monkeypatch):
    x, model = torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(1)), plain(30)
    y = model(x).argmax(1) % 3
    names = ("ant", "bee", "cat")
    data = Dataset("three", 3, x, y, x[:0], y[:0], x, y, class_names=names)
    report = pinchpoint.audit(model, data, ["linf:0.05"], samples=20, standard=False)
    assert any("30 outputs" in line and "3 classes" in line for line in report.warnings)
    whole = {path.name for path in write(report, tmp_path / "whole")}
    assert {"report.html", "report.md", "audit.json"} < whole

    def fails(*args: object) -> str:
        raise IndexError("tuple index out of range")

    monkeypatch.setattr(print_decisions, "representations", fails)
    with pytest.warns(PinchpointWarning, match="representations-linf is left out: IndexError"):
        rest = {path.name for path in write(report, tmp_path / "rest")}
    assert whole - rest == {name for name in whole if name.startswith("representations")}
    assert read(tmp_path / "rest") == report


def test_the_clock_ends_a_bound_only_where_it_is_asked_to():
    assert inspect.signature(steps.bound).parameters["by_clock"].default is False
