"""Training: deterministic for a seed, stopped early by the validation loss, resumable after any interruption.

Penalties, interventions and attacks arrive as callables; this room knows nothing of how they work.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pinchpoint.errors import DataError, ModelError
from pinchpoint.records import EpochRecord, Training
from pinchpoint.train.config import TrainConfig
from pinchpoint.train.loop import Hooks, Loop, Trainable
from pinchpoint.train.parallel import Alone, Engine
from pinchpoint.train.state import Session, Stateful
from pinchpoint.train.validation import Attack


def train(
    model: nn.Module,
    data: Trainable,
    config: TrainConfig,
    *,
    seed: int,
    penalty: Callable[[nn.Module], Tensor] | None = None,
    after_step: Callable[[nn.Module], object] | None = None,
    attack: Attack | None = None,
    check: Callable[[nn.Module], str | None] | None = None,
    on_step: Callable[[int, int, int], object] | None = None,
    on_epoch: Callable[[EpochRecord], object] | None = None,
    state: Path | None = None,
    save_seconds: float = 60.0,
    belongs: str = "",
    engine: Engine | None = None,
) -> Training:
    """Train in place, on the model's device. With patience, the weights of the lowest validation loss are put back.

    Args:
        model: any module returning logits; what ``requires_grad`` excludes stays frozen.
        data: a data set; its training part is shuffled anew each epoch.
        config: epochs, optimiser, schedule, early stopping, precision and the rest.
        seed: of the shuffling, the augmentations and whatever the model draws; the global RNG is left as it was.
        penalty, after_step, attack, check, on_step, on_epoch: see ``Hooks``.
        state: a file that the state of the training is kept in. Where it is there already, training goes on from it and
            ends at the weights of an undisturbed one, bit for bit on the same machine and threads.
        save_seconds: how often; 0 is after every step.
        belongs: what else ``state`` belongs to, as text: penalty and attack, which are only callables here.
        engine: several processes (``pinchpoint.train.parallel.Together``); this one alone where None.

    Returns:
        A ``Training`` record. ``stopped`` says why it ended early.

    Raises:
        DivergedError: where the loss stops being finite; the last good weights are put back first.
        DataError: where there is nothing to train on.
        CheckpointError: where ``state`` is damaged or belongs to another training.
        StoreError: where ``state`` cannot be written.

    >>> from pinchpoint.data import DataConfig, load

    >>> from pinchpoint.models import ModelConfig, build
    >>> data = load(DataConfig(name="digits"))
    >>> model = build(ModelConfig(hidden=(32,)), data.input_shape, data.classes)
    >>> train(model, data, TrainConfig(epochs=15), seed=0).validation_accuracy > 0.8
    True
    """
    hooks = Hooks(penalty, after_step, attack, check, on_step, on_epoch)
    _refuse(model, data, config, hooks)
    engine = engine or Alone(next(model.parameters()).device)
    session = _session(model, config, seed, hooks)
    recipe = _recipe(model, data, config, seed, engine, belongs)
    loop = Loop(session, data, config, hooks, engine, state, save_seconds, recipe)
    with torch.random.fork_rng(devices=[engine.device] if engine.device.type == "cuda" else []):
        torch.manual_seed(seed + engine.rank)
        if state is not None and state.is_file():
            session.restore(state, loop.recipe, engine)
        loop.run()
    return loop.finish()


def _session(model: nn.Module, config: TrainConfig, seed: int, hooks: Hooks) -> Session:
    device = next(model.parameters()).device
    average = None
    if config.ema is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema), use_buffers=True)
    memories: dict[str, object] = {"penalty": hooks.penalty, "after_step": hooks.after_step, "check": hooks.check}
    return Session(
        model=model,
        optimizer=_optimizer(model, config),
        scaler=torch.amp.GradScaler(device.type, enabled=config.precision == "float16"),
        average=average,
        order=torch.Generator().manual_seed(seed),
        augment=torch.Generator().manual_seed(seed),
        memories={name: memory for name, memory in memories.items() if isinstance(memory, Stateful)},
        kept={name: value.detach().clone() for name, value in model.state_dict().items()},
    )


def _optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if config.optimizer == "adamw":
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in trained)  # a third of the time on a CPU
        return torch.optim.AdamW(trained, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(
        trained,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
    )


def _refuse(model: nn.Module, data: Trainable, config: TrainConfig, hooks: Hooks) -> None:
    for name, part in (("training", data.train), ("validation", data.validation)):
        if len(part) == 0:
            raise DataError(f"training needs {name} samples", "none", "use a data set with a training part")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ModelError("some weight must be free to be trained", "none", "unfreeze a layer")
    if hooks.attack is None and (config.trades_beta is not None or config.monitor == "attacked"):
        rule = "train.trades_beta and train.monitor attacked need an attack"
        raise ModelError(rule, "none", "give adversarial training a threat")


def _recipe(model: nn.Module, data: Trainable, config: TrainConfig, seed: int, engine: Engine, belongs: str) -> str:
    """A hash of what a training state belongs to."""
    labels = hashlib.sha256(data.train.labels.numpy().tobytes() + data.validation.labels.numpy().tobytes())
    shapes = {name: (tuple(value.shape), value.requires_grad) for name, value in model.named_parameters()}
    content = [config.model_dump(mode="json"), seed, engine.processes, labels.hexdigest(), shapes, belongs]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
