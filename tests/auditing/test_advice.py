"""Rules against networks made for them, predictions against arithmetic, commands by following them."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from pinchpoint.attack import Threat
from pinchpoint.auditing.advice import CLIP, advise, apply
from pinchpoint.auditing.intervals import share
from pinchpoint.auditing.pinch_points import follow, pinch_points
from pinchpoint.auditing.prediction import MOST, REACHED, Curves
from pinchpoint.cli import app
from pinchpoint.measure import profile
from pinchpoint.measure.convolution.operator import convolution
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.checkpoint import CheckpointConfig, save
from pinchpoint.records import BudgetPoint, PrunedLayer, Pruning

EPS = 0.1
CURVE = [
    BudgetPoint(eps=eps, robust=share(count, 200), certified=None) for eps, count in ((0.05, 140), (0.1, 60), (0.2, 10))
]
CLEAN = share(190, 200)


def spectrum(layer, *sigma):
    """Give the layer's matrix these singular values."""
    weight = layer.weight.data
    u, _, vh = torch.linalg.svd(torch.randn_like(weight.flatten(1)), full_matrices=False)
    layer.weight.data = ((u * torch.tensor(sigma)) @ vh).reshape(weight.shape)


def net(first):
    """16-16-16-4, its first layer of that spectrum, the others flat."""
    model = nn.Sequential(*(part for i in range(3) for part in (nn.Linear(16, (16, 16, 4)[i], bias=False), nn.ReLU())))[
        :-1
    ]
    spectrum(model[0], *first)
    spectrum(model[2], *[1.0] * 16)
    spectrum(model[4], *[1.0] * 4)
    return model


def advised(model, shape=(16,), direction=None, **options):
    x = torch.rand(16, *shape)
    direction = torch.linalg.svd(model[0].weight.detach().flatten(1)).Vh[0] if direction is None else direction
    points = pinch_points(
        profile(model), [follow(model, x, x + 0.1 * direction.reshape(-1, *shape)[:1], Threat("linf", EPS))]
    )
    found = advise(model, shape, points, profile(model), {"linf": CURVE}, {"linf": EPS}, clean=CLEAN, **options)
    return points, found


def at(budget):
    """The curve and its interval, by hand."""
    budgets, shares = [0.0, *(one.eps for one in CURVE)], [CLEAN, *(one.robust for one in CURVE)]
    return [np.interp(budget, budgets, [getattr(one, key) for one in shares]) for key in ("value", "low", "high")]


def test_a_concentrated_layer_is_clipped_and_the_prediction_is_read_off_the_curve():
    model = net([12.0] + [1.0] * 15)
    points, found = advised(model)
    top = found[0]
    assert (points[0].layer, top.id, top.layers) == ("0", "clip 0", ["0"])
    assert top.action == {"kind": "clip", "layer": "0", "factor": CLIP, "keep_frobenius": True}
    changed = apply(model, top.action)
    assert changed[0].weight.norm().item() == pytest.approx(model[0].weight.norm().item(), rel=1e-5)
    norms = [np.linalg.norm(one[0].weight.detach().double().numpy(), 2) for one in (changed, model)]
    now, low, high = at(EPS)
    gain = at(EPS * (norms[0] / norms[1]) ** points[0].share)[0] - now
    value, high = now + REACHED * gain, high + MOST * gain
    robust, clean = top.predicted
    assert (robust.metric, robust.norm, robust.eps, robust.before) == (
        "robust_accuracy",
        "linf",
        EPS,
        pytest.approx(0.3),
    )
    assert (robust.after, robust.low, robust.high) == pytest.approx((value, low, high), rel=1e-6)
    assert robust.after > robust.before
    assert (clean.metric, clean.after, clean.low, clean.high) == ("clean_accuracy", 0.95, CLEAN.low, CLEAN.high)
    assert points[0].why.startswith("0 passes on ")


def test_the_norm_of_a_convolution_is_that_of_its_operator():
    model = nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(400, 4, bias=False)
    )
    spectrum(model[0], *([12.0] + [1.0] * 15))
    points, found = advised(model, (4, 5, 5), direction=torch.randn(100))
    clip = next(advice for advice in found if advice.id == "clip 0")
    changed = apply(model, clip.action)
    before, after = (np.linalg.norm(convolution(one[0], (5, 5)).dense().numpy(), 2) for one in (model, changed))
    point = next(point for point in points if point.layer == "0")
    now, most = at(EPS)[0], at(EPS * (after / before) ** point.share)[0]
    assert clip.predicted[0].after == pytest.approx(now + REACHED * (most - now), rel=0.01)


def test_a_rank_low_by_design_gets_a_floor():
    _, found = advised(net([3.0] * 4 + [0.0] * 12))
    floor = next(advice for advice in found if advice.id == "rank floor 0")
    assert floor.action == {"kind": "rank floor", "layer": "0", "rank": 8}
    assert floor.predicted[0].after > floor.predicted[0].before  # f = sqrt(1/2)


def test_a_large_layer_goes_into_a_ball_and_nothing_else_is_promised():
    _, found = advised(net([5.0] * 16))
    ball = next(advice for advice in found if advice.id == "frobenius ball 0")
    assert ball.action["radius"] == pytest.approx(4.0, rel=1e-5)  # where the others are
    assert ball.predicted[0].after == ball.predicted[0].before
    assert "scaling changes no relative size" in ball.predicted[0].how


