"""Who does the tasks: this process, or a few worker processes on this machine. The records are the same.

A run uses its own number of threads (``threads`` in its configuration), so its numbers do not depend on the engine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Protocol

from pinchpoint.errors import PinchpointError, StoreError
from pinchpoint.study.config import Task
from pinchpoint.study.run import do
from pinchpoint.study.store import Store


@dataclass(frozen=True)
class Failure:
    """A run that could not be done, and why."""

    label: str
    reason: str


class Watcher(Protocol):
    """Told what happens; all calls come from the driver's process."""

    def stage(self, task: Task, stage: str) -> None:
        """A task has reached a stage (in-process only)."""

    def finished(self, task: Task, failure: Failure | None) -> None:
        """A task is done."""


def work(tasks: Sequence[Task], store: Store, watcher: Watcher, *, workers: int = 1) -> list[Failure]:
    """Do all tasks. A run that fails for its own reasons is noted and the others go on.

    Args:
        tasks: what to do; finished ones cost nothing.
        store: where the runs go.
        watcher: told of progress.
        workers: 1 works in this process; more start as many processes.

    Raises:
        StoreError: where nothing can be written; the rest is not tried.
        KeyboardInterrupt: passed on; finished runs are kept, unfinished ones leave nothing behind.
    """
    if workers <= 1 or len(tasks) <= 1:
        return _here(tasks, store, watcher)
    return _beside(tasks, store, watcher, min(workers, len(tasks)))


def default_workers() -> int:
    """As many processes as this process may use cores, four at most (each holds a copy of torch)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


def _here(tasks: Sequence[Task], store: Store, watcher: Watcher) -> list[Failure]:
    failures = []
    for task in tasks:
        failure = None
        try:
            do(task, store, _reporter(watcher, task))
        except StoreError:
            raise
        except PinchpointError as error:
            failure = Failure(task.label, str(error))
            failures.append(failure)
        watcher.finished(task, failure)
    return failures


def _reporter(watcher: Watcher, task: Task) -> Callable[[str], None]:
    return lambda stage: watcher.stage(task, stage)


def _beside(tasks: Sequence[Task], store: Store, watcher: Watcher, workers: int) -> list[Failure]:
    failures = []
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_ignore_interrupts)
    try:
        waiting = {executor.submit(_attempt, task, store): task for task in tasks}
        for future in as_completed(waiting):
            task = waiting[future]
            failure = future.result()
            if failure is not None:
                failures.append(failure)
            watcher.finished(task, failure)
    except BrokenProcessPool:
        raise StoreError(
            "worker processes must live to the end", "one was killed (out of memory?)", "run again with --workers 1"
        ) from None
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    executor.shutdown()
    return failures


def _attempt(task: Task, store: Store) -> Failure | None:
    try:
        do(task, store)
    except StoreError:
        raise
    except PinchpointError as error:
        return Failure(task.label, str(error))
    return None


def _ignore_interrupts() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the driver decides what an interrupt means
    signal.signal(signal.SIGTERM, lambda number, frame: _leave())


def _leave() -> None:
    raise SystemExit(143)  # lets the temporary directory of the run in hand be removed
