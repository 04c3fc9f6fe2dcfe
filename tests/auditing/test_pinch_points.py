"""Shares against arithmetic, matrices against NumPy, and networks whose pinch point is known by construction."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinchpoint.attack import Threat, apgd
from pinchpoint.auditing.pinch_points import Gains, follow, pinch_points
from pinchpoint.compress import ConstantFrobenius, NuclearNorm
from pinchpoint.errors import ModelError
from pinchpoint.measure import profile
from pinchpoint.mechanism import LayerGain
from pinchpoint.models import ModelConfig, build
from pinchpoint.records import PairBounds
from pinchpoint.train import TrainConfig, train

LINF = Threat("linf", 0.1)


def gain(name, value, random, **other):
    return LayerGain(
        **{
            "name": name,
            "kind": "linear",
            "gain": value,
            "random_gain": random,
            "source_amplification": 0.1,
            "amplification": 0.2,
            "k": 1,
            "alignment": 0.5,
            "baseline": 0.3,
            "samples": 8,
        }
        | other
    )


def chain(*widths):
    parts = []
    for d, h in itertools.pairwise(widths):
        parts += [nn.Linear(d, h, bias=False), nn.ReLU()]
    return nn.Sequential(*parts[:-1])


NET = chain(6, 5, 4, 3)
PROFILE = profile(NET)
NAMES = ("0", "2", "4")


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=3, max_size=3))
def test_shares_are_a_ranking_that_sums_to_one(logs):
    points = pinch_points(
        PROFILE, [Gains(LINF, tuple(gain(name, *own) for name, own in zip(NAMES, logs, strict=True)))]
    )
    shares = [point.share for point in points]
    assert sum(shares) == pytest.approx(1, abs=1e-12)
    assert shares == sorted(shares, reverse=True)
    assert [point.rank for point in points] == [1, 2, 3]
    over = dict(zip(NAMES, (max(0.0, one - random) for one, random in logs), strict=True))
    if sum(over.values()) > 0:
        for point in points:
            assert point.share == pytest.approx(over[point.layer] / sum(over.values()), abs=1e-12)


def test_where_nothing_is_in_excess_gains_count_and_it_says_so():
    logs = {"0": (1.0, 1.0), "2": (0.0, 0.5), "4": (-1.0, 2.0)}
    points = pinch_points(PROFILE, [Gains(LINF, tuple(gain(name, *own) for name, own in logs.items()))])
    total = math.e + 1 + 1 / math.e
    assert [point.share for point in points] == pytest.approx([math.e / total, 1 / total, 1 / math.e / total])
    assert "passes on 2.7 times what it is given, and no layer gives attacks more than noise" in points[0].why


def test_several_threats_are_averaged_and_equal_shares_keep_the_order():
    one = Gains(LINF, tuple(gain(name, 1.0, 0.0) for name in NAMES))
    two = Gains(Threat("l2", 1.0), (gain("0", 0.0, 0.0), gain("2", 4.0, 1.0, alignment=None), gain("4", 0.0, 0.0)))
    points = pinch_points(PROFILE, [one, two])
    assert [point.layer for point in points] == ["2", "0", "4"]
    assert [point.share for point in points] == pytest.approx([2 / 3, 1 / 6, 1 / 6])
    assert (points[0].gain, points[0].random_gain, points[0].alignment) == (2.5, 0.5, 0.5)


def test_what_a_point_says_of_its_matrix():
    point = next(
        point
        for point in pinch_points(PROFILE, [Gains(LINF, tuple(gain(name, 1.0, 0.0) for name in NAMES))])
        if point.layer == "2"
    )
    matrix = NET[2].weight.detach().double().numpy()
    sigma = np.linalg.svd(matrix)[1]
    assert point.scale == pytest.approx(np.linalg.norm(matrix) / 2)
    assert point.structure * point.scale == pytest.approx(sigma[0])
    assert point.structure == pytest.approx(math.sqrt(4 / ((sigma**2).sum() / sigma[0] ** 2)))
    assert point.operator_norm == pytest.approx(sigma[0])
    energy = np.cumsum(sigma**2) / (sigma**2).sum()
    count = next(k + 1 for k in range(4) if energy[k] >= 0.9)
    assert point.why == (
        f"2 passes on 2.7 times what random noise of the same size would get; 90 % of its energy lies in {count} of 4 "
        "directions."
    )


def test_directions_of_a_long_spectrum_are_interpolated():
    net = nn.Sequential(nn.Linear(320, 300, bias=False))
    net[0].weight.data.mul_(torch.linspace(1, 0, 320) ** 3)
    (point,) = pinch_points(profile(net), [Gains(LINF, (gain("0", 1.0, 0.0),))])
    energy = np.cumsum(np.linalg.svd(net[0].weight.detach().double().numpy())[1] ** 2)
    expected = int((energy < 0.9 * energy[-1]).sum()) + 1
    assert abs(int(point.why.split("lies in ")[1].split(" of ")[0]) - expected) <= 2


def test_neighbours_are_the_pairs_they_end():
    pairs = [
        PairBounds(norm=norm, first="0", second="2", lower=0.1, upper=factor, exact=False, factor=factor, reason=None)
        for norm, factor in (("l2", 0.7), ("linf", 0.4))
    ]
    unknown = PairBounds(
        norm="l2", first="2", second="4", lower=None, upper=None, exact=None, factor=1.0, reason="large"
    )
    found = pinch_points(PROFILE, [Gains(LINF, tuple(gain(name, 1.0, 0.0) for name in NAMES))], [*pairs, unknown])
    assert {point.layer: point.neighbour for point in found} == {"0": None, "2": 0.7, "4": None}


def test_pinch_points_say_why_they_cannot():
    with pytest.raises(
        ModelError, match="pinch points need perturbations that were followed, but got none; attack the"
    ):
        pinch_points(PROFILE, [])
    with pytest.raises(ModelError, match="gains and profile must be those of one model, but got layer 'x'; measure it"):
        pinch_points(PROFILE, [Gains(LINF, (gain("x", 1.0, 0.0),))])


def orthogonal(h, d):
    return nn.init.orthogonal_(torch.empty(h, d))


@pytest.mark.parametrize("place", [0, 2, 4])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_layer_made_concentrated_is_named_first(place, seed):
    """All layers orthogonal, of one size, and one has a direction 12 times as strong as its others."""
    torch.manual_seed(seed)
    net = nn.Sequential(*(nn.Linear(20, 20, bias=False) if i % 2 == 0 else nn.LeakyReLU(0.5) for i in range(7)))
    for layer in net[::2]:
        layer.weight.data.copy_(orthogonal(20, 20))
    u, _, vh = torch.linalg.svd(orthogonal(20, 20))
    net[place].weight.data.copy_(u @ torch.diag(torch.tensor([12.0] + [1.0] * 19)) @ vh)
    x = 0.3 + 0.4 * torch.rand(32, 20)
    y = net(x).argmax(1)
    worst = apgd(net, x, y, Threat("linf", 0.05, None), steps=20, drop_fallen=False)
    points = pinch_points(profile(net), [follow(net, x, worst, LINF)])
    assert points[0].layer == str(place)
    assert points[0].structure > 3 * points[1].structure


@pytest.mark.slow
def test_compressible_layers_of_a_trained_network_pinch_and_its_flat_head_does_not(digits):
    """64-64-64-10 on the digits, plain and with a heavy nuclear norm at constant Frobenius norms; seeds 0, 1 and 2 agree.

    The first layer is first in both: even plain training leaves it concentrated. Its share grows, from .69 to .87.
    """
    (x, y), shares = digits.test.tensors(256), []
    for strength in (0.0, 0.1):
        model = build(ModelConfig(hidden=(64, 64)), digits.input_shape, digits.classes, seed=0)
        config = TrainConfig(epochs=30, learning_rate=3e-3, patience=None)
        keep = ConstantFrobenius(model, include_head=False) if strength else None
        train(model, digits, config, seed=0, penalty=NuclearNorm(strength) if strength else None, after_step=keep)
        worst = apgd(model, x, y, LINF, steps=30, drop_fallen=False)
        points = pinch_points(profile(model), [follow(model, x, worst, LINF)])
        assert [point.layer for point in points] == ["1", "3", "5"]
        assert min(points[0].structure, points[1].structure) > 1.5 * points[2].structure
        shares.append(points[0].share)
    assert shares[1] > shares[0] + 0.1
