"""Models made in a folder: trained from a recipe, or made smaller from one that is there, fine-tuned and saved."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from pinchpoint.compress.prune import FineTune
from pinchpoint.data import load
from pinchpoint.data.load import AnyDataset
from pinchpoint.errors import CheckpointError, ConfigError, DivergedError, ModelError
from pinchpoint.evaluate import accuracy
from pinchpoint.models import build
from pinchpoint.models.checkpoint import CheckpointConfig, save
from pinchpoint.models.normalisation import normalisation_of
from pinchpoint.models.sources.open_model import Source
from pinchpoint.recipes.recipe import Recipe, Watch, continue_training
from pinchpoint.records import Compressed, Pruning, Skipped, Trained, Training
from pinchpoint.train.parallel import Alone, Engine, Together
from pinchpoint.utils.config import validate
from pinchpoint.utils.device import device_of
from pinchpoint.utils.files import writable
from pinchpoint.utils.provenance import machine, versions

_TRAINED, _COMPRESSED, _STATE = "training.json", "compression.json", "training.safetensors"
_GOOD = "last_good"
_OTHERS = ("model.safetensors", "config.json", _COMPRESSED)


def produce(
    recipe: Recipe, folder: Path, *, seed: int, devices: int = 1, nodes: int = 1, watch: Watch | None = None
) -> tuple[Training | None, bool]:
    """Train a recipe's model into a folder: a checkpoint and ``training.json``.

    While it trains, the folder holds the state of the training; a call after an interruption goes on from there.

    Args:
        recipe: what to make.
        folder: made where it is not there.
        seed: of everything drawn.
        devices, nodes: processes on each machine and machines that share each batch.
        watch: told of progress.

    Returns:
        How the model came to be, and whether this call trained it (False: it was there). None in other processes than the
        first.

    Raises:
        ConfigError: where the folder holds another model.
        DivergedError: where the loss stops being finite; weights of a whole epoch are kept in ``folder/last_good``.
        PinchpointError: for whatever does not fit together.
        StoreError: where the folder cannot be written.
    """
    known = _known(recipe, folder, seed)
    if known is not None:
        return known.training, False
    torch.set_num_threads(recipe.threads)
    engine = _engine(recipe, devices, nodes)
    data = load(recipe.data)
    about = CheckpointConfig(
        model=recipe.model, input_shape=data.input_shape, classes=data.classes, data=recipe.data.name
    )
    with _new(folder):
        model = build(recipe.model, data.input_shape, data.classes, seed=seed).to(engine.device)
        try:
            training = continue_training(
                model, recipe, data, seed=seed, engine=engine, state=folder / _STATE, watch=watch
            )
        except DivergedError as error:
            if engine.rank > 0 or not error.epoch:
                raise
            raise _rescued(error, model, about, folder) from None
        if engine.rank > 0:
            return None, True
        record = Trained(
            recipe=recipe.model_dump(mode="json"),
            seed=seed,
            versions=versions(),
            machine=f"{machine()}, {engine.device.type}",
            normalisation=str(normalisation_of(model)),
            training=training,
        )
    with writable(folder):
        save(folder, model, about)
        _write(folder / _TRAINED, record.model_dump_json(indent=1))
        (folder / _STATE).unlink(missing_ok=True)
    return training, True


def unfinished(folder: Path) -> bool:
    """Whether the folder holds the state of a training that was interrupted."""
    return (folder / _STATE).is_file()


@dataclass(frozen=True)
class Tuning:
    """Fine-tuning of a smaller model: its recipe (penalties, adversary, training), the data, and a seed."""

    recipe: Recipe
    data: AnyDataset
    seed: int = 0
    watch: Watch | None = None

    def __call__(self, model: nn.Module, after_step: Callable[[nn.Module], object] | None = None) -> None:
        """Train in place; what ``prune`` takes as ``fine_tune``."""
        device = next(model.parameters()).device
        continue_training(
            model,
            self.recipe,
            self.data,
            seed=self.seed,
            engine=Alone(device),
            after_step=after_step,
            watch=self.watch,
        )


@dataclass(frozen=True)
class Smaller:
    """A model made smaller. ``left`` has the layers that stayed as they were, and why."""

    model: nn.Module
    left: list[Skipped]
    pruning: Pruning | None = None


def compress(
    source: Source,
    make_smaller: Callable[[nn.Module, FineTune | None], Smaller],
    folder: Path,
    *,
    how: dict[str, object],
    data: AnyDataset | None = None,
    samples: int = 1000,
    tuning: Tuning | None = None,
    device: torch.device | None = None,
) -> Compressed:
    """Make a model smaller, fine-tune it, judge it on clean test images and save it as a checkpoint.

    Args:
        source: the model; it stays as it is.
        make_smaller: gets the model and, where it is to be fine-tuned, how.
        folder: for the checkpoint and ``compression.json``.
        how: what was asked for, for the record.
        data: judged on, where given.
        samples: of the test part, the first ones.
        tuning: None for no fine-tuning.
        device: where it is done.

    Raises:
        ConfigError: where the folder holds another model.
        ModelError: where the source cannot be saved as an architecture.
        StoreError: where the folder cannot be written.
    """
    if source.config is None or source.classes is None:
        raise ModelError(
            "a model made smaller is saved as a classifier's architecture", source.name, "choose a model with logits"
        )
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError("a new model goes into an empty folder", str(folder), "choose another with --out")
    device = device or torch.device("cpu")
    place = source.model.to(device)
    judge = functools.partial(_judge, data=data, samples=samples, device=device)
    left: list[float | None] = []

    def tune(model: nn.Module, after_step: Callable[[nn.Module], None] | None = None) -> None:
        left.append(judge(model))
        assert tuning is not None
        tuning(model, after_step)

    with _new(folder):
        before = judge(place)
        made = make_smaller(place, tune if tuning is not None else None)
        after = judge(made.model)
    record = Compressed(
        source=source.name,
        how=how,
        data=None if data is None else data.name,
        samples=None if data is None else min(samples, len(data.test)),
        clean_before=before,
        clean_cut=left[-1] if left else after,
        clean_after=after,
        parameters_before=sum(parameter.numel() for parameter in place.parameters()),
        parameters_after=sum(parameter.numel() for parameter in made.model.parameters()),
        left=made.left,
        pruning=made.pruning,
        versions=versions(),
        machine=f"{machine()}, {device.type}",
    )
    with writable(folder):
        about = CheckpointConfig(
            model=source.config,
            input_shape=source.input_shape,
            classes=source.classes,
            data="" if data is None else data.name,
        )
        save(folder, made.model, about)
        _write(folder / _COMPRESSED, record.model_dump_json(indent=1))
    return record


def _known(recipe: Recipe, folder: Path, seed: int) -> Trained | None:
    """The record of a finished training of this recipe in the folder."""
    path = folder / _TRAINED
    rule = f"{folder} must be new or hold this recipe's model"
    if not path.is_file():
        other = next((name for name in _OTHERS if (folder / name).exists()), None)
        if other is not None and not (folder / _STATE).is_file():
            raise ConfigError(rule, f"{other} of another model", "choose another with --out")
        return None
    try:
        record = Trained.model_validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise CheckpointError(
            f"{path} must be the record of a training", str(error).splitlines()[0], "choose another folder"
        ) from None
    if (_recipe_of(record, path).identity(), record.seed) != (recipe.identity(), seed):
        raise ConfigError(rule, "another recipe or seed", "choose another with --out")
    return record


def _recipe_of(record: Trained, path: Path) -> Recipe:
    """The recipe of a record."""
    return validate(Recipe, record.recipe, str(path))


@contextmanager
def _new(folder: Path) -> Iterator[None]:
    """A folder that is there and takes files, before hours of work; taken away again, with the folders made for it, where
    the work fails and leaves them empty.

    Raises:
        StoreError: where it cannot be made or written in.
    """
    new = [path for path in (folder, *folder.parents) if not path.is_dir()]
    with writable(folder), tempfile.TemporaryFile(dir=folder):
        pass
    try:
        yield
    except BaseException:
        with suppress(OSError):  # one holds something
            for path in new:
                path.rmdir()
        raise


def _rescued(error: DivergedError, model: nn.Module, about: CheckpointConfig, folder: Path) -> DivergedError:
    """The error, saying where the last good weights lie now. The state is of no more use: it leads to the same end."""
    good = folder / _GOOD
    with writable(good):
        save(good, model, about)
        (folder / _STATE).unlink(missing_ok=True)
    return DivergedError(error.rule, error.value, f"{error.remedy} in {good}", error.epoch)


def _engine(recipe: Recipe, devices: int, nodes: int) -> Engine:
    if devices * nodes == 1:
        return Alone(device_of(recipe.device))
    kind = device_of(recipe.device).type
    cores = os.cpu_count() or 1
    if kind == "cpu" and devices > cores:
        raise ConfigError(
            f"processes may be at most as many as cores, {cores}", devices, "ask for fewer with --devices"
        )
    return Together(devices, accelerator=kind, nodes=nodes)


def _judge(model: nn.Module, data: AnyDataset | None, samples: int, device: torch.device) -> float | None:
    if data is None:
        return None
    x, y = (tensor.to(device) for tensor in data.test.tensors(samples))
    training = model.training
    found = accuracy(model.eval(), x, y)
    model.train(training)
    return found


def _write(path: Path, text: str) -> None:
    beside = path.with_name(f".{path.name}.writing")
    beside.write_text(text + "\n", encoding="utf-8")
    beside.replace(path)
