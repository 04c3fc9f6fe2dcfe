"""Engines: the same records wherever a run is done; a run that fails is noted; a worker that dies is told of."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
from dataclasses import dataclass

import pytest

from pinchpoint.errors import StoreError
from pinchpoint.study import Failure, Store, StudyConfig, Task, default_workers, parse, run


class Notes:
    """A watcher that writes down what it is told."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, str]] = []
        self.done: list[tuple[str, Failure | None]] = []
        self.threads: set[threading.Thread] = set()

    def stage(self, task: Task, stage: str) -> None:
        self.stages.append((task.id, stage))

    def finished(self, task: Task, failure: Failure | None) -> None:
        self.done.append((task.id, failure))
        self.threads.add(threading.current_thread())


def leftovers(store: Store) -> list[str]:
    return [path.name for path in store.root.iterdir() if path.name != "runs"]


WILD = {"name": "wild", "view": "neuron", "grid": {"train.learning_rate": [1e30]}}
DIVERGES = r"the loss must stay finite, but got a training loss of nan at step 2 .*; the initial weights are kept\."


@dataclass(frozen=True)
class Beside:
    """The tiny study and a family that diverges, done by two workers."""

    config: StudyConfig
    store: Store
    notes: Notes
    failures: list[Failure]


@pytest.fixture(scope="module")
def beside(edited, tmp_path_factory) -> Beside:
    config = parse(edited({"families/+": WILD}))
    store, notes = Store(tmp_path_factory.mktemp("beside")), Notes()
    return Beside(config, store, notes, run(config, store, watcher=notes, workers=2))


@pytest.mark.long
def test_workers_write_the_same_records(finished, beside, numbers):
    store = beside.store
    assert leftovers(store) == []
    for task in finished.config.plan():
        here, there = finished.runs[task.id], store.load(task.id)
        assert numbers(there.model_dump()) == numbers(here.model_dump())
        weights = [s.path(task.id) / "model.safetensors" for s in (finished.store, store)]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.long
def test_workers_report_each_run_once_from_this_process(beside):
    notes, tasks = beside.notes, beside.config.plan()
    assert sorted(name for name, _ in notes.done) == sorted(task.id for task in tasks)
    assert notes.threads == {threading.main_thread()}
    assert multiprocessing.active_children() == []


@pytest.mark.long
def test_run_that_fails_in_a_worker_is_noted_and_the_others_are_done(beside):
    labels = [f"wild: learning_rate 1e+30, seed {seed}" for seed in (0, 1)]
    assert sorted(failure.label for failure in beside.failures) == labels
    assert all(re.fullmatch(DIVERGES, failure.reason) for failure in beside.failures)
    failed = {name: failure for name, failure in beside.notes.done if failure}
    for task in beside.config.plan():
        assert beside.store.has(task.id) == (task.id not in failed)
        assert (task.label in labels) == (task.id in failed)
    assert sorted(failed.values(), key=str) == sorted(beside.failures, key=str)


def test_in_process_watcher_sees_the_stages_of_each_run_in_order(edited, tmp_path):
    config = parse(edited({"seeds": [3], "families": [{"name": "one", "view": "neuron", "grid": {"threads": [1]}}]}))
    (task,) = config.plan()
    notes = Notes()
    assert run(config, Store(tmp_path), watcher=notes) == []
    audited = [f"{stage} {norm}" for norm in ("linf", "l2") for stage in ("bound", "attack", "mechanism")]
    assert notes.stages == [(task.id, stage) for stage in ("train", "profile", *audited)]
    assert notes.done == [(task.id, None)]
    assert run(config, Store(tmp_path), watcher=notes) == []
    assert len(notes.done) == 1, "a finished run is not even looked at"


def test_run_that_fails_is_noted_with_its_reason_and_the_others_are_done(edited, tmp_path):
    config = parse(edited({"seeds": [0], "families/0": WILD}))
    store, notes = Store(tmp_path), Notes()
    (failure,) = run(config, store, watcher=notes)
    assert failure.label == "wild: learning_rate 1e+30, seed 0"
    assert re.fullmatch(DIVERGES, failure.reason)
    assert [store.has(task.id) for task in config.plan()] == [False, True, True]
    assert leftovers(store) == []
    assert [noted is None for _, noted in notes.done] == [False, True, True]


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_store_that_cannot_be_written_stops_the_study(tiny, tmp_path, workers):
    (tmp_path / "file").write_text("")
    notes = Notes()
    with pytest.raises(StoreError, match="must be writable"):
        run(tiny, Store(tmp_path / "file"), watcher=notes, workers=workers)
    assert notes.done == []
    assert multiprocessing.active_children() == []


class Breaks(Notes):
    """Does something to the study once a run is finished."""

    def __init__(self, deed: object) -> None:
        super().__init__()
        self.deed = deed

    def finished(self, task: Task, failure: Failure | None) -> None:
        super().finished(task, failure)
        if len(self.done) == 1:
            self.deed()


def kill_a_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.long
def test_worker_that_is_killed_is_one_sentence_and_the_rest_can_be_done_later(tiny, finished, tmp_path, numbers):
    store, notes = Store(tmp_path), Breaks(kill_a_worker)
    with pytest.raises(StoreError) as caught:
        run(tiny, store, watcher=notes, workers=2)
    assert str(caught.value) == (
        "worker processes must live to the end, but got one was killed (out of memory?); "
        "run again with --workers 1, finished runs are kept."
    )
    assert multiprocessing.active_children() == []
    kept = [task.id for task in tiny.plan() if store.has(task.id)]
    assert 1 <= len(kept) < 8
    rest = Notes()
    assert run(tiny, store, watcher=rest) == []
    assert sorted(name for name, _ in rest.done) == sorted({task.id for task in tiny.plan()} - set(kept))
    for task in tiny.plan():
        assert numbers(store.load(task.id).model_dump()) == numbers(finished.runs[task.id].model_dump())


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupt_keeps_what_is_finished_and_nothing_else(tiny, tmp_path, workers):
    store, notes = Store(tmp_path), Breaks(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, store, watcher=notes, workers=workers)
    kept = [task.id for task in tiny.plan() if store.has(task.id)]
    assert 1 <= len(kept) <= workers + 1, "workers do not go on with what was handed out before"
    assert leftovers(store) == []
    assert multiprocessing.active_children() == []
    for name in kept:
        assert store.load(name).id == name


def test_as_many_workers_as_cores_this_process_may_use_and_no_more_than_four(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert default_workers() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert default_workers() == 4
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1
