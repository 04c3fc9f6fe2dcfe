"""A study from beginning to end: check, do what is missing, put together, summarise, write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pinchpoint.records import Run, Summary
from pinchpoint.study.analysis.rows import read_rows
from pinchpoint.study.analysis.runs import together
from pinchpoint.study.analysis.summary import summarise
from pinchpoint.study.config.study import StudyConfig
from pinchpoint.study.engines.driver import Watcher, drive
from pinchpoint.study.engines.local import Engine, Here, Processes
from pinchpoint.study.graph.plan import Plan, Task, plan
from pinchpoint.study.graph.stages import Key
from pinchpoint.study.outputs.files import belongs_to, write_rows, write_summary
from pinchpoint.study.store.store import Store

MOST_DRAWN = 1000
"""Runs above which none are read for a page, which could not show so many."""


@dataclass(frozen=True)
class Failure:
    """A run that could not be done, and why."""

    label: str
    reason: str


@dataclass(frozen=True)
class Status:
    """How far a study has come: runs and stages, whole; what waits; what failed; who is at what."""

    total: int
    finished: int
    stages: dict[str, tuple[int, int]]
    waiting: tuple[str, ...]
    failed: tuple[Failure, ...]
    running: dict[str, str]


def status(config: StudyConfig, store: Store, planned: Plan | None = None) -> Status:
    """Which stages are finished, as of now. A plan that was made already need not be made again."""
    planned = planned or plan(config)
    finished = store.finished()
    waiting = planned.waiting(finished)
    failed = failures(config, store, planned)
    labels = {failure.label for failure in failed}
    stages: dict[str, tuple[int, int]] = {}
    for key in planned.stages:
        done, of = stages.get(key[0], (0, 0))
        stages[key[0]] = (done + (key in finished), of + 1)
    names = {f"{kind}-{name}" for kind, name in planned.stages}
    return Status(
        total=len(planned.tasks),
        finished=len(planned.tasks) - len(waiting),
        stages=stages,
        waiting=tuple(task.label for task in waiting if task.label not in labels),
        failed=tuple(failed),
        running={name: owner for name, owner in store.claims().items() if name in names},
    )


def failures(config: StudyConfig, store: Store, planned: Plan | None = None) -> list[Failure]:
    """Runs that need a stage which failed, with its reason."""
    planned = planned or plan(config)
    bad = {key for key in store.failures() if key in planned.stages}
    reasons = {key: record.reason or "" for key, record in store.load(bad).items() if record.status == "failed"}
    return _of_runs(planned.tasks, reasons)


def run(
    config: StudyConfig,
    store: Store,
    *,
    watcher: Watcher | None = None,
    workers: int = 1,
    engine: Engine | None = None,
    retry_failed: bool = False,
) -> list[Failure]:
    """Do what is not finished. What is finished is never done again.

    Args:
        config: the study.
        store: where stages are kept.
        watcher: told of progress.
        workers: processes to use, where no engine is given; 1 works in this process.
        engine: who does the stages; it is closed.
        retry_failed: forget failures first.

    Returns:
        Runs that failed for their own reasons, now or before.

    Raises:
        PinchpointError: before anything is written, where some run cannot work; or where the store cannot be written.
    """
    from pinchpoint.study.stages.run import check, perform

    planned = plan(config)
    store.sweep()
    if retry_failed:
        for key in store.failures() & planned.stages.keys():
            store.remove(key)
    finished = store.finished()
    waiting = planned.waiting(finished)
    if not waiting:
        return []
    store.check(finished & planned.stages.keys())
    bad = store.failures()
    wanted: set[Key] = {key for task in waiting for key in task.stages}
    stages = {key: stage for key, stage in planned.stages.items() if key in wanted}
    engine = engine or (Here() if workers <= 1 or len(stages) == 1 else Processes(workers))
    try:
        engine.begin()
        check(task.cell for task in waiting if bad.isdisjoint(task.stages))
        store.compact()
        reasons = drive(stages, store, engine, perform, watcher)
    finally:
        engine.close()
    store.compact()
    return _of_runs(waiting, reasons)


def _of_runs(tasks: Iterable[Task], reasons: dict[Key, str]) -> list[Failure]:
    found = []
    for task in tasks:
        reason = next((reasons[key] for key in task.stages if key in reasons), None)
        if reason is not None:
            found.append(Failure(task.label, reason))
    return found


def finished_runs(planned: Plan, store: Store) -> dict[str, Run]:
    """Runs of which every stage is there, by id."""
    records = store.load(planned.stages)
    found = {task.id: together(task, planned.stages, records) for task in planned.tasks}
    return {name: run for name, run in found.items() if run is not None}


def gather(
    config: StudyConfig, store: Store, failures: Sequence[Failure] = (), folder: Path | None = None
) -> tuple[Summary, list[Run]]:
    """The summary and records of the finished runs, with summary.json and records.parquet written.

    Args:
        config: the study.
        store: where its stages are.
        failures: what ``run`` returned.
        folder: for the two files; where None the store's own, or runs/STUDY for a store that is no folder.

    Raises:
        StoreError: where no run is finished, or the folder belongs to another study.
    """
    if folder is None:
        folder = Path("runs") / config.study if store.home is None else store.root
    belongs_to(folder, config.study)
    planned = plan(config)
    found = read_rows(config, planned, store)
    Store(folder).sweep()
    summary = summarise(config, planned, found, failures)
    write_summary(folder, summary)
    write_rows(folder, summary.models)
    runs = finished_runs(planned, store) if len(planned.tasks) <= MOST_DRAWN else {}
    return summary, list(runs.values())
