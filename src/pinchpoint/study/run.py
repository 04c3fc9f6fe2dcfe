"""One run: train a model, audit it, keep checkpoint and record."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError

from pinchpoint.audit import audit
from pinchpoint.errors import ModelError
from pinchpoint.learn import AnyDataset, DataConfig, build, load
from pinchpoint.learn.checkpoint import CheckpointConfig, save
from pinchpoint.learn.device import device_of
from pinchpoint.learn.parallel import Alone
from pinchpoint.recipe import make
from pinchpoint.records import SCHEMA_VERSION, Run
from pinchpoint.study.config import Task
from pinchpoint.study.store import Store
from pinchpoint.workshop import machine, versions


@functools.lru_cache(maxsize=2)
def _data(config: DataConfig) -> AnyDataset:
    return load(config)


def check(tasks: Iterable[Task]) -> None:
    """Try what every run will need (data, model, device) before any of them starts.

    Raises:
        PinchpointError: for the first thing that cannot work.
    """
    for cell in dict.fromkeys(task.cell for task in tasks):
        device_of(cell.device)
        data = _data(cell.data)
        try:
            build(cell.model, data.input_shape, data.classes)
        except (RuntimeError, TypeError) as error:  # torch's words for sizes it cannot allocate or count
            asked = ", ".join(f"{key} {value}" for key, value in cell.model.model_dump(exclude_defaults=True).items())
            seen = f"{asked} ({str(error).splitlines()[0]})"
            raise ModelError("a network must fit into memory", seen, "make it smaller") from None


def do(task: Task, store: Store, on_stage: Callable[[str], None] | None = None) -> Run:
    """Do one task, or return its record where it is finished already."""
    if store.has(task.id):
        return store.load(task.id)
    threads = torch.get_num_threads()
    torch.set_num_threads(task.cell.threads)
    try:
        return store.add(task.id, lambda folder: _run(task, folder, on_stage or (lambda stage: None)))
    except (torch.OutOfMemoryError, MemoryError) as error:
        seen = f"{task.label} ({(str(error) or 'out of memory').splitlines()[0]})"
        raise ModelError("a run must fit into memory", seen, "make the model or audit.samples smaller") from None
    finally:
        torch.set_num_threads(threads)


def _run(task: Task, folder: Path, on_stage: Callable[[str], None]) -> Run:
    cell, seed = task.cell, task.seed
    device = device_of(cell.device)
    data = _data(cell.data)
    on_stage("train")
    model, training = make(cell, data, seed=seed, engine=Alone(device))
    audited = audit(model, data, cell.audit, seed=seed, on_stage=on_stage)
    about = CheckpointConfig(model=cell.model, input_shape=data.input_shape, classes=data.classes, data=cell.data.name)
    try:
        save(folder, model, about)
    except SafetensorError as error:  # its word for a full disk
        raise OSError(str(error)) from None
    return Run(
        id=task.id,
        schema_version=SCHEMA_VERSION,
        config=cell.model_dump(mode="json"),
        seed=seed,
        versions=versions(),
        machine=f"{machine()}, {device.type}",
        training=training,
        audit=audited,
    )
