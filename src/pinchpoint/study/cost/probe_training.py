"""How long a training will take: some of its steps, and of its validations, on the first samples of the data."""

from __future__ import annotations

import math
import statistics
import time

from pinchpoint.data import AnyDataset, Dataset, load
from pinchpoint.errors import DivergedError
from pinchpoint.evaluate.logits import BATCH
from pinchpoint.recipes.recipe import Recipe, Watch, make
from pinchpoint.records import EpochRecord
from pinchpoint.study.config.cell import Cell, FactorizeConfig, PruneConfig
from pinchpoint.train import TrainConfig
from pinchpoint.train.parallel import Alone
from pinchpoint.utils.device import device_of

ENOUGH = 0.3
"""Seconds after which a probe has seen enough."""

_STEPS, _BATCHES = 100, 8
"""The most training steps of a probe, and on how many batches, over and over."""


class _Enough(Exception):
    """Thrown from a watch to end a training."""


def tuning(cell: Cell) -> float:
    """The fine-tuning of a model that was made smaller, as if it were as large as before."""
    asked = cell.compress
    if not isinstance(asked, PruneConfig | FactorizeConfig) or asked.tune is None:
        return 0.0
    tune, times = asked.tune, asked.steps if isinstance(asked, PruneConfig) else 1
    recipe = Recipe(
        model=cell.model,
        penalty=tune.penalty,
        adversarial=tune.adversarial,
        device=cell.device,
        threads=cell.threads,
    )
    return times * training(recipe, load(cell.judged_data), tune.train)


def training(recipe: Recipe, data: AnyDataset, config: TrainConfig) -> float:
    """A training to its last epoch, from some of its steps and validations."""
    few = _few(data, config.batch_size)
    batches = math.ceil(len(few.train) / config.batch_size)
    short = {"epochs": math.ceil(_STEPS / batches), "patience": None, "schedule": "constant", "milestones": ()}
    short_recipe = recipe.model_copy(update={"train": config.model_copy(update={**short, "warmup_epochs": 0.0})})
    steps: list[float] = []
    checks: list[float] = []
    begun = last = time.perf_counter()

    def step(epoch: int, done: int, of: int) -> None:
        nonlocal last
        now = time.perf_counter()
        if (epoch, done) != (1, 1):  # everything is slower for the first time
            steps.append(now - last)
        last = now
        slow = now - begun > 10 * ENOUGH  # then without a validation
        if len(steps) >= 2 and (slow or (checks and now - begun > ENOUGH)):
            raise _Enough

    def epoch(record: EpochRecord) -> None:
        nonlocal last
        now = time.perf_counter()
        checks.append(now - last)
        last = now

    engine = Alone(device_of(recipe.device))
    try:
        make(short_recipe, few, seed=0, engine=engine, watch=Watch(step, epoch))
    except _Enough:
        pass
    except DivergedError:
        if not steps:
            raise
    one = statistics.fmean(steps)
    check = statistics.fmean(checks) / len(few.validation) if checks else one / (3 * config.batch_size)
    return config.epochs * (math.ceil(len(data.train) / config.batch_size) * one + check * len(data.validation))


def _few(data: AnyDataset, batch: int) -> Dataset:
    """The first samples of each part, in memory."""
    x, y = data.train.tensors(batch * _BATCHES)
    x_check, y_check = data.validation.tensors(BATCH)
    return Dataset(data.name, data.classes, x, y, x_check, y_check, x_check, y_check)
