"""The driver: hands out stages whose parents are there, notes what fails, and shares the work with other drivers.

Everything it knows lies in the store, so a driver that is killed loses nothing that was finished.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from pinchpoint.errors import PinchpointError, StoreError
from pinchpoint.study.engines.local import Engine, Job, Outcome
from pinchpoint.study.graph.stages import Key, Stage
from pinchpoint.study.store.store import Store

RETRIES = 3
"""How often a stage whose process died is tried again."""

_RENEW = 20.0
_LOOK, _PATIENCE = 0.2, 5.0


class Watcher(Protocol):
    """Told what happens; all calls come from the driver's process."""

    def started(self, stage: Stage) -> None:
        """A stage is handed out."""

    def ended(self, stage: Stage, reason: str | None) -> None:
        """A stage is there (None), or is not and why."""


class Silent:
    """A watcher that says nothing."""

    def started(self, stage: Stage) -> None:
        """Nothing."""

    def ended(self, stage: Stage, reason: str | None) -> None:
        """Nothing."""


Perform = Callable[[Stage, Store], str | None]
"""Does a stage and keeps its record; returns why it failed, where it did. Crosses process borders."""


@dataclass
class _State:
    """What is known of the stages that were not finished at the start."""

    order: dict[Key, int]
    needs: dict[Key, set[Key]]
    children: dict[Key, list[Key]]
    ready: list[tuple[int, Key]] = field(default_factory=list)
    running: set[Key] = field(default_factory=set)
    others: list[Key] = field(default_factory=list)
    reasons: dict[Key, str] = field(default_factory=dict)
    tries: dict[Key, int] = field(default_factory=dict)

    def done(self, key: Key) -> None:
        """Children that wait for nothing else become ready."""
        for child in self.children.pop(key, ()):
            self.needs[child].discard(key)
            if not self.needs[child] and child not in self.reasons:
                heapq.heappush(self.ready, (self.order[child], child))

    def failed(self, key: Key, reason: str) -> list[Key]:
        """The stage and all that needs it, which will not be done."""
        gone, stack = [], [key]
        while stack:
            one = stack.pop()
            if one not in self.reasons:
                self.reasons[one] = reason
                gone.append(one)
                stack += self.children.pop(one, ())
        return gone


def drive(
    stages: Mapping[Key, Stage],
    store: Store,
    engine: Engine,
    perform: Perform,
    watcher: Watcher | None = None,
    *,
    retries: int = RETRIES,
) -> dict[Key, str]:
    """Do all stages that have not ended.

    Stages are handed out in their order, as their parents are there: first what was begun is brought to its end. What
    another driver is at is left to it, and done here if that driver dies.

    Args:
        stages: parents before children.
        store: where they are kept.
        engine: who does them; the caller closes it.
        perform: does one.
        watcher: told of progress.
        retries: how often a stage is tried again whose process died.

    Returns:
        Why stages are not there, or there without a result: their own failure, or that of a stage they need.

    Raises:
        StoreError: where nothing can be written; the rest is not tried.
        KeyboardInterrupt: passed on; what is finished is kept.
    """
    watcher = watcher or Silent()
    state = _begin(stages, store)
    with _renewing(state, store):
        while state.ready or state.running or state.others:
            while state.ready and len(state.running) < engine.slots:
                _hand_out(stages[heapq.heappop(state.ready)[1]], stages, state, store, engine, perform, watcher)
            for outcome in engine.wait(_LOOK if state.others else _PATIENCE) if state.running else ():
                state.running.discard(outcome.key)
                store.release(outcome.key)
                _back(stages[outcome.key], outcome, stages, state, store, watcher, retries)
            if state.others:  # what another driver is at is asked about again
                if not state.running:
                    time.sleep(_LOOK)
                for key in state.others:
                    heapq.heappush(state.ready, (state.order[key], key))
                state.others = []
    return state.reasons


@contextmanager
def _renewing(state: _State, store: Store) -> Iterator[None]:
    """This driver's claims are kept alive from a thread, since a stage done in this process may take long; at last they
    are given up."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(_RENEW):
            store.renew(tuple(state.running))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        for key in state.running:
            store.release(key)


def _begin(stages: Mapping[Key, Stage], store: Store) -> _State:
    finished, failures = store.finished(), store.failures()
    state = _State({key: number for number, key in enumerate(stages)}, {}, {})
    for key, stage in stages.items():
        if key not in finished:
            missing = {parent for parent in stage.parents if parent not in finished}
            state.needs[key] = missing
            for parent in missing:
                state.children.setdefault(parent, []).append(key)
    known = [key for key in stages if key in failures and key not in finished]
    for key, record in store.load(known).items():
        state.failed(key, record.reason or "no reason")
    state.ready = [
        (state.order[key], key) for key, needs in state.needs.items() if not needs and key not in state.reasons
    ]
    heapq.heapify(state.ready)
    return state


def _hand_out(
    stage: Stage,
    stages: Mapping[Key, Stage],
    state: _State,
    store: Store,
    engine: Engine,
    perform: Perform,
    watcher: Watcher,
) -> None:
    key = stage.key
    if not _ended(stage, stages, state, store, watcher):  # another driver may be quicker
        if not store.claim(key):
            state.others.append(key)
            return
        if _ended(stage, stages, state, store, watcher):  # between the two questions
            store.release(key)
            return
        state.running.add(key)
        watcher.started(stage)
        gpus = 0 if stage.cell.device == "cpu" else 1
        engine.submit(Job(key, perform, (stage, store), stage.cell.threads, gpus, store.home))


def _ended(stage: Stage, stages: Mapping[Key, Stage], state: _State, store: Store, watcher: Watcher) -> bool:
    """Whether another driver has done the stage, or has seen it fail."""
    key = stage.key
    if store.has(key):
        state.done(key)
        watcher.ended(stage, None)
        return True
    if not store.failed(key):
        return False
    reason = store.load([key])[key].reason or "no reason"
    for gone in state.failed(key, reason):
        watcher.ended(stages[gone], reason)
    return True


def _back(
    stage: Stage,
    outcome: Outcome,
    stages: Mapping[Key, Stage],
    state: _State,
    store: Store,
    watcher: Watcher,
    retries: int,
) -> None:
    """What a job that has come back means for the rest."""
    key, reason = stage.key, None
    if outcome.error is not None:
        if isinstance(outcome.error, StoreError) or not isinstance(outcome.error, PinchpointError):
            raise outcome.error
        reason = str(outcome.error)
    elif outcome.lost is not None and not store.has(key):
        store.sweep()
        state.tries[key] = state.tries.get(key, 0) + 1
        if state.tries[key] <= retries:
            heapq.heappush(state.ready, (state.order[key], key))
            return
        reason = f"{stage.name}: {outcome.lost}, {state.tries[key]} times"
    elif isinstance(outcome.value, str):
        reason = outcome.value
    if reason is None:
        state.done(key)
        watcher.ended(stage, None)
        return
    for gone in state.failed(key, reason):
        watcher.ended(stages[gone], reason)
