"""The learning rate at each step, against torch's own schedulers, and what a configuration refuses."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from pinchpoint.train.config import TrainConfig, learning_rate

STEPS = 5


def torchs(make, epochs):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = make(optimizer)
    rates = []
    for _ in range(epochs * STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def ours(**options):
    config = TrainConfig(learning_rate=0.3, **options)
    return [learning_rate(config, step, STEPS) for step in range(config.epochs * STEPS)]


def test_cosine_is_torchs():
    theirs = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=6 * STEPS), 6)
    assert ours(epochs=6, schedule="cosine") == pytest.approx(theirs, rel=1e-9)


def test_multistep_is_torchs():
    theirs = torchs(lambda o: torch.optim.lr_scheduler.MultiStepLR(o, [2 * STEPS, 5 * STEPS], gamma=0.2), 6)
    assert ours(epochs=6, schedule="multistep", milestones=(2, 5), gamma=0.2) == pytest.approx(theirs, rel=1e-9)


def test_warm_up_climbs_in_equal_steps_to_the_rate_that_follows():
    assert ours(epochs=2, warmup_epochs=0.8) == pytest.approx([0.3 * i / 4 for i in (1, 2, 3, 4)] + [0.3] * 6)
    falling = ours(epochs=3, warmup_epochs=1, schedule="cosine")
    assert falling[STEPS] == max(falling) == 0.3
    theirs = torchs(lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=2 * STEPS), 2)
    assert falling[STEPS:] == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"milestones": (3, 2), "schedule": "multistep"}, "milestones should be rising epochs from 1"),
        ({"milestones": (0,), "schedule": "multistep"}, "milestones should be rising epochs from 1"),
        ({"schedule": "multistep"}, "milestones and the multistep schedule should come together"),
        ({"milestones": (3,)}, "milestones and the multistep schedule should come together"),
        ({"nesterov": True}, "nesterov should go with sgd and momentum"),
        ({"accumulate": 9, "batch_size": 8}, "accumulate should be at most the batch size"),
        ({"warmup_epochs": 60.0}, "warmup_epochs should be fewer than epochs"),
        ({"noise": {"scale": 0.0}}, "greater than 0"),
        ({"noise": {"scale": 1.0, "alpha": 1.0}}, "greater than 1"),
        ({"ema": 1.0}, "less than 1"),
    ],
)
def test_what_does_not_fit_together_is_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        TrainConfig(**options)
