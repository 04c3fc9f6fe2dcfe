"""The pieces of ``benchmarks.measure`` on a tiny model: what it times runs, and its ratios say what they claim."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks lie beside src

from benchmarks import common, measure
from pinchpoint.measure import spectra


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 60))


def test_rounds_take_turns_and_the_first_is_not_counted():
    called: list[str] = []
    seconds = common.interleaved({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=2)
    assert called == ["a", "b"] * 3
    assert [len(times) for times in seconds.values()] == [2, 2]


def test_a_ratio_is_the_median_over_rounds():
    seconds = {"slow": [4.0, 90.0, 10.0], "fast": [2.0, 9.0, 2.0]}
    assert common.ratio(seconds, "slow", "fast") == 5.0
    assert common.median(seconds, "slow") == 10.0


def test_plain_svds_give_the_spectra(tiny):
    for plain, ours in zip(measure.plain_svds(tiny), spectra(tiny).values(), strict=True):
        torch.testing.assert_close(plain, ours, rtol=1e-11, atol=1e-12)


def test_growth_times_each_call():
    row = measure.growth(16)
    assert list(row) == ["width", "singular_values", "profile", "svdvals"]
    assert row["width"] == 16
    assert all(row[name] > 0 for name in row)


def test_results_are_json_and_tables_line_up(tmp_path):
    file = tmp_path / "measure.json"
    common.write(file, {"ratios": {"speedup": 2.5}, "machine": common.machine()})
    assert json.loads(file.read_text())["ratios"] == {"speedup": 2.5}
    assert common.table([["", "value"], ["a", "1.00"], ["long", "10.00"]]) == "      value\na      1.00\nlong  10.00"


@pytest.mark.long
def test_weightwatcher_measures_the_layers_of_the_model(tiny):
    pytest.importorskip("weightwatcher", reason="weightwatcher is not installed: pip install weightwatcher")
    details = measure.weightwatcher(tiny)
    assert "alpha" in details.columns
    assert details["name"].tolist() == ["0", "3"]
