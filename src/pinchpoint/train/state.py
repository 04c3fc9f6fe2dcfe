"""Everything of a training that changes while it runs, and the one file it is kept in.

The file is safetensors with the numbers of the loop in its metadata, replaced in one step: whenever the process is killed,
a whole state lies there, and training from it ends at the same weights, bit for bit on one machine.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from pinchpoint.errors import CheckpointError, StoreError
from pinchpoint.models.weights import put, read_safetensors
from pinchpoint.records import EpochRecord
from pinchpoint.train.parallel import Engine


@runtime_checkable
class Stateful(Protocol):
    """A penalty or intervention that remembers something between steps."""

    def state_dict(self) -> Mapping[str, Tensor]:
        """What it remembers."""

    def load_state_dict(self, state: Mapping[str, Tensor]) -> object:
        """Remember this instead."""


@dataclass
class Progress:
    """Where the loop is. ``epoch`` counts whole epochs, ``step`` the steps of the one in hand, ``loss`` sums over it."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    best_loss: float | None = None
    best_accuracy: float = 0.0
    best_epoch: int = 0
    seconds: float = 0.0
    stopped: str | None = None
    history: list[EpochRecord] = field(default_factory=list)


@dataclass
class Session:
    """The parts of a training that a killed one needs back.

    Attributes:
        model: the module itself, not what wraps it.
        optimizer: its state is kept; its learning rate follows from the step.
        scaler: of float16 gradients.
        average: exponential moving average of the weights, where there is one.
        order: draws the order of each epoch. Its state is the one at the beginning of the epoch in hand.
        augment: draws the augmentations.
        memories: penalties and interventions that are ``Stateful``, by name.
        kept: the weights that are put back in the end.
        progress: where the loop is.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    average: nn.Module | None
    order: torch.Generator
    augment: torch.Generator
    memories: dict[str, Stateful]
    kept: dict[str, Tensor]
    progress: Progress = field(default_factory=Progress)

    def save(self, path: Path, recipe: str, engine: Engine) -> None:
        """Write everything, by one rename. All processes take part; the first one writes.

        Raises:
            StoreError: where it cannot be written.
        """
        own = torch.random.get_rng_state()
        random = {"rng.cpu": engine.gather(own.to(engine.device)).cpu()}
        if engine.device.type == "cuda":
            random["rng.cuda"] = engine.gather(torch.cuda.get_rng_state(engine.device).to(engine.device)).cpu()
        if engine.rank == 0:
            tensors = {
                name: value.detach().cpu().contiguous().clone() for name, value in (self._tensors() | random).items()
            }
            progress = self.progress.__dict__ | {"history": [one.model_dump() for one in self.progress.history]}
            about = {"recipe": recipe, "progress": json.dumps(progress), "scaler": json.dumps(self.scaler.state_dict())}
            _replace(path, tensors, about)
        engine.wait()

    def restore(self, path: Path, recipe: str, engine: Engine) -> None:
        """Go on from a state that ``save`` wrote.

        Raises:
            CheckpointError: where it is damaged or belongs to another training.
        """
        tensors, about = read_safetensors(path)
        if about.get("recipe") != recipe:
            raise CheckpointError(
                f"the training state {path} must belong to the same configuration, data, model and seed",
                "another one",
                "give another folder, or delete the file to start anew",
            )
        self._put(tensors, path)
        torch.random.set_rng_state(tensors["rng.cpu"][engine.rank])
        if engine.device.type == "cuda":
            torch.cuda.set_rng_state(tensors["rng.cuda"][engine.rank], engine.device)
        self.scaler.load_state_dict(json.loads(about["scaler"]))
        content = json.loads(about["progress"])
        self.progress = Progress(**content | {"history": [EpochRecord(**one) for one in content["history"]]})

    def _tensors(self) -> dict[str, Tensor]:
        found = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        found |= {f"kept.{name}": value for name, value in self.kept.items()}
        if self.average is not None:
            found |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{key}": value for key, value in state.items() if isinstance(value, Tensor)}
        for name, memory in self.memories.items():
            found |= {f"memory.{name}.{key}": value for key, value in memory.state_dict().items()}
        return found | {"order": self.order.get_state(), "augment": self.augment.get_state()}

    def _put(self, tensors: dict[str, Tensor], path: Path) -> None:
        remedy = "delete the file to start anew"
        put(_under("model.", tensors), self.model, str(path), remedy)
        if self.average is not None:
            put(_under("average.", tensors), self.average, str(path), remedy)
        self.kept = {name: tensors[f"kept.{name}"].to(value.device) for name, value in self.kept.items()}
        state: dict[int, dict[str, Any]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = value
        self.optimizer.load_state_dict(self.optimizer.state_dict() | {"state": state})
        for name, memory in self.memories.items():
            memory.load_state_dict(_under(f"memory.{name}.", tensors))
        self.order.set_state(tensors["order"])
        self.augment.set_state(tensors["augment"])


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _replace(path: Path, tensors: dict[str, Tensor], about: dict[str, str]) -> None:
    writing = path.with_name(path.name + ".writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, writing, metadata=about)
        with writing.open("rb") as file:
            os.fsync(file.fileno())
        writing.replace(path)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            writing.unlink(missing_ok=True)
        raise StoreError(
            "the state of the training must be writable",
            f"{path} ({error})",
            "free some space or choose another folder",
        ) from None
