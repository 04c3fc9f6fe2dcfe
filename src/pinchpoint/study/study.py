"""A study from beginning to end: check, run what is missing, summarise, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from pinchpoint.errors import ConfigError
from pinchpoint.records import Run, Summary
from pinchpoint.study.config import StudyConfig, Task, parse
from pinchpoint.study.engine import Failure, Watcher, work
from pinchpoint.study.run import check
from pinchpoint.study.store import Store
from pinchpoint.study.summary import summarise


class Silent:
    """A watcher that says nothing."""

    def stage(self, task: Task, stage: str) -> None:
        """Nothing."""

    def finished(self, task: Task, failure: Failure | None) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Status:
    """How far a study has come."""

    total: int
    finished: int
    waiting: tuple[str, ...]


def catalogue(name: str) -> StudyConfig:
    """A study that comes with the package, by name.

    Raises:
        ConfigError: where there is none of that name.

    >>> catalogue("demo").seeds
    (0, 1, 2)
    """
    files = {file.name: file for file in (resources.files("pinchpoint.study") / "paper").iterdir()}
    if f"{name}.yaml" not in files:
        known = ", ".join(sorted(file.removesuffix(".yaml") for file in files))
        raise ConfigError("a study of the catalogue must be known by name", name, f"use one of: {known}")
    return parse(files[f"{name}.yaml"].read_text(encoding="utf-8"), f"{name}.yaml")


def status(config: StudyConfig, store: Store) -> Status:
    """Which runs are finished."""
    tasks = config.plan()
    waiting = tuple(task.label for task in tasks if not store.has(task.id))
    return Status(len(tasks), len(tasks) - len(waiting), waiting)


def run(config: StudyConfig, store: Store, *, watcher: Watcher | None = None, workers: int = 1) -> list[Failure]:
    """Run what is not finished. Finished runs are never run again.

    Args:
        config: the study.
        store: where runs are kept.
        watcher: told of progress.
        workers: processes to use.

    Returns:
        Runs that failed for their own reasons.

    Raises:
        PinchpointError: before anything is written, where some run cannot work; or where the store cannot be written.
    """
    store.belongs_to(config.study)
    store.sweep()
    tasks = [task for task in config.plan() if not store.has(task.id)]
    if not tasks:
        return []
    check(tasks)
    return work(tasks, store, watcher or Silent(), workers=workers)


def gather(config: StudyConfig, store: Store, failures: Sequence[Failure] = ()) -> tuple[Summary, list[Run]]:
    """The summary and records of the finished runs, and summary.json and records.parquet written into the store.

    Raises:
        StoreError: where no run is finished.
    """
    store.belongs_to(config.study)
    runs = {task.id: store.load(task.id) for task in config.plan() if store.has(task.id)}
    summary = summarise(config, runs, failures)
    store.write_summary(summary)
    store.write_parquet(summary.models)
    return summary, list(runs.values())
