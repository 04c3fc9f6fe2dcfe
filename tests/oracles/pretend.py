"""Stages that only pretend to work: made-up results that depend on what the real ones depend on, in milliseconds.

They leave a file written in pieces, and a log of who began what, so that kills find something to spoil.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

from pinchpoint.errors import DivergedError
from pinchpoint.records import (
    Bounded,
    Carried,
    Fooled,
    Judged,
    Measured,
    Mechanism,
    Queried,
    Record,
    RobustAt,
    StageRecord,
    Training,
)
from pinchpoint.study import Stage, Store
from report import factory

PIECES = 4


def perform(stage: Stage, store: Store) -> str | None:
    """What ``study.perform.perform`` does, but for the work."""
    if store.has(stage.key):
        return None
    _log(store.root, f"{stage.kind}-{stage.id} {os.getpid()}")
    record = store.add(stage.key, lambda folder: fill(stage, store, folder))
    return record.reason if record.status == "failed" else None


def copied(record: StageRecord, folder: Path) -> StageRecord:
    """A record as if it had been pretended."""
    (folder / "large.txt").write_text(record.digest * PIECES)
    return record


def linger(store: Store) -> None:
    """A stage that never ends, and has begun to write."""

    def fill(folder: Path) -> StageRecord:
        (folder / "half").touch()
        while True:
            time.sleep(0.01)

    store.add(("train", "a"), fill)


def begun(root: Path) -> dict[str, list[int]]:
    """KIND-ID to the processes that began it, in order."""
    found: dict[str, list[int]] = {}
    path = _log_of(root)
    for line in path.read_text().splitlines() if path.exists() else ():
        name, process = line.split()
        found.setdefault(name, []).append(int(process))
    return found


def check_whole(store: Store, stages: dict) -> None:
    """Everything that is there is there whole, and is what it says."""
    for key, record in store.load(stages).items():
        if record.status == "done":
            assert (store.folder(key) / "large.txt").read_text() == record.digest * PIECES
            assert record.digest == stages[key].digest
            assert begun(store.root)[f"{key[0]}-{key[1]}"].count(int(record.machine)) == 1
            assert begun(store.root)[f"{key[0]}-{key[1]}"][-1] == int(record.machine), "begun again after it was there"


def fill(stage: Stage, store: Store, folder: Path) -> StageRecord:
    parents = [(store.folder(key) / "large.txt").read_text() for key in stage.parents]
    with (folder / "large.txt").open("w") as file:
        for _ in range(PIECES):
            file.write(stage.digest)
            file.flush()
            time.sleep(0.0005)
    status, reason, result = "done", None, None
    if stage.kind == "train" and stage.cell.train.learning_rate > 1:
        status, reason = "failed", str(DivergedError("the loss must stay finite", "nan", "lower the learning rate"))
    elif stage.norm == "l1" and stage.kind in ("bound", "mechanism"):
        status, reason = "skipped", "pretended."
    else:
        result = _result(stage, "".join(parents))
    return StageRecord(
        id=stage.id, digest=stage.digest, kind=stage.kind, parents=["/".join(parent) for parent in stage.parents],
        seed=stage.seed, config=stage.config(), status=status, reason=reason,
        versions={"pinchpoint": "pretended"}, machine=str(os.getpid()), seconds=time.time(), result=result,
    )  # fmt: skip


def _result(stage: Stage, parents: str) -> Record:
    noise = random.Random(stage.digest + parents)
    if stage.kind == "train":
        return Training(
            epochs=noise.randrange(9),
            best_epoch=1,
            validation_loss=noise.random(),
            validation_accuracy=0.9,
            seconds=1.0,
        )
    if stage.kind == "profile":
        audit = factory.run(factory.FAMILIES[0], noise.randrange(4), noise.randrange(9), []).audit
        return Measured(profile=audit.profile, clean_accuracy=audit.clean_accuracy, samples=30, parameters=1184)
    norm, eps, pressure = stage.threat.norm, stage.threat.eps, noise.random()
    if stage.kind == "query":
        return Queried(norm=norm, eps=eps, queries=5, robust_accuracy=pressure)
    if stage.kind == "transferred":
        return Carried(norm=norm, eps=eps, robust_accuracy=pressure, surrogate_accuracy=0.9)
    if stage.kind == "bound":
        radii = [noise.random() for _ in range(30)]
        return Bounded(bounds=factory.bounds(norm, pressure, noise), eps=eps, gap_bound=9.0, radii=radii)
    if stage.kind == "universal":
        return Fooled(norm=norm, eps=eps, accuracy=pressure)
    if stage.kind == "mechanism":
        return Mechanism(**{**factory.mechanism(norm, pressure, noise).model_dump(), "eps": eps})
    curve = [RobustAt(eps=one, robust_accuracy=noise.random()) for one in sorted({*stage.threat.curve, eps})]
    return Judged(
        norm=norm, eps=eps, robust_accuracy=next(point.robust_accuracy for point in curve if point.eps == eps),
        clean_loss=0.1, adversarial_loss=0.1 + pressure, settled={"clean": 3, "survived": 27}, curve=curve,
    )  # fmt: skip


def _log_of(root: Path) -> Path:
    return root.with_name(f"{root.name}.log")


def _log(root: Path, line: str) -> None:
    file = os.open(_log_of(root), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, f"{line}\n".encode())  # one short write is whole or not there
    os.close(file)
