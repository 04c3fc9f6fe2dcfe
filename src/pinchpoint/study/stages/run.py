"""One stage done, in whatever process: read what it needs from the store, work, keep the record and the files."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from torch import nn

from pinchpoint.data import AnyDataset, DataConfig, load
from pinchpoint.errors import DivergedError, ModelError, PinchpointError, StoreError
from pinchpoint.models import build
from pinchpoint.models.checkpoint import load as load_checkpoint
from pinchpoint.models.retrieval import load_captions
from pinchpoint.records import STAGE_KINDS, Record, StageRecord
from pinchpoint.records.stages import MODEL_STAGES
from pinchpoint.study.config.cell import Cell
from pinchpoint.study.graph.stages import Key, Stage
from pinchpoint.study.stages import audit
from pinchpoint.study.stages import models as making
from pinchpoint.study.store.store import Store
from pinchpoint.utils.device import device_of
from pinchpoint.utils.provenance import machine, versions


def perform(stage: Stage, store: Store) -> str | None:
    """Do a stage and keep its record; where it is there, nothing is done.

    Returns:
        Why it failed, where it did and would again.

    Raises:
        ModelError: where it does not fit into memory, which is not kept.
        StoreError: where the store cannot be read or written.
    """
    if store.has(stage.key):
        return None
    threads = torch.get_num_threads()
    torch.set_num_threads(stage.cell.threads)
    try:
        record = store.add(stage.key, lambda folder: _record(stage, store, folder))
    except (torch.OutOfMemoryError, MemoryError) as error:
        seen = f"{stage.name} ({(str(error) or 'out of memory').splitlines()[0]})"
        raise ModelError("a stage must fit into memory", seen, "make the model or audit.samples smaller") from None
    finally:
        torch.set_num_threads(threads)
    if record.digest != stage.digest:
        remedy = "change any value of one of them, for example its seed, or choose another folder with --out"
        raise StoreError(
            "the id of a stage must belong to one configuration", f"{stage.kind} {stage.id} of two", remedy
        )
    return record.reason if record.status == "failed" else None


def _record(stage: Stage, store: Store, folder: Path) -> StageRecord:
    start = time.perf_counter()
    status: Literal["done", "skipped", "failed"] = "done"
    reason, result = None, None
    try:
        result = _work(stage, store, folder)
    except StoreError:
        raise
    except PinchpointError as error:
        reason = str(error)
        status = (
            "skipped" if STAGE_KINDS[stage.kind].may_be_skipped and not isinstance(error, DivergedError) else "failed"
        )
    except SafetensorError as error:  # its word for a full disk
        raise OSError(str(error)) from None
    return StageRecord(
        id=stage.id,
        digest=stage.digest,
        kind=stage.kind,
        parents=[f"{kind}/{name}" for kind, name in stage.parents],
        seed=stage.seed,
        config=stage.config(),
        status=status,
        reason=reason,
        versions=versions(),
        machine=f"{machine()}, {device_of(stage.cell.device).type}",
        seconds=time.perf_counter() - start,
        result=result,
    )


def _work(stage: Stage, store: Store, folder: Path) -> Record:
    device = device_of(stage.cell.device)
    if stage.kind == "train":
        return making.train(stage, _data(stage.cell.data), device, folder)
    models = [_model(store, key, device) for key in stage.parents if key[0] in MODEL_STAGES]
    data = _data(stage.cell.judged_data)
    if stage.kind == "transfer":
        return making.transfer(stage, models[0], data, device, folder)
    if stage.kind == "compress":
        return making.compress(stage, models[0], data, device, folder)
    points = [store.folder(key) for key in stage.parents if key[0] == "attack"]
    return audit.look(stage, models, data, points[0] if points else None, folder)


@functools.lru_cache(maxsize=2)
def _data(config: DataConfig) -> AnyDataset:
    return load(config)


def _model(store: Store, key: Key, device: torch.device) -> nn.Module:
    return _loaded(store.folder(key), device)


@functools.lru_cache(maxsize=2)
def _loaded(folder: Path, device: torch.device) -> nn.Module:
    """From its files, also where this process has just made it: the same everywhere."""
    return load_checkpoint(folder)[0].to(device)


def check(cells: Iterable[Cell]) -> None:
    """Try what every run will need (data, model, device, captions) before any of them starts.

    Raises:
        PinchpointError: for the first thing that cannot work.
    """
    seen: set[object] = set()
    for cell in cells:
        captions = cell.audit.captions if "retrieval" in cell.audit.stages else None
        token = (cell.data, cell.judged_data, cell.model, cell.device, captions)
        if token in seen:
            continue
        seen.add(token)
        device_of(cell.device)
        _data(cell.judged_data)
        data = _data(cell.data)
        if captions is not None:
            load_captions(Path(captions.folder).expanduser(), captions.split)
        try:
            build(cell.model, data.input_shape, data.classes)
        except (RuntimeError, TypeError) as error:  # torch's words for sizes it cannot allocate or count
            asked = ", ".join(f"{key} {value}" for key, value in cell.model.model_dump(exclude_defaults=True).items())
            value = f"{asked} ({str(error).splitlines()[0]})"
            raise ModelError("a network must fit into memory", value, "make it smaller") from None
