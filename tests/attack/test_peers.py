"""Robust accuracy beside foolbox, torchattacks and ART (extra 'peers'), each set up as ``benchmarks.peers`` does."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks lie beside src

from benchmarks import peers
from pinchpoint.attack import Threat, apply_universal, pgd, universal
from pinchpoint.evaluate import robust_accuracy
from pinchpoint.evaluate.logits import accuracy

pytestmark = pytest.mark.slow


def needs(name):
    pytest.importorskip(peers.MODULES[name], reason=f"needs the extra 'peers': {peers.PACKAGES[name]}")


@pytest.mark.parametrize("net", ["trained", "small_cnn"])
@pytest.mark.parametrize(
    ("peer", "norm", "eps"),
    # not torchattacks in l2: it starts at distances uniform in [0, eps], ours and foolbox near eps (on digits: 1 % more)
    [("foolbox", "linf", 0.08), ("foolbox", "l2", 0.45), ("torchattacks", "linf", 0.08)],
)
def test_pgd_lies_in_the_peers_own_range(request, digits, peer, net, norm, eps):
    needs(peer)
    model, threat = request.getfixturevalue(net).eval(), Threat(norm, eps)
    x, y, theirs = digits.x_test[:200], digits.y_test[:200], []
    for seed in range(6):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            found = peers.PGD[peer](model, x, y, threat, 40).detach()
        theirs.append(robust_accuracy(model, x, y, threat, known=found, attacks={}).robust_accuracy)
    model.zero_grad()
    ours = [
        robust_accuracy(
            model, x, y, threat, attacks={"pgd": lambda m, a, b, t, seed=seed: pgd(m, a, b, t, steps=40, seed=seed)}
        ).robust_accuracy
        for seed in range(6)
    ]
    print(f"\n{peer} {net} {threat}: theirs {theirs}, ours {ours}")
    assert 0.1 < min(theirs) < 0.9, "a budget where nothing or everything falls compares nothing"
    # foolbox and torchattacks judge the last point, ours the worst on the way: a sample's worth below is no fault
    assert min(theirs) - 2 / len(x) <= statistics.median(ours) <= max(theirs)


def test_no_universal_perturbation_of_art_is_worse_for_the_model(trained, digits):
    needs("ART")
    threat = Threat("linf", 0.15)
    fit = digits.x_train[:100], digits.y_train[:100]
    x, y = digits.x_test, digits.y_test
    ours = accuracy(trained, apply_universal(x, universal(trained, *fit, threat), threat), y)
    for attacker in ("deepfool", "pgd"):
        delta = peers.universal_art(attacker, trained, *fit, threat, max_iter=1)
        assert float(delta.abs().max()) <= threat.eps * (1 + 1e-6)
        theirs = accuracy(trained, apply_universal(x, delta, threat), y)
        print(f"\nART, {attacker}: {theirs}, ours {ours}")
        assert ours <= theirs
