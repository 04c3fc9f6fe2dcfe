"""Who does the stages: this process, a few worker processes on this machine, or (``ray_engine``, ``slurm``) a cluster.

An engine is handed jobs and says what became of them; it knows nothing of what a job means. A stage uses its own number of
threads (``threads`` in its configuration), so its numbers do not depend on the engine.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pinchpoint.errors import PinchpointError
from pinchpoint.study.graph.stages import Key
from pinchpoint.study.store import store


@dataclass(frozen=True)
class Job:
    """A piece of work: ``call(*arguments)`` does it, and both cross process borders.

    Attributes:
        key: whose outcome it will be.
        call: what is called.
        arguments: with what.
        cpus: how many it keeps busy.
        gpus: 1 where it may use one.
        home: the folder that whoever does it must see, where there is one.
    """

    key: Key
    call: Callable[..., object]
    arguments: tuple[Any, ...]
    cpus: int = 1
    gpus: int = 0
    home: Path | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a job: ``value`` is what it returned, ``error`` what it raised, ``lost`` says why nobody knows."""

    key: Key
    value: object = None
    error: Exception | None = None
    lost: str | None = None


class Engine(Protocol):
    """Does jobs, ``slots`` at a time."""

    @property
    def slots(self) -> int:
        """How many it takes now."""

    def begin(self) -> None:
        """Begin to start what takes long to; asked before there is a job, and perhaps none will follow."""

    def submit(self, job: Job) -> None:
        """Take a job; at most ``slots`` are taken and not yet given back."""

    def wait(self, seconds: float) -> Sequence[Outcome]:
        """What has ended since the last call; waits up to so many seconds for something."""

    def close(self) -> None:
        """Let go of everything, jobs in hand included; they leave nothing behind."""


def default_workers() -> int:
    """As many processes as this process may use cores, four at most (each holds a copy of torch)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 4)


class Here:
    """This process, one job after the other."""

    slots = 1

    def __init__(self) -> None:
        self._ended: list[Outcome] = []

    def begin(self) -> None:
        """This process runs."""

    def submit(self, job: Job) -> None:
        """Does it at once."""
        try:
            self._ended.append(Outcome(job.key, job.call(*job.arguments)))
        except PinchpointError as error:
            self._ended.append(Outcome(job.key, error=error))

    def wait(self, seconds: float) -> list[Outcome]:
        """What was done."""
        ended, self._ended = self._ended, []
        return ended

    def close(self) -> None:
        """Nothing is in hand."""


class Processes:
    """Worker processes on this machine. Where one dies, all are replaced, and what they had in hand is lost.

    Args:
        workers: how many.
    """

    def __init__(self, workers: int) -> None:
        self.slots = workers
        self._running: dict[Future[object], Key] = {}
        self._pool: ProcessPoolExecutor | None = None

    def begin(self) -> None:
        """The workers start, and import what stages need. One that dies of it is no matter yet: jobs get others."""
        with _interrupts_held():
            try:
                for _ in range(self.slots):
                    self._workers().submit(warm)
            except (BrokenProcessPool, OSError):  # its pipe is closed while the next one is to start
                self._end()

    def _workers(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.slots, multiprocessing.get_context("spawn"), initializer=_begin)
        return self._pool

    def submit(self, job: Job) -> None:
        """Hands it to a worker."""
        with _interrupts_held():
            try:
                self._running[self._workers().submit(attempt, job)] = job.key
            except BrokenProcessPool:  # seen when the others are waited for
                lost: Future[object] = Future()
                lost.set_exception(BrokenProcessPool())
                self._running[lost] = job.key

    def wait(self, seconds: float) -> list[Outcome]:
        """What workers have given back."""
        done, _ = wait(self._running, timeout=seconds, return_when=FIRST_COMPLETED)
        outcomes, broken = [], False
        for future in done:
            key = self._running.pop(future)
            error = future.exception()
            if isinstance(error, BrokenProcessPool):
                outcomes.append(Outcome(key, lost="its process was killed (out of memory?)"))
                broken = True
            elif error is None:
                outcomes.append(Outcome(key, future.result()))
            elif isinstance(error, Exception):
                outcomes.append(Outcome(key, error=error))
            else:
                raise error
        if broken:
            outcomes += [Outcome(key, lost="its process was killed (out of memory?)") for key in self._running.values()]
            self._running = {}
            self._end()
        return outcomes

    def close(self) -> None:
        """Ends the workers; what they had in hand is cleared away before this returns."""
        self._end()

    def _end(self) -> None:
        pool, self._pool = self._pool, None
        if pool is None:
            return
        for process in list((pool._processes or {}).values()):
            process.terminate()
        pool.shutdown(cancel_futures=True)


def warm() -> None:
    """In a worker: import what stages need, which takes seconds."""
    importlib.import_module("pinchpoint.study.stages.run")


def outcome_of(job: Job) -> Outcome:
    """Do a job. An error that is not ours takes its traceback along as a note, for those who read it elsewhere."""
    try:
        return Outcome(job.key, job.call(*job.arguments))
    except PinchpointError as error:
        return Outcome(job.key, error=error)
    except Exception as error:
        error.add_note(traceback.format_exc())
        return Outcome(job.key, error=error)


def attempt(job: Job) -> object:
    """In a worker. Terminated, it clears away what it was writing."""
    signal.signal(signal.SIGTERM, _leave)
    try:
        return job.call(*job.arguments)
    except SystemExit:
        os._exit(143)  # of a user's code; passed on, the pool would catch it and hand this process the next job
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _leave(number: int, frame: object) -> None:
    """Clears away what is half-written and ends. Nothing is raised: inside a call-back of compiled code it would be lost."""
    store.remove_half_written()
    os._exit(143)


def _begin() -> None:
    """A worker leaves interrupts to the driver, and does not outlive it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, daemon=True).start()


def _follow() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        with suppress(ProcessLookupError):
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
