"""The training benchmark compares like with like; its figures need the whole of it, and a quiet machine."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import nn

from benchmarks import train, train_penalties

pytestmark = pytest.mark.long
WANTED = {
    "nuclear_step_over_plain_2000",
    "nuclear_spectrum_relative_error",
    "group_lasso_step_over_plain",
    "spread_step_over_plain",
    "alignment_step_over_plain",
    "fcn_rate_over_raw",
    "pgd10_step_over_limit",
}


@pytest.mark.slow
def test_every_wanted_ratio_is_there():
    found = (
        train.loop_rates(1, epochs=1)
        | train.adversarial_ratio(1, batch=2, batches=1)
        | train_penalties.nuclear_price(1, width=140, batch=4)
        | train_penalties.nuclear_end(seeds=1, epochs=1)
        | train_penalties.resnet_prices(1, batch=2)
    )
    assert found.keys() >= WANTED
    assert found.keys() >= train.LIMITS.keys()
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


def test_both_sides_take_the_same_passes(monkeypatch):
    """Ten input gradients and one training step a batch, however they are counted."""
    counts = []

    class Watched(nn.Linear):
        def __init__(self):
            super().__init__(3 * 32 * 32, 10)

        def forward(self, x):
            out = super().forward(x.flatten(1))
            if torch.is_grad_enabled():
                counts[-1]["train" if self.training else "attack"] += 1
            return out

    def interleaved(contestants, rounds):
        for call in contestants.values():
            counts.append(Counter())
            call()
        return {name: [1.0] for name in contestants}

    monkeypatch.setattr(train, "build", lambda *args, **options: Watched())
    monkeypatch.setattr(train, "interleaved", interleaved)
    train.adversarial_ratio(1, batch=2, batches=3)
    ours, limit = counts
    assert ours == limit == {"attack": 30, "train": 3}
