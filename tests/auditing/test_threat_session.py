"""Samples judged piece by piece: more of them, by stronger attacks, and never more standing than before."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pinchpoint.attack import Threat, standard_ensemble
from pinchpoint.auditing.clock import Clock, TimeUp
from pinchpoint.auditing.threat_session import Judging
from pinchpoint.evaluate import robust_accuracy


class Hand:
    """Seconds that pass with every call of the model."""

    now, each = 0.0, 0.0

    def __call__(self) -> float:
        return self.now

    def tick(self, module: nn.Module, inputs: object) -> None:
        self.now += self.each


@pytest.fixture
def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5)).eval()


@pytest.fixture
def judging(network) -> Judging:
    x = torch.rand(40, 8, generator=torch.Generator().manual_seed(1))
    y = network(x).argmax(1)
    y[::7] = (y[::7] + 1) % 5
    return Judging(network, x, y, Threat("linf", 0.08))


def consistent(one: Judging) -> None:
    for row, name in enumerate(one.stage):
        assert bool(one.fallen[row]) == (name not in ("survived", "certified")), (row, name)
    assert not bool(one.fallen[one.judged :].any())


def test_what_an_attack_has_felled_stays_fallen_and_the_name_says_how_far_each_came(judging):
    clock = Clock()
    judging.look(clock, 10, 20)
    assert (judging.judged, judging.name, len(judging.where)) == (10, "AutoPGD (20 steps)", 10)
    consistent(judging)
    felled = judging.fallen.clone()
    judging.widely(clock)
    assert (judging.judged, judging.quick, judging.name) == (40, 0, "AutoPGD (20 steps)")
    assert bool(judging.fallen[felled].all())
    consistent(judging)
    felled = judging.fallen.clone()
    judging.quickly(clock)
    assert (judging.quick, judging.name) == (40, "quick")
    judging.search(clock, 12)
    assert judging.searched == 12
    judging.sharply(clock)
    assert (judging.sharpened, judging.name) == (40, "standard")
    assert bool(judging.fallen[felled].all())
    consistent(judging)
    whole = standard_ensemble(judging.model, judging.x)
    alone = robust_accuracy(judging.model, judging.x, judging.y, judging.threat, attacks=whole)
    assert bool((judging.fallen | ~alone.fallen).all())  # no weaker than the standard ensemble by itself


def test_the_quick_ensemble_goes_on_with_samples_that_nobody_has_looked_at(judging):
    clock = Clock()
    judging.look(clock, 10, 50)
    judging.quickly(clock)
    assert (judging.judged, judging.quick, judging.name) == (40, 40, "quick")
    consistent(judging)


def test_time_runs_out_between_pieces_and_what_was_found_counts(judging, network):
    hand = Hand()
    network.register_forward_pre_hook(hand.tick)
    clock = Clock(300.0, now=hand)
    judging.look(clock, 10, 20)
    assert hand.now == 0.0
    hand.each = 1.0
    with pytest.raises(TimeUp):
        judging.quickly(clock, reserve=100.0)
    assert hand.now <= 201.0
    consistent(judging)
    hand.now = 300.0
    with pytest.raises(TimeUp):
        judging.quickly(clock)
    assert hand.now == 300.0  # the model was not called


def test_nothing_begins_that_cannot_end(judging):
    slow = Judging(judging.model, judging.x, judging.y, judging.threat, pass_seconds=1.0)
    slow.look(Clock(), 10, 20)
    with pytest.raises(TimeUp):
        slow.widely(Clock(20.0))  # fifty passes of a second each
    assert slow.judged == 10
