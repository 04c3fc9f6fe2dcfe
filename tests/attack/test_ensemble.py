"""The ensemble: what it holds, that scale does not move it, and pyautoattack's verdict on the same samples."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat, square, standard_ensemble
from pinchpoint.errors import DataError, ModelError, ThreatError
from pinchpoint.evaluate import default_attacks, robust_accuracy


@pytest.mark.parametrize(("classes", "second"), [(2, "apgd-t-margin"), (3, "apgd-t-margin"), (4, "apgd-t")])
def test_fewer_than_four_classes_are_attacked_by_the_margin(small_net, classes, second):
    net = small_net(6, classes=classes)
    x = torch.rand(8, 6, generator=torch.Generator().manual_seed(0))
    assert list(standard_ensemble(net, x)) == ["apgd-ce", second, "fab-t", "square"]
    quick = standard_ensemble(net, x, version="quick")
    assert list(quick) == ["apgd-ce", second, "square"]
    verdict = robust_accuracy(net, x, net(x).argmax(1), Threat("linf", 0.05), attacks=quick)
    assert verdict.rejected == 0


def test_an_unknown_version_is_refused(small_net):
    with refused(ThreatError, "the ensemble's version must be standard or quick, but got plus; write one of the two."):
        standard_ensemble(small_net(6), torch.rand(2, 6), version="plus")


def test_a_model_that_gives_no_logits_is_refused():
    class Infinite(nn.Module):
        def forward(self, x):
            return torch.full((len(x), 4), torch.nan)

    with refused(
        ModelError,
        "a model must return finite logits of shape (batch, classes), but got NaN or inf for 2 of 2 samples; check "
        "the model's output.",
    ):
        standard_ensemble(Infinite(), torch.rand(2, 6))


@pytest.mark.parametrize("name", ["apgd-ce", "apgd-t", "fab-t", "square"])
def test_every_attack_leaves_model_and_global_rng_alone_and_refuses_what_it_cannot_take(name):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 5))
    model.train()
    model[3].eval()
    model[1].weight.requires_grad_(False)
    x, y = torch.rand(6, 4), torch.tensor([0, 1, 2, 3, 4, 0])
    modes, flags = ([module.training for module in model.modules()], [p.requires_grad for p in model.parameters()])
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    rng = torch.random.get_rng_state()
    attack = partial(square, queries=200) if name == "square" else standard_ensemble(model, x)[name]
    first, again = (attack(model, x, y, Threat("l2", 0.1)) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == flags
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    with pytest.raises(DataError, match=r"inputs must be finite and lie in the box \[0, 1\]"):
        attack(model, x + 1.0, y, Threat("l2", 0.1))
    with pytest.raises(DataError, match=r"labels must lie in 0 \.\.\. 4, one for each"):
        attack(model, x, y + 1, Threat("l2", 0.1))


class Scaled(nn.Module):
    """The same decisions with all logits multiplied."""

    def __init__(self, model, factor):
        super().__init__()
        self.model, self.factor = model, factor

    def forward(self, x):
        return self.factor * self.model(x)


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.long
def test_the_scale_of_the_logits_moves_no_verdict_by_more_than_a_sample(trained, digits, norm):
    x, y, threat = digits.x_test[:120], digits.y_test[:120], Threat(norm, {"linf": 0.08, "l2": 0.45}[norm])
    suites = {"default": default_attacks, "quick": lambda m, a: standard_ensemble(m, a, version="quick")}
    for name, suite in suites.items():
        standing = []
        for factor in (1e-3, 1.0, 30.0, 1e3):
            model = Scaled(trained, factor)
            verdict = robust_accuracy(model, x, y, threat, attacks=suite(model, x))
            standing.append(int((~verdict.fallen).sum()))
        print(f"\n{name} {norm}: standing at 1e-3, 1, 30, 1e3 times the logits: {standing}")
        assert 24 < min(standing) < 96
        assert max(standing) - min(standing) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_the_scale_of_the_logits_does_not_move_fab_and_square(trained, digits, norm):
    x, y, threat = digits.x_test[:60], digits.y_test[:60], Threat(norm, {"linf": 0.08, "l2": 0.45}[norm])
    for name in ("fab-t", "square"):
        standing = []
        for factor in (1e-3, 1.0, 1e3):
            model = Scaled(trained, factor)
            attacks = {name: standard_ensemble(model, x)[name]}
            standing.append(int((~robust_accuracy(model, x, y, threat, attacks=attacks).fallen).sum()))
        assert 12 < min(standing) < 48
        assert max(standing) - min(standing) <= 1


def compare(model, x, y, threat):
    """Robust accuracy under pyautoattack's standard version and under ours, both judged by ``robust_accuracy``."""
    from pyautoattack.autoattack import AutoAttack

    with torch.random.fork_rng(devices=[]):
        name = {"linf": "Linf", "l2": "L2", "l1": "L1"}[threat.norm]
        x_adv, _ = AutoAttack(model, norm=name, eps=threat.eps, seed=0).run_standard_evaluation(x, y, batch_size=len(x))
    model.zero_grad()
    theirs = robust_accuracy(model, x, y, threat, known=x_adv, attacks={}).robust_accuracy
    verdict = robust_accuracy(model, x, y, threat, attacks=standard_ensemble(model, x))
    print(f"\n{threat}: pyautoattack {theirs}, ours {verdict.robust_accuracy} {verdict.settled}")
    assert verdict.rejected == 0
    return theirs, verdict.robust_accuracy


@pytest.mark.slow
@pytest.mark.parametrize("net", ["trained", "small_cnn"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.1), ("l2", 0.6), ("l1", 2.0)])
def test_never_higher_than_pyautoattack(request, digits, net, norm, eps):
    theirs, ours = compare(
        request.getfixturevalue(net).eval(), digits.x_test[:60], digits.y_test[:60], Threat(norm, eps)
    )
    assert 0.1 < theirs < 0.9
    assert ours <= theirs


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.5 / 255), ("l2", 0.08)])
def test_never_higher_than_pyautoattack_on_resnet20(real_data, norm, eps):
    from pinchpoint.models.sources.open_model import open_model

    model = open_model(str(real_data / "cifar10_resnet20.safetensors")).model.eval()
    data = np.load(real_data / "cifar10.npz")
    x, y = torch.tensor(data["x_test"][:12]).float() / 255, torch.tensor(data["y_test"][:12]).long()
    theirs, ours = compare(model, x, y, Threat(norm, eps))
    assert 0.1 < theirs < 0.9
    assert ours <= theirs