def test_behind_a_batch_norm_scale_is_no_matter():
    model = net([5.0] * 16)
    model.insert(1, nn.BatchNorm1d(16))
    _, found = advised(model)
    assert not any(advice.id.startswith("frobenius") for advice in found)


def test_what_is_flat_is_left_and_comes_last():
    _, found = advised(net([1.0] * 16))
    assert [advice.id.split()[0] for advice in found][-3:] == ["leave"] * 3
    assert all(advice.action["kind"] == "leave" and advice.command == "" for advice in found[-3:])


def test_where_to_stop_is_where_each_layer_has_lost_its_target():
    model = net([1.0] * 16)
    with torch.no_grad():
        model[0].weight[:8] *= 1e-3  # eight neurons to spare
    _, found = advised(model)
    stop = next(advice for advice in found if advice.id == "stop")
    spare = 0
    for place in (0, 2):
        rows = np.sort(np.abs(model[place].weight.detach().numpy()).sum(1))
        spare += int((np.cumsum(rows) / rows.sum() <= 0.1).sum())
    assert spare >= 8
    assert stop.action["ratio"] == pytest.approx(spare / 32, abs=1e-3)
    assert [one.metric for one in stop.predicted] == ["robust_accuracy", "clean_accuracy"]
    assert stop.predicted[0].after == stop.predicted[0].before
    assert "At linf 0.1 half of clean accuracy is gone already." in stop.because


def pruning(allocation):
    layer = PrunedLayer(name="0", members=["0", "2"], units=16, kept=8, residual=0.4)
    return Pruning(
        unit="filters", allocation=allocation, criterion="l2", q=1, count="units", ratio=0.5, met=0.5, threshold=0.1,
        removed=True, steps=1, layers=[layer], left=[], parameters_before=2, parameters_after=1, flops_before=2,
        flops_after=1, batch=None, seconds_before=None, seconds_after=None,
    )  # fmt: skip


def test_what_was_pruned_uniformly_is_pruned_anew():
    _, found = advised(net([1.0] * 16), pruning=pruning("uniform"))
    again = next(advice for advice in found if advice.id == "prune anew")
    assert (again.layers, again.action["ratio"], again.action["allocation"]) == (["0", "2"], 0.5, "residual")
    assert "which took 40% of 0's weight" in again.because
    _, found = advised(net([1.0] * 16), pruning=pruning("residual"))
    assert not any(advice.id == "prune anew" for advice in found)


def test_certified_bounds_are_those_of_the_changed_copy():
    model = net([12.0] + [1.0] * 15)

    def bound(one):
        return float(np.prod([np.linalg.norm(one[i].weight.detach().double().numpy(), 2) for i in (0, 2, 4)]))

    _, found = advised(model, lipschitz={"l2": bound})
    certified = found[0].predicted[-1]
    assert (certified.metric, certified.norm, certified.before) == ("lipschitz", "l2", pytest.approx(12, rel=1e-5))
    assert certified.low == certified.after == certified.high == bound(apply(model, found[0].action))


def test_where_the_judged_budget_says_nothing_a_telling_one_is_predicted_too():
    curves = Curves({"linf": CURVE}, {"linf": 0.2}, CLEAN)
    assert [one.eps for one in curves.robust(0.9, "")] == [0.2, 0.1]  # .30 is nearest to .475
    assert [one.eps for one in Curves({"linf": CURVE}, {"linf": 0.1}, CLEAN).robust(0.9, "")] == [0.1]
    assert [one.eps for one in Curves({"linf": CURVE[2:]}, {"linf": 0.2}).robust(0.9, "")] == [0.2]
    assert Curves({}, {"l2": 1.0}).robust(0.9, "") == []


@pytest.mark.long
def test_commands_do_what_they_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    network = build(ModelConfig(hidden=(16, 16)), (1, 8, 8), 10, seed=0)
    name = next(name for name, module in network.named_modules() if isinstance(module, nn.Linear))
    spectrum(network.get_submodule(name), *([12.0] + [1.0] * 15))
    about = CheckpointConfig(model=ModelConfig(hidden=(16, 16)), input_shape=(1, 8, 8), classes=10, data="digits")
    save(tmp_path / "model", network, about)
    x = torch.rand(16, 1, 8, 8)
    points = pinch_points(profile(network), [follow(network, x, x + 0.1, Threat("linf", EPS))])
    found = advise(
        network, (1, 8, 8), points, profile(network), {"linf": CURVE}, {"linf": EPS}, subject="model", data="digits"
    )
    clip = next(advice for advice in found if advice.action["kind"] == "clip")
    names: dict[str, nn.Module] = {}
    exec(clip.command, names)
    expected = apply(network, clip.action)
    assert torch.equal(names["model"].get_submodule(name).weight, expected.get_submodule(name).weight)
    stop = next(advice for advice in found if advice.id == "stop" and advice.command)
    program, *arguments = shlex.split(stop.command)
    assert program == "pinchpoint"
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "runs/pruned/model.safetensors").is_file()
