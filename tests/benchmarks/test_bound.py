"""The pieces of benchmarks/bound.py and benchmarks/figures.py, on tiny sizes."""

import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks import bound, figures


@pytest.fixture(scope="module")
def model():
    return bound.fully_connected((6, 5, 4, 3))


@pytest.fixture(scope="module")
def inputs():
    return torch.rand(4, 6, generator=torch.Generator().manual_seed(0)).double()


def test_the_substitute_for_mnist_says_so_and_has_its_size(monkeypatch):
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    data = bound.images()
    assert data.name == "digits enlarged to 28 x 28"
    assert data.input_shape == (1, 28, 28)


def test_our_closed_form_is_the_peers_value(model):
    pytest.importorskip("eclipse_nn", reason="needs the extra 'peers'")
    value, _ = bound.peer(model)
    ours = bound.lipschitz(model, norm="l2", method="fast").upper
    assert ours == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_bracket_is_in_order(model, inputs, norm):
    found = bound.bracket(model, norm, inputs, budget_s=1.0)
    assert found["sampled"] <= found["ascent"] <= found["first-order"] <= found["fast"]
    assert found["alignment"] <= found["product"] <= found["structure"]


def test_margins_stay_below_the_product(model, inputs):
    found = bound.to_margins(model, inputs, budget_s=1.0)
    assert 0 < found["margin"] <= found["product"]


def test_layers_with_decaying_spectrum_have_it():
    first, _ = bound.layer_pair(5, "decaying")
    torch.testing.assert_close(torch.linalg.svdvals(first), 1 / torch.arange(1, 6).double())


def test_alignments_bracket():
    for row in bound.alignments(width=20, k=4):
        assert 0 < row["lower"] <= row["upper"]


def test_growth_times_every_cost():
    row = bound.growth(8)
    assert row.pop("width") == 8
    assert len(row) == 4
    assert all(seconds > 0 for seconds in row.values())


def test_figures_are_xml_and_name_every_bound(model, inputs):
    results = {
        "data": "mnist",
        "bracket": {norm: bound.bracket(model, norm, inputs, budget_s=1.0) for norm in ("l2", "linf")},
        "growth": [bound.growth(8), bound.growth(16)],
    }
    drawn = figures.figures(results)
    assert set(drawn) == {"bracket.svg", "growth_bound.svg"}
    for svg in drawn.values():
        ET.fromstring(svg)
    names = [name for name, value in results["bracket"]["linf"].items() if value > 0]
    assert all(figures.NAMES[name] in drawn["bracket.svg"] for name in names)
    seen = [found["sampled"] > 0 for found in results["bracket"].values()]  # zero has no place on a logarithmic axis
    marks = drawn["bracket.svg"].count('class="mark lower"'), drawn["bracket.svg"].count('class="mark upper"')
    assert marks == (1 + 2 + sum(seen), 1 + 5 + 6)  # the key, the lower bounds, and the upper ones of both norms


def test_networks_share_their_start():
    one, other = bound.fully_connected((4, 3, 2)), bound.fully_connected((4, 3, 2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert isinstance(one[-1], nn.Linear)
