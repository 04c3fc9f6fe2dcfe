"""One training with everything in it that has a state, to be cut off and taken up again."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pinchpoint.data import DataConfig, load
from pinchpoint.recipes.adversarial import AdversarialConfig, OverfittingCheck, training_attack
from pinchpoint.train import TrainConfig, train


class Remembering:
    """A penalty whose strength depends on all calls before."""

    def __init__(self) -> None:
        self.seen = torch.zeros(())

    def __call__(self, model):
        self.seen = 0.9 * self.seen + sum(p.detach().abs().mean() for p in model.parameters())
        return 1e-3 * self.seen * sum(p.square().sum() for p in model.parameters())

    def state_dict(self):
        return {"seen": self.seen}

    def load_state_dict(self, state):
        self.seen = state["seen"].clone()


def network():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(36, 10)
        )


def trained(state: Path | None, optimizer: str, on_step=None, save_seconds: float = 0.0):
    data = load(DataConfig(name="digits", limit_train=400))
    adversary = AdversarialConfig(kind="fast", eps=0.05, check_samples=16)
    config = TrainConfig(
        epochs=4,
        batch_size=48,
        optimizer=optimizer,
        learning_rate=0.01,
        schedule="cosine",
        warmup_epochs=0.5,
        ema=0.9,
        accumulate=2,
        augment={"flip": True, "crop": 1},
        noise={"alpha": 1.8, "scale": 1e-4},
    )
    model = network()
    record = train(
        model,
        data,
        config,
        seed=3,
        penalty=Remembering(),
        attack=training_attack(adversary),
        check=OverfittingCheck(adversary, data.validation, torch.device("cpu")),
        on_step=on_step,
        state=state,
        save_seconds=save_seconds,
    )
    return model, record
