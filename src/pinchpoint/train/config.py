"""How to train, as a configuration, and the learning rate that follows from it at each step."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, model_validator

from pinchpoint.train.augment import AugmentConfig
from pinchpoint.utils.config import StrictModel


class NoiseConfig(StrictModel):
    """Heavy-tailed noise added to every weight after each step: ``scale`` times a symmetric alpha-stable draw.

    At ``alpha`` = 2 it is Gaussian of variance 2 scale^2; below, its variance is infinite (Wan et al. 2024, "Implicit
    Compressibility of Overparametrized Neural Networks Trained with Heavy-Tailed SGD").
    """

    alpha: float = Field(default=1.8, gt=1, le=2)
    scale: float = Field(gt=0, allow_inf_nan=False)


class TrainConfig(StrictModel):
    """How to train.

    The learning rate climbs over ``warmup_epochs``, then follows ``schedule``: constant, half a cosine to zero at the last
    epoch, or times ``gamma`` after each epoch in ``milestones``. ``trades_beta`` makes the loss that of TRADES and needs an
    attack. ``accumulate`` splits a batch into that many parts, whose gradients add up to the batch's.
    """

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd only")
    nesterov: bool = Field(default=False, description="sgd only")
    schedule: Literal["constant", "cosine", "multistep"] = "constant"
    milestones: tuple[int, ...] = Field(default=(), description="multistep only: epochs after which the rate falls")
    gamma: float = Field(default=0.1, gt=0, le=1, description="multistep only")
    warmup_epochs: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    patience: int | None = Field(
        default=10, ge=1, description="epochs without a lower validation loss; null: no stopping"
    )
    monitor: Literal["clean", "attacked"] = Field(default="clean", description="which validation loss stops training")
    adversarial_share: float = Field(default=0.5, ge=0, le=1, description="of each batch, where an attack is given")
    trades_beta: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    accumulate: int = Field(default=1, ge=1)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False, description="of the gradient, in l2")
    ema: float | None = Field(default=None, gt=0, lt=1, description="decay of an average of the weights; null: none")
    augment: AugmentConfig = AugmentConfig()
    noise: NoiseConfig | None = None

    @model_validator(mode="after")
    def _fits(self) -> TrainConfig:
        if self.milestones != tuple(sorted(set(self.milestones))) or any(one < 1 for one in self.milestones):
            raise ValueError("milestones should be rising epochs from 1")
        if (self.schedule == "multistep") != bool(self.milestones):
            raise ValueError("milestones and the multistep schedule should come together")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError("nesterov should go with sgd and momentum")
        if self.accumulate > self.batch_size:
            raise ValueError("accumulate should be at most the batch size")
        if self.warmup_epochs >= self.epochs:
            raise ValueError("warmup_epochs should be fewer than epochs")
        return self


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int) -> float:
    """The learning rate of a step, counted from 0 over the whole training.

    >>> rates = TrainConfig(epochs=2, schedule="cosine", learning_rate=1.0)
    >>> [round(learning_rate(rates, step, 2), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        share = (step - warmup) / max(1, config.epochs * steps_per_epoch - warmup)
        return config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * share))
    fallen = sum(step >= epoch * steps_per_epoch for epoch in config.milestones)
    rate: float = config.learning_rate * config.gamma**fallen
    return rate
