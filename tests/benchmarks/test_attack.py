"""The pieces of ``benchmarks.attack`` on tiny nets: what it times runs, and its ratios and checks say what they claim."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))  # benchmarks lie beside src

from benchmarks import attack, peers
from pinchpoint.attack import Threat, pgd
from pinchpoint.evaluate import robust_accuracy


@pytest.fixture(scope="module")
def net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def sample(net) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    return x, net(x).argmax(1)


@pytest.fixture
def short(monkeypatch):
    """Five steps."""
    monkeypatch.setattr(attack, "STEPS", 5)
    monkeypatch.setattr(attack, "PGD_STEPS", 5)


def alone(monkeypatch):
    """As if no peer were installed."""
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)


def contest(seconds, robust):
    return attack.Contest({name: [value] for name, value in seconds.items()}, robust)


def test_without_data_one_sentence_says_what_is_needed(monkeypatch, tmp_path, capsys):
    for folder in (None, str(tmp_path)):
        if folder is None:
            monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
        else:
            monkeypatch.setenv("PINCHPOINT_DATA", folder)
        with pytest.raises(SystemExit) as caught:
            attack.main([])
        assert caught.value.code == 2
        assert capsys.readouterr().out == (
            "benchmarks.attack needs real data; set PINCHPOINT_DATA to a folder with mnist.npz, cifar10.npz, "
            "cifar10_resnet20.safetensors.\n"
        )


def test_missing_peers_are_named_and_left_out(monkeypatch, net, sample, short):
    alone(monkeypatch)
    assert peers.missing() == list(peers.MODULES)
    found = attack.autopgd(net, *sample, Threat("linf", 0.02), rounds=1)
    assert set(found.seconds) == {attack.OURS, attack.RAW}
    assert set(found.robust) == {attack.OURS}


def test_the_raw_limit_is_that_many_passes(net, sample):
    asked = []
    hook = net.register_forward_hook(lambda *_: asked.append(1))
    try:
        assert len(attack.raw(net, *sample, 7)) == 0
    finally:
        hook.remove()
    assert len(asked) == 7


def test_examples_outside_the_ball_do_not_count(net, sample):
    x, y = sample
    far = torch.rand(x.shape, generator=torch.Generator().manual_seed(2))
    assert (net(far).argmax(1) != y).any()
    assert attack.judged(net, x, y, Threat("linf", 1e-4), far) == 1.0
    assert attack.judged(net, x, y, Threat("linf", 1.0), far) < 1.0


def test_speedups_are_over_the_fastest_peer_and_the_check_is_over_all():
    one = contest({attack.OURS: 1.0, attack.RAW: 0.1, "a": 4.0, "b": 3.0}, {attack.OURS: 0.5, "a": 0.5, "b": 0.6})
    assert one.fastest == "b"
    assert one.speedup == 3.0
    assert one.never_higher
    assert not contest({attack.OURS: 1.0, "a": 4.0}, {attack.OURS: 0.51, "a": 0.5}).never_higher


def test_ratios_are_the_worst_of_the_threats_and_of_standard_nets_only():
    ours, raw = attack.OURS, attack.RAW
    low, high = {ours: 0.1, "pyautoattack": 0.1}, {ours: 0.9, "pyautoattack": 0.9}
    found = {
        "AutoPGD, FCN": contest({ours: 1.0, raw: 4.0, "adv-lib": 5.0}, low),
        "AutoPGD, robust net": contest({ours: 2.0, raw: 2.0, "adv-lib": 4.0}, high),
        "AutoPGD, ResNet-20, a": contest({ours: 1.0, raw: 4.0, "adv-lib": 8.0}, low),
        "AutoPGD, ResNet-20, b": contest({ours: 1.0, raw: 4.0, "adv-lib": 6.0}, low),
        "ensemble, ResNet-20, a": contest({ours: 1.0, "pyautoattack": 9.0}, low),
        "ensemble, ResNet-20, b": contest({ours: 1.0, "pyautoattack": 1.0}, high),
        "ensemble, robust net": contest({ours: 1.0, "pyautoattack": 1.5}, high),
        "universal, FCN": contest({ours: 1.0, "ART, pgd": 50.0, "ART, deepfool": 40.0}, {ours: 0.3}),
    }
    loops = {"AutoPGD, nothing dropped": [1.02], "PGD, nothing dropped": [1.01], raw: [1.0]}
    figures = attack.ratios(found, loops, {"curve": [2.0], "AutoPGD": [1.0]})
    assert list(figures) == list(attack.TARGETS)
    assert list(figures.values()) == [0.25, 5.0, 6.0, 0.5, 9.0, 1.5, 2.0, 1.02, 40.0]


def test_the_curve_falls_from_twenty_budgets_and_loops_are_timed(net, sample, short):
    seconds, drawn = attack.curve(net, *sample, Threat("linf", 0.05), rounds=1)
    assert len(drawn) == 20
    assert drawn == sorted(drawn, reverse=True)
    assert drawn[0] > drawn[-1]
    assert set(seconds) == {"curve", "AutoPGD"}
    assert len(attack.loop(net, *sample, Threat("linf", 0.05), rounds=2)[attack.RAW]) == 2


@pytest.mark.long
@pytest.mark.parametrize("name", sorted({*peers.AUTOPGD, *peers.PGD}))
@pytest.mark.parametrize("threat", [Threat("linf", 0.03), Threat("l2", 0.2)], ids=str)
def test_every_peer_attacks_the_same_samples_inside_the_threat(net, sample, name, threat):
    pytest.importorskip(peers.MODULES[name], reason=f"needs the extra 'peers': {peers.PACKAGES[name]}")
    ours = robust_accuracy(net, *sample, threat, attacks={"pgd": partial(pgd, steps=20)}).robust_accuracy
    assert ours < 1.0
    for kind in (peers.AUTOPGD, peers.PGD):
        if name not in kind or (kind is peers.PGD and name == "adv-lib" and threat.norm != "linf"):
            continue
        with torch.random.fork_rng(devices=[]):
            found = kind[name](net, *sample, threat, 20)
        verdict = robust_accuracy(net, *sample, threat, known=found.detach(), attacks={})
        assert verdict.rejected == 0
        assert abs(verdict.robust_accuracy - ours) <= 2 / 8
