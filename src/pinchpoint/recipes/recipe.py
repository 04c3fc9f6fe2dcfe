"""How one model is made: data, network, penalties, constraints, adversary and training, as one configuration."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator
from torch import nn

from pinchpoint.compress.constraints import ConstantFrobenius, FrobeniusBall, Intervention, InTurn, SpectralBall
from pinchpoint.compress.penalties.alignment import AlignmentPenalty
from pinchpoint.compress.penalties.base import Penalty, Sum
from pinchpoint.compress.penalties.group_lasso import GroupLasso
from pinchpoint.compress.penalties.nuclear_norm import NuclearNorm
from pinchpoint.compress.penalties.sparsity import L1, Hoyer
from pinchpoint.compress.penalties.spread import SpreadControl
from pinchpoint.data import DataConfig
from pinchpoint.data.load import AnyDataset
from pinchpoint.errors import ConfigError, brief
from pinchpoint.models import build
from pinchpoint.models.build import AnyModelConfig, LibraryConfig, ModelConfig, ZeroShotConfig
from pinchpoint.models.normalisation import parse_normalisation
from pinchpoint.recipes.adversarial import AdversarialConfig, OverfittingCheck, training_attack
from pinchpoint.records import EpochRecord, Training
from pinchpoint.train import TrainConfig, train
from pinchpoint.train.parallel import Engine
from pinchpoint.utils.config import StrictModel, mapping, overridden, read_text, validate


def _strength(description: str) -> float:
    strength: float = Field(default=0.0, ge=0, allow_inf_nan=False, description=description)
    return strength


class PenaltyConfig(StrictModel):
    """Strength of each penalty; 0 leaves it out."""

    l1: float = _strength("sum of |w|")
    group_lasso: float = _strength("sum of the l2 norms of rows (filters)")
    scale_invariant_group_lasso: float = _strength("the same over the layer's Frobenius norm")
    column_lasso: float = _strength("sum of the l2 norms of columns (inputs)")
    head_lasso: float = _strength("sum of the l2 norms of attention heads")
    nuclear_norm: float = _strength("sum of singular values")
    nuclear_mode: Literal["fast", "exact"] = "fast"
    hoyer: float = _strength("l1 over l2 norm of all entries")
    spread: float = _strength("variance of the dominant row norms")
    alignment: float = _strength("how much dominant directions of a layer meet those of the next")
    layers: tuple[str, ...] | None = Field(
        default=None, description="patterns of layer names; null: all but the head and an input convolution"
    )

    def build(self) -> Penalty | Sum | None:
        """The penalties to train with, or None."""
        layers = self.layers
        wanted: list[tuple[float, Callable[[float], Penalty]]] = [
            (self.l1, lambda strength: L1(strength, layers=layers)),
            (self.group_lasso, lambda strength: GroupLasso(strength, layers=layers)),
            (
                self.scale_invariant_group_lasso,
                lambda strength: GroupLasso(strength, layers=layers, scale_invariant=True),
            ),
            (self.column_lasso, lambda strength: GroupLasso(strength, layers=layers, over="columns")),
            (self.head_lasso, lambda strength: GroupLasso(strength, layers=layers, over="heads")),
            (self.nuclear_norm, lambda strength: NuclearNorm(strength, layers=layers, mode=self.nuclear_mode)),
            (self.hoyer, lambda strength: Hoyer(strength, layers=layers)),
            (self.spread, lambda strength: SpreadControl(strength, layers=layers)),
            (self.alignment, lambda strength: AlignmentPenalty(strength, layers=layers)),
        ]
        parts = [make(strength) for strength, make in wanted if strength > 0]
        return Sum(parts) if len(parts) > 1 else parts[0] if parts else None


class Recipe(StrictModel):
    """Everything a trained model depends on, but the seed. ``device`` may be ``auto``, ``cpu``, ``cuda`` or ``cuda:1``.

    Constraints hold after each step: ``constant_frobenius`` keeps every layer but the head at ``frobenius_scale`` times its
    first Frobenius norm, also before the first step; ``frobenius_ball`` and ``spectral_ball`` project it onto matrices of at
    most that norm.
    """

    data: DataConfig = DataConfig()
    model: AnyModelConfig = ModelConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    constant_frobenius: bool = False
    frobenius_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False, description="constant_frobenius only")
    frobenius_ball: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    spectral_ball: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    adversarial: AdversarialConfig | None = None
    train: TrainConfig = TrainConfig()
    device: str = "auto"
    threads: int = Field(default=1, ge=1, le=1024, description="part of what a run is: it changes rounding")

    def identity(self) -> dict[str, Any]:
        """All that decides the weights: everything but how image files are decoded. Options that came later count where
        they are used, so that ids made before them stay."""
        exclude: dict[str, Any] = {"data": {"workers", "memory_gb"}}
        if self.data.group_labels is None:
            exclude["data"].add("group_labels")
        if self.frobenius_scale == 1.0:
            exclude["frobenius_scale"] = True
        return self.model_dump(mode="json", exclude=exclude)

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("Input should be auto, cpu, cuda or cuda:N")
        return device

    @model_validator(mode="after")
    def _fits(self) -> Recipe:
        for key, asked in (("trades_beta", self.train.trades_beta), ("monitor", self.train.monitor == "attacked")):
            if asked and self.adversarial is None:
                raise ConfigError(f"train.{key} needs an adversary", "none", "add adversarial: {eps: 0.03}")
        if self.constant_frobenius and (self.frobenius_ball or self.spectral_ball):
            seen = "constant_frobenius beside a ball"
            raise ConfigError("a layer's norm is kept or bounded, not both", seen, "choose one of them")
        if self.frobenius_scale != 1.0 and not self.constant_frobenius:
            remedy = "add constant_frobenius: true"
            raise ConfigError("frobenius_scale needs constant_frobenius", self.frobenius_scale, remedy)
        return self


def read_recipe(path: Path, overrides: dict[str, object] | None = None, normalize: str | None = None) -> Recipe:
    """A recipe from a YAML file, with values at dotted paths replaced.

    Args:
        path: the file.
        overrides: values by dotted paths.
        normalize: see ``normalised``; None: as the recipe says.

    Raises:
        ConfigError: where the file is missing, is not YAML, holds unknown keys or values that do not fit.
    """
    keys = ", ".join(Recipe.model_fields)
    content = mapping(read_text(path, "a recipe"), str(path), keys)
    recipe = validate(Recipe, overridden(content, overrides or {}, str(path)), str(path))
    return recipe if normalize is None else normalised(recipe, normalize)


def normalised(recipe: Recipe, normalize: str) -> Recipe:
    """The recipe with its network's inputs normalised as asked: the network has it in front, and so has its checkpoint.

    Args:
        recipe: one that gives no mean and std itself.
        normalize: ``none``, ``imagenet`` or ``mean=...,std=...``, as everywhere.

    Raises:
        ConfigError: for any other word, or a recipe that says it already.

    >>> normalised(Recipe(), "mean=0.5,std=0.25").model.std
    (0.25,)
    """
    model = recipe.model
    if model.mean is not None or model.std is not None:
        said = f"model.mean {brief(model.mean)} and model.std {brief(model.std)} in it"
        raise ConfigError("the recipe says how inputs are normalised", said, "leave --normalize out")
    asked = parse_normalisation(normalize)
    if isinstance(model, LibraryConfig | ZeroShotConfig):  # with nothing given, they take that of their library
        asked = asked.explicit
    return recipe.model_copy(update={"model": model.model_copy(update=asked._asdict())})


@dataclass(frozen=True)
class Watch:
    """Told how training comes along: (epoch, step, steps of the epoch), and what each epoch came to."""

    step: Callable[[int, int, int], object] | None = None
    epoch: Callable[[EpochRecord], object] | None = None


def make(
    recipe: Recipe,
    data: AnyDataset,
    *,
    seed: int,
    engine: Engine,
    state: Path | None = None,
    watch: Watch | None = None,
) -> tuple[nn.Sequential, Training]:
    """Build the network of a recipe and train it.

    Args:
        recipe: what to make.
        data: the recipe's data, loaded.
        seed: of the initial weights and of the training.
        engine: this process, or one of several.
        state: where the state of the training is kept; see ``pinchpoint.train.train``.
        watch: told of progress.

    Returns:
        The network, in eval mode on the engine's device, and how it came to be.

    Raises:
        PinchpointError: for whatever does not fit together, and where the loss stops being finite.
    """
    model = build(recipe.model, data.input_shape, data.classes, seed=seed).to(engine.device)
    return model, continue_training(model, recipe, data, seed=seed, engine=engine, state=state, watch=watch)


def continue_training(
    model: nn.Module,
    recipe: Recipe,
    data: AnyDataset,
    *,
    seed: int,
    engine: Engine,
    after_step: Callable[[nn.Module], object] | None = None,
    state: Path | None = None,
    watch: Watch | None = None,
) -> Training:
    """Train a network that is there, in place, as a recipe says: fine-tuning, also of a pruned one.

    Args:
        after_step: called after each optimiser step, after the recipe's own constraints; ``prune``'s ``keep``, for one.
    """
    penalty, watch = recipe.penalty.build(), watch or Watch()
    if penalty is not None:
        penalty.describe(model)  # a penalty that touches nothing is refused before anything else happens
    attack = check = None
    if recipe.adversarial is not None:
        attack = training_attack(recipe.adversarial, trades=recipe.train.trades_beta is not None)
        if recipe.adversarial.kind == "fast" and recipe.adversarial.check_samples:
            check = OverfittingCheck(recipe.adversarial, data.validation, engine.device)
    return train(
        model,
        data,
        recipe.train,
        seed=seed,
        penalty=penalty,
        after_step=_constraints(model, recipe, after_step),
        attack=attack,
        check=check,
        on_step=watch.step,
        on_epoch=watch.epoch,
        state=state,
        belongs=json.dumps(recipe.identity(), sort_keys=True),
        engine=engine,
    )


def _constraints(
    model: nn.Module, recipe: Recipe, last: Callable[[nn.Module], object] | None
) -> Callable[[nn.Module], object] | None:
    parts: list[Intervention] = []
    if recipe.constant_frobenius:
        constant = ConstantFrobenius(model, include_head=False, factor=recipe.frobenius_scale)
        constant(model)  # so that the first step starts from the scaled weights
        parts.append(constant)
    if recipe.frobenius_ball is not None:
        parts.append(FrobeniusBall(model, recipe.frobenius_ball, include_head=False))
    if recipe.spectral_ball is not None:
        parts.append(SpectralBall(model, recipe.spectral_ball, include_head=False))
    if not parts:
        return last
    constraints = InTurn(parts)
    if last is None:
        return constraints

    def both(model: nn.Module) -> None:
        constraints(model)
        last(model)

    return both
