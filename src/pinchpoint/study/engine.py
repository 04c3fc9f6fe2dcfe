"""Who does the tasks: this process, or a few worker processes on this machine. The records are the same.

A run uses its own number of threads (``threads`` in its configuration), so its numbers do not depend on the engine.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
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
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    try:
        with _interrupts_held():
            waiting = {executor.submit(_attempt, task, store): task for task in tasks}
        for future in as_completed(waiting):
            task = waiting[future]
            failure = future.result()
            if failure is not None:
                failures.append(failure)
            watcher.finished(task, failure)
    except BrokenProcessPool:
        raise StoreError(
            "worker processes must live to the end",
            "one was killed (out of memory?)",
            "run again with --workers 1, finished runs are kept",
        ) from None
    except BaseException:
        for process in list((executor._processes or {}).values()):
            process.terminate()
        raise
    finally:
        executor.shutdown(cancel_futures=True)  # waits: what workers had in hand is cleared away before anyone counts
    return failures


def _attempt(task: Task, store: Store) -> Failure | None:
    try:
        signal.signal(signal.SIGTERM, _leave)
        try:
            do(task, store)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
    except SystemExit:
        os._exit(143)  # passed on, the pool would catch it and hand this process the next task
    except StoreError:
        raise
    except PinchpointError as error:
        return Failure(task.label, str(error))
    return None


def _leave(number: int, frame: object) -> None:
    """Lets the temporary directory of the run in hand be removed, whoever else asks meanwhile."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(143)


def _begin() -> None:
    """A worker leaves interrupts to the driver, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    driver = multiprocessing.parent_process()
    if driver is not None:
        driver.join()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Interrupts wait; processes started meanwhile never see one, not even before their first line of ours."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
