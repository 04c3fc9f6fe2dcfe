"""Stages that leave a model: training, transfer to other data, and making it smaller."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from pinchpoint.compress import factorize, plan
from pinchpoint.compress.prune import FineTune, prune
from pinchpoint.compress.quantize import quantize
from pinchpoint.compress.rescale import rescale
from pinchpoint.data import AnyDataset
from pinchpoint.evaluate import accuracy
from pinchpoint.models.checkpoint import CheckpointConfig, save
from pinchpoint.recipes.folder import Tuning
from pinchpoint.recipes.recipe import Recipe, make
from pinchpoint.records import Compressed, Pruning, Training
from pinchpoint.study.config.cell import Cell, PruneConfig, QuantizeConfig, RescaleConfig, TuneConfig
from pinchpoint.study.graph.stages import Stage
from pinchpoint.train import train as train_model
from pinchpoint.train.parallel import Alone
from pinchpoint.train.transfer import replace_head
from pinchpoint.train.transfer import transfer as new_head
from pinchpoint.utils.provenance import machine, versions

_CHECKED = 1000
"""Validation samples on which a model is judged before and after it is made smaller: the stage knows of no audit."""


def train(stage: Stage, data: AnyDataset, device: torch.device, folder: Path) -> Training:
    """A recipe's model, from its first weights."""
    cell = stage.cell
    model, training = make(cell, data, seed=stage.seed, engine=Alone(device))
    _save(folder, model, cell, data)
    return training


def transfer(stage: Stage, model: nn.Module, data: AnyDataset, device: torch.device, folder: Path) -> Training:
    """A new head for other data, on a frozen encoder or with everything trained."""
    asked = stage.cell.transfer
    assert asked is not None
    if asked.mode == "linear":
        made = new_head(model, data, asked.train, seed=stage.seed)
        model, training = made.model, made.training
    else:
        model = replace_head(model, data.classes, seed=stage.seed)
        training = train_model(model, data, asked.train, seed=stage.seed, engine=Alone(device))
    _save(folder, model, stage.cell, data)
    return training


def compress(stage: Stage, model: nn.Module, data: AnyDataset, device: torch.device, folder: Path) -> Compressed:
    """A smaller model (or a control), fine-tuned where that is asked for."""
    cell, asked = stage.cell, stage.cell.compress
    assert asked is not None
    x, y = (tensor.to(device) for tensor in data.validation.tensors(_CHECKED))
    tune = getattr(asked, "tune", None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        tuning = None if tune is None else _tuning(tune, cell, data, stage.seed)
        cut: list[float] = []

        def tuned(smaller: nn.Module, after_step: Callable[[nn.Module], None] | None = None) -> None:
            cut.append(accuracy(smaller.eval(), x, y))
            assert tuning is not None
            tuning(smaller, after_step)

        smaller, pruning = _smaller(model, cell, data, None if tuning is None else tuned)
    smaller.eval()
    after = accuracy(smaller, x, y)
    _save(folder, smaller, cell, data)
    return Compressed(
        source="/".join(stage.parents[0]),
        how=asked.model_dump(mode="json"),
        data=data.name,
        samples=len(x),
        clean_before=accuracy(model, x, y),
        clean_cut=cut[-1] if cut else after,
        clean_after=after,
        parameters_before=sum(parameter.numel() for parameter in model.parameters()),
        parameters_after=sum(parameter.numel() for parameter in smaller.parameters()),
        left=[],
        pruning=pruning,
        versions=versions(),
        machine=f"{machine()}, {device.type}",
    )


def _smaller(model: nn.Module, cell: Cell, data: AnyDataset, tune: FineTune | None) -> tuple[nn.Module, Pruning | None]:
    asked = cell.compress
    if isinstance(asked, PruneConfig):
        pruned = prune(
            model,
            asked.ratio,
            input_shape=data.input_shape,
            unit=asked.unit,
            allocation=asked.allocation,
            criterion=asked.criterion,
            remove=asked.remove,
            steps=asked.steps,
            fine_tune=tune,
        )
        return pruned.model, pruned.report
    if isinstance(asked, QuantizeConfig):
        return quantize(model, asked.bits)[0], None
    if isinstance(asked, RescaleConfig):
        return rescale(model, asked.factor), None
    assert asked is not None
    chosen = plan(model, rank=asked.rank, energy=asked.energy, residual=asked.residual, include_head=asked.include_head)
    low = factorize(model, ranks=chosen.ranks)
    if tune is not None:
        tune(low, lambda model: None)
    return low, None


def _tuning(tune: TuneConfig, cell: Cell, data: AnyDataset, seed: int) -> Tuning:
    recipe = Recipe(
        data=cell.judged_data,
        model=cell.model,
        penalty=tune.penalty,
        adversarial=tune.adversarial,
        train=tune.train,
        device=cell.device,
        threads=cell.threads,
    )
    return Tuning(recipe, data, seed)


def _save(folder: Path, model: nn.Module, cell: Cell, data: AnyDataset) -> None:
    about = CheckpointConfig(
        model=cell.model, input_shape=data.input_shape, classes=data.classes, data=cell.judged_data.name
    )
    save(folder, model, about)
