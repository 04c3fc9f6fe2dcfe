"""Engines: jobs come back with what became of them; a study's records are the same wherever it is done."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import threading
import time
from dataclasses import dataclass

import pytest

from oracles.jobs import break_down, die, imported, nap, refuse
from oracles.watching import Notes
from pinchpoint.errors import ModelError, StoreError
from pinchpoint.study import (
    Failure,
    Here,
    Plan,
    Processes,
    Stage,
    Store,
    StudyConfig,
    default_workers,
    parse,
    plan,
    run,
)
from pinchpoint.study.engines.local import Job, Outcome


def leftovers(store: Store) -> list[str]:
    """What lies beside the stages, and claims that nobody needs."""
    claims = store.root / "claims"
    beside = [path.name for path in store.root.iterdir() if path.name not in ("stages", "failed", "claims")]
    return beside + ([path.name for path in claims.iterdir()] if claims.exists() else [])


# --- jobs ---------------------------------------------------------------------------------------------------------------


def results(engine, count: int) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    end = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < end
        found |= {outcome.key[1]: outcome for outcome in engine.wait(1.0)}
    return found


def test_here_does_one_job_at_once():
    engine = Here()
    engine.submit(Job(("train", "a"), max, (3, 4)))
    assert engine.wait(0) == [Outcome(("train", "a"), 4)]
    assert engine.wait(0) == []
    engine.submit(Job(("train", "b"), refuse, ()))
    (outcome,) = engine.wait(0)
    assert isinstance(outcome.error, ModelError)
    with pytest.raises(RuntimeError):
        engine.submit(Job(("train", "c"), break_down, ()))
    engine.close()


@pytest.mark.long
def test_processes_give_back_values_errors_and_what_was_lost(tmp_path):
    engine = Processes(1)
    try:
        engine.submit(Job(("train", "a"), max, (3, 4)))
        assert results(engine, 1) == {"a": Outcome(("train", "a"), 4)}
        engine.submit(Job(("train", "b"), refuse, ()))
        assert str(results(engine, 1)["b"].error) == "a, but got b; c."
        engine.submit(Job(("train", "c"), die, ()))
        assert results(engine, 1)["c"].lost == "its process was killed (out of memory?)"
        engine.submit(Job(("train", "d"), nap, (300, tmp_path / "nap")))  # by another, which takes its place
        while not (tmp_path / "nap").exists():
            assert engine.wait(0.01) == []
    finally:
        began = time.monotonic()
        engine.close()
    assert time.monotonic() - began < 60, "nobody waits for what was in hand"
    assert multiprocessing.active_children() == []


def test_as_many_workers_as_cores_this_process_may_use_and_no_more_than_four(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert default_workers() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert default_workers() == 4
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert default_workers() == 1


# --- a study by workers -------------------------------------------------------------------------------------------------

WILD = {"name": "wild", "view": "neuron", "grid": {"train.learning_rate": [1e30]}}
DIVERGES = r"the loss must stay finite, but got a training loss of nan at step 2 .*; the initial weights are kept\."


@dataclass(frozen=True)
class Beside:
    """The tiny study and a family that diverges, done by two workers."""

    config: StudyConfig
    plan: Plan
    store: Store
    notes: Notes
    failures: list[Failure]


@pytest.fixture(scope="module")
def beside(edited, tmp_path_factory) -> Beside:
    config = parse(edited({"families/+": WILD}))
    store, notes = Store(tmp_path_factory.mktemp("beside")), Notes()
    return Beside(config, plan(config), store, notes, run(config, store, watcher=notes, workers=2))


@pytest.mark.long
def test_workers_write_the_same_records(finished, beside, numbers):
    store = beside.store
    assert leftovers(store) == []
    there = store.load(finished.records)
    for key, here in finished.records.items():
        assert numbers(there[key].model_dump()) == numbers(here.model_dump())
        for name in ("model.safetensors", "points.safetensors"):
            files = [folder / name for folder in (finished.store.folder(key), store.folder(key))]
            assert files[0].exists() == files[1].exists() == (key[0] == {"m": "train", "p": "attack"}[name[0]])
            assert not files[0].exists() or files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.long
def test_workers_report_each_stage_once_from_this_process(beside):
    notes, stages = beside.notes, beside.plan.stages
    assert sorted(stage.key for stage, _ in notes.done) == sorted(stages)
    failed = {stage.key for stage, reason in notes.done if reason}
    began = [stage.key for stage in notes.began]
    assert len(began) == len(set(began))
    assert stages.keys() - set(began) == {key for key in failed if key[0] != "train"}, (
        "what needs a failed one is not begun"
    )
    assert notes.threads == {threading.main_thread()}
    assert multiprocessing.active_children() == []


@pytest.mark.long
def test_run_that_fails_in_a_worker_is_noted_and_the_others_are_done(beside):
    labels = [f"wild: learning_rate 1e+30, seed {seed}" for seed in (0, 1)]
    assert sorted(failure.label for failure in beside.failures) == labels
    assert all(re.fullmatch(DIVERGES, failure.reason) for failure in beside.failures)
    finished = beside.store.finished()
    for task in beside.plan.tasks:
        assert (task.label in labels) == (finished.isdisjoint(task.stages))
        assert (task.label not in labels) == (finished.issuperset(task.stages))
    assert {reason for _, reason in beside.notes.done if reason} == {failure.reason for failure in beside.failures}


def small(edited, seeds: list[int], **base: object) -> StudyConfig:
    """Runs of two stages."""
    family = {"name": "one", "view": "neuron", "grid": {"threads": [1]}}
    audit = {"samples": 8, "stages": [], "threats": [{"norm": "linf", "eps": 0.1}]}
    changes = {f"base/{key}": value for key, value in {"audit": audit, **base}.items()}
    return parse(edited({"seeds": seeds, "families": [family], **changes}))


def test_in_process_watcher_sees_the_stages_of_each_run_in_order(finished, edited, tmp_path):
    audit = finished.plan.tasks[0].cell.audit.model_dump(mode="json")
    config = small(edited, [3], audit=audit)
    notes = Notes()
    assert run(config, Store(tmp_path), watcher=notes) == []
    kinds = ("bound", "attack", "universal", "mechanism")
    expected = ["train", "profile", *(f"{stage} {norm}" for norm in ("linf", "l2") for stage in kinds)]
    assert [stage.name for stage in notes.began] == expected
    assert [(stage.name, reason) for stage, reason in notes.done] == [(name, None) for name in expected]
    assert run(config, Store(tmp_path), watcher=notes) == []
    assert len(notes.done) == len(expected), "a finished run is not even looked at"


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_store_that_cannot_be_written_stops_the_study(tiny, tmp_path, monkeypatch, workers):
    (tmp_path / "claims").write_text("")
    notes = Notes()
    with pytest.raises(StoreError, match="must be writable"):
        run(tiny, Store(tmp_path), watcher=notes, workers=workers)
    assert notes.began == notes.done == []
    assert multiprocessing.active_children() == []


class Breaks(Notes):
    """Does something to the study once a stage is finished."""

    def __init__(self, deed: object) -> None:
        super().__init__()
        self.deed = deed

    def ended(self, stage: Stage, reason: str | None) -> None:
        super().ended(stage, reason)
        if len(self.done) == 1:
            self.deed()


def kill_a_worker() -> None:
    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


@pytest.mark.slow
def test_worker_that_is_killed_is_replaced_and_what_it_had_in_hand_is_done_again(edited, tmp_path):
    store, notes, config = Store(tmp_path), Breaks(kill_a_worker), small(edited, [0, 1, 2])
    assert run(config, store, watcher=notes, workers=2) == []
    assert store.finished() == set(plan(config).stages)
    assert sorted(stage.key for stage, _ in notes.done) == sorted(plan(config).stages)
    assert leftovers(store) == []
    assert multiprocessing.active_children() == []


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_interrupt_keeps_what_is_finished_and_nothing_else(tiny, tmp_path, workers):
    store, notes = Store(tmp_path), Breaks(interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, store, watcher=notes, workers=workers)
    kept = store.finished()
    assert 1 <= len(kept) <= workers + 1, "workers do not go on with what was handed out before"
    assert leftovers(store) == []
    assert multiprocessing.active_children() == []
    assert store.load(kept).keys() == kept


@pytest.mark.long
def test_workers_that_were_begun_have_imported_what_stages_need():
    engine = Processes(1)
    try:
        engine.begin()
        engine.submit(Job(("train", "a"), imported, ("pinchpoint.study.stages.run",)))
        assert results(engine, 1)["a"].value is True
    finally:
        engine.close()
