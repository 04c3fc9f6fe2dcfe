"""The training loop: deterministic for a seed, stopped early by the validation loss.

Penalties, interventions and attacks arrive as callables; this room knows nothing of how they work.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from pinchpoint.errors import ModelError
from pinchpoint.learn.data import Dataset
from pinchpoint.records import Training


class TrainConfig(BaseModel):
    """How to train."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epochs: int = Field(default=60, ge=1)
    batch_size: int = Field(default=128, ge=1)
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = Field(default=1e-3, gt=0, allow_inf_nan=False)
    weight_decay: float = Field(default=1e-2, ge=0, allow_inf_nan=False)
    momentum: float = Field(default=0.9, ge=0, lt=1, description="sgd only")
    patience: int | None = Field(
        default=10, ge=1, description="epochs without a lower validation loss; null: no stopping"
    )
    adversarial_share: float = Field(default=0.5, ge=0, le=1, description="of each batch, where an attack is given")


@dataclass(frozen=True)
class Epoch:
    """What one epoch came to."""

    number: int
    train_loss: float
    validation_loss: float
    validation_accuracy: float


def train(
    model: nn.Module,
    data: Dataset,
    config: TrainConfig,
    *,
    seed: int,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
) -> Training:
    """Train in place, on the model's device. With patience, the weights of the lowest validation loss are put back.

    Args:
        model: any module returning logits.
        data: a data set; its training part is shuffled anew each epoch.
        config: epochs, optimiser, early stopping.
        seed: of the shuffling and of whatever the model draws; the global RNG is left as it was.
        penalty: added to the loss.
        after_step: called after each optimiser step.
        attack: ``(model, x, y) -> x_adv`` for ``adversarial_share`` of each batch.
        on_epoch: called after each epoch.

    Raises:
        ModelError: where the loss stops being finite; the best weights so far are put back first.

    >>> from pinchpoint.learn import DataConfig, ModelConfig, build, load
    >>> data = load(DataConfig(name="digits"))
    >>> model = build(ModelConfig(hidden=(32,)), data.input_shape, data.classes)
    >>> train(model, data, TrainConfig(epochs=15), seed=0).validation_accuracy > 0.8
    True
    """
    device = next(model.parameters()).device
    x, y = data.x_train.to(device), data.y_train.to(device)
    x_validation, y_validation = data.x_validation.to(device), data.y_validation.to(device)
    optimizer = _optimizer(model, config)
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    best: tuple[float, float, int] | None = None
    best_weights = copy.deepcopy(model.state_dict())
    last = Epoch(0, math.nan, math.nan, math.nan)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for number in range(1, config.epochs + 1):
            model.train()
            total = 0.0
            order = torch.randperm(len(x), generator=generator).to(device)
            for rows in order.split(config.batch_size):
                total += _step(model, x[rows], y[rows], optimizer, config, penalty, after_step, attack) * len(rows)
            loss, accuracy = loss_and_accuracy(model, x_validation, y_validation)
            last = Epoch(number, total / len(x), loss, accuracy)
            if not (math.isfinite(last.train_loss) and math.isfinite(loss)):
                model.load_state_dict(best_weights)
                model.eval()
                seen = f"training loss {last.train_loss:.4g}, validation loss {loss:.4g} in epoch {number}"
                raise ModelError("the loss must stay finite", seen, "lower the learning rate")
            if on_epoch is not None:
                on_epoch(last)
            if best is None or loss < best[0]:
                best = (loss, accuracy, number)
                best_weights = copy.deepcopy(model.state_dict())
            elif config.patience is not None and number - best[2] >= config.patience:
                break
    if config.patience is not None and best is not None:
        model.load_state_dict(best_weights)
        loss, accuracy, best_epoch = best
    else:
        loss, accuracy, best_epoch = last.validation_loss, last.validation_accuracy, last.number
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return Training(
        epochs=last.number,
        best_epoch=best_epoch,
        validation_loss=loss,
        validation_accuracy=accuracy,
        seconds=time.perf_counter() - start,
    )


def loss_and_accuracy(
    model: nn.Module, x: Float[Tensor, "batch *shape"], y: Int[Tensor, "batch"], batch_size: int = 4096
) -> tuple[float, float]:
    """Mean cross-entropy and accuracy, in eval mode; the mode is put back."""
    training = model.training
    model.eval()
    loss, right = 0.0, 0
    with torch.no_grad():
        for rows in torch.arange(len(x), device=x.device).split(batch_size):
            logits = model(x[rows])
            loss += float(nn.functional.cross_entropy(logits, y[rows], reduction="sum"))
            right += int((logits.argmax(1) == y[rows]).sum())
    model.train(training)
    return loss / len(x), right / len(x)


def _step(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    optimizer: torch.optim.Optimizer,
    config: TrainConfig,
    penalty: Callable[[nn.Module], Tensor] | None,
    after_step: Callable[[nn.Module], None] | None,
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor] | None,
) -> float:
    if attack is not None:
        attacked = round(config.adversarial_share * len(x))
        if attacked:
            x = torch.cat([attack(model, x[:attacked], y[:attacked]), x[attacked:]])
    optimizer.zero_grad(set_to_none=True)
    loss = nn.functional.cross_entropy(model(x), y)
    total = loss if penalty is None else loss + penalty(model)
    total.backward()
    optimizer.step()
    if after_step is not None:
        after_step(model)
    return float(loss.detach())


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    if config.optimizer == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        model.parameters(), lr=config.learning_rate, momentum=config.momentum, weight_decay=config.weight_decay
    )
