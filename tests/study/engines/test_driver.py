"""The driver: each stage once, parents first, failures kept and told, the work shared with other drivers."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles import pretend
from oracles.watching import Notes
from pinchpoint.errors import ModelError, StoreError
from pinchpoint.study import Cell, Here, Stage, Store, failures, parse, plan, run, status
from pinchpoint.study.engines.driver import RETRIES, drive
from pinchpoint.study.engines.local import Job, Outcome

DRIVE = importlib.import_module("pinchpoint.study.engines.driver")


@pytest.fixture
def pretended(monkeypatch):
    """Studies whose stages only pretend to work."""
    monkeypatch.setattr("pinchpoint.study.stages.run.perform", pretend.perform)
    monkeypatch.setattr("pinchpoint.study.stages.run.check", lambda cells: None)


def begun(store: Store, since: Counter[str] | None = None) -> Counter[str]:
    """How many stages of each kind were begun."""
    counted = Counter(name.partition("-")[0] for name, who in pretend.begun(store.root).items() for _ in who)
    return counted - (since or Counter())


# --- what is done -------------------------------------------------------------------------------------------------------


def test_stages_are_done_once_parents_first_and_run_by_run(pretended, finished, tmp_path):
    store, notes = Store(tmp_path / "store"), Notes()
    assert run(finished.config, store, watcher=notes) == []
    done = [stage.key for stage, _ in notes.done]
    assert done == list(finished.plan.stages) == [stage.key for stage in notes.began]
    for place, key in enumerate(done):
        assert set(finished.plan.stages[key].parents) <= set(done[:place])
    assert begun(store).total() == 80
    assert run(finished.config, store) == []
    assert begun(store).total() == 80


CHANGES = [
    ({"base/audit/steps": 5}, {"attack": 16, "mechanism": 16}),
    ({"base/audit/threats/1/eps": 0.4}, {"attack": 8, "mechanism": 8, "bound": 8, "universal": 8}),
    ({"base/audit/threats/0/curve": [0.02]}, {"attack": 8, "mechanism": 8}),
    ({"base/audit/universal_steps": 4}, {"universal": 16}),
    ({"base/audit/bound_steps": 3}, {"bound": 16}),
    ({"base/audit/k_share": 0.2}, {"profile": 8, "mechanism": 16}),
    ({"base/data/limit_test": 30}, {"profile": 8, "bound": 16, "attack": 16, "universal": 16, "mechanism": 16}),
    ({"base/train/epochs": 3}, {"train": 8, "profile": 8, "bound": 16, "attack": 16, "universal": 16, "mechanism": 16}),
    ({"seeds": [0, 1, 2]}, {"train": 4, "profile": 4, "bound": 8, "attack": 8, "universal": 8, "mechanism": 8}),
    ({"base/data/workers": 3}, {}),
    ({"base/audit/stages": ["attack"]}, {}),
    ({"title": "Another", "study": "other", "families/0/name": "group"}, {}),
]


@pytest.mark.parametrize(("changes", "expected"), CHANGES, ids=lambda value: str(value)[:40])
def test_what_is_changed_is_done_again_and_nothing_else(pretended, finished, edited, tmp_path, changes, expected):
    store = Store(tmp_path / "store")
    for key, record in finished.records.items():
        store.add(key, lambda folder, record=record: pretend.copied(record, folder))
    assert run(parse(edited(changes)), store) == []
    assert begun(store) == expected


def test_studies_in_one_store_share_what_they_have_in_common(pretended, edited, tmp_path):
    store = Store(tmp_path / "store")
    assert run(parse(edited({"seeds": [0], "families": [RANK]})), store) == []
    first = begun(store)
    assert first["train"] == 2
    assert (
        run(parse(edited({"seeds": [0], "study": "other", "families": [LASSO, RANK | {"name": "again"}]})), store) == []
    )
    assert begun(store, first)["train"] == 2, "three, of which the plain one is there"


LASSO = {"name": "lasso", "view": "neuron", "grid": {"penalty.group_lasso": [0, 0.1, 0.2]}}
RANK = {"name": "rank", "view": "spectral", "grid": {"model.rank": [None, 2]}}


# --- what fails ---------------------------------------------------------------------------------------------------------

WILD = {"name": "wild", "view": "neuron", "grid": {"train.learning_rate": [1e30, 0.01]}}
NAN = "the loss must stay finite, but got nan; lower the learning rate."


def test_a_failing_cell_is_kept_with_its_reason_told_again_and_tried_again_where_asked(pretended, edited, tmp_path):
    config, store = parse(edited({"seeds": [0], "families": [WILD]})), Store(tmp_path / "store")
    bad, good = plan(config).tasks
    for expected in (1, 1, 2):  # the second run does not try again
        notes = Notes()
        (failure,) = run(config, store, watcher=notes, retry_failed=expected == 2)
        assert (failure.label, failure.reason) == ("wild: learning_rate 1e+30, seed 0", NAN)
        assert pretend.begun(store.root)[f"train-{bad.model[1]}"].__len__() == expected
        assert store.failures() == {bad.model}
        assert store.finished() == set(good.stages)
        assert failures(config, store) == [failure]
        now = status(config, store)
        assert (now.finished, now.failed, now.waiting) == (1, (failure,), ())
    assert store.load([bad.model])[bad.model].reason == NAN


def test_a_failure_is_told_for_all_that_needs_it(pretended, edited, tmp_path):
    config, store, notes = parse(edited({"seeds": [0], "families": [WILD]})), Store(tmp_path / "store"), Notes()
    run(config, store, watcher=notes)
    bad, good = plan(config).tasks
    told = {stage.key: reason for stage, reason in notes.done}
    assert told == dict.fromkeys(bad.stages, NAN) | dict.fromkeys(good.stages)
    assert len(notes.done) == len(told)


class Losing(Here):
    """An engine whose processes die so many times."""

    def __init__(self, deaths: int) -> None:
        super().__init__()
        self.deaths, self.taken = deaths, 0

    def submit(self, job: Job) -> None:
        self.taken += 1
        if self.taken <= self.deaths:
            self._ended.append(Outcome(job.key, lost="it was struck by lightning"))
        else:
            super().submit(job)


def only(config, kind: str) -> dict:
    """The first stage of a kind, without what it needs."""
    return {stage.key: stage._replace(parents=()) for stage in plan(config).stages.values() if stage.kind == kind}


@pytest.mark.parametrize("deaths", [0, RETRIES, RETRIES + 1])
def test_a_stage_whose_process_dies_is_tried_again_and_at_last_told(tiny, tmp_path, deaths):
    stages = dict(list(only(tiny, "train").items())[:1])
    (key,) = stages
    store, engine, notes = Store(tmp_path / "store"), Losing(deaths), Notes()
    reasons = drive(stages, store, engine, pretend.perform, notes)
    if deaths <= RETRIES:
        assert (reasons, engine.taken) == ({}, deaths + 1)
    else:
        reason = f"train: it was struck by lightning, {RETRIES + 1} times"
        assert (reasons, engine.taken) == ({key: reason}, RETRIES + 1)
        assert notes.done == [(stages[key], reason)]
        assert store.failures() == set(), "that is no fault of the stage"
    assert store.claims() == {}


@pytest.mark.parametrize(
    ("error", "passed_on"),
    [
        (ModelError("a", "b", "c"), False),
        (StoreError("a", "b", "c"), True),
        (KeyboardInterrupt(), True),
        (RuntimeError(), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_a_stage_raises_ends_the_stage_or_all(tiny, tmp_path, error, passed_on):
    store, stages = Store(tmp_path / "store"), only(tiny, "train")

    def perform(stage: Stage, store: Store) -> str | None:
        if stage.key == list(stages)[1]:
            raise error
        return pretend.perform(stage, store)

    if passed_on:
        with pytest.raises(type(error)) as caught:
            drive(stages, store, Here(), perform)
        assert caught.value is error
        assert store.finished() == set(list(stages)[:1])
    else:
        assert drive(stages, store, Here(), perform) == {list(stages)[1]: str(error)}
        assert len(store.finished()) == 7
    assert store.failures() == set()
    assert list((store.root / "claims").iterdir()) == []


# --- others -------------------------------------------------------------------------------------------------------------


@contextmanager
def another_driver(store: Store, key):
    """A process that lives and is at a stage."""
    process = subprocess.Popen([sys.executable, "-S", "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    path = store.root / "claims" / f"{key[0]}-{key[1]}"
    path.parent.mkdir(parents=True)
    assert store.claim(key)
    path.write_text(path.read_text().replace(str(os.getpid()), str(process.pid)))
    try:
        yield process
    finally:
        process.communicate()


class Meanwhile(Notes):
    """Does something once so many stages have ended."""

    def __init__(self, stages: int, deed) -> None:
        super().__init__()
        self.stages, self.deed = stages, deed

    def ended(self, stage: Stage, reason: str | None) -> None:
        super().ended(stage, reason)
        if len(self.done) == self.stages:
            self.deed()


def test_what_another_driver_is_at_is_left_to_it_and_taken_from_it(tiny, tmp_path):
    store, stages = Store(tmp_path / "store"), only(tiny, "train")
    first, *rest = stages

    def finish() -> None:
        assert store.finished() == set(rest)
        store.add(first, lambda folder: pretend.fill(stages[first], store, folder))

    notes = Meanwhile(7, finish)
    with another_driver(store, first):
        assert drive(stages, store, Here(), pretend.perform, notes) == {}
    assert first[1] not in str(pretend.begun(store.root))
    assert first not in [stage.key for stage in notes.began]
    assert notes.done[-1] == (stages[first], None)


def test_what_another_driver_saw_fail_is_not_tried_here(tiny, tmp_path):
    store, stages = Store(tmp_path / "store"), only(tiny, "train")
    first = next(iter(stages))

    def fail() -> None:
        done = pretend.fill(stages[first], store, tmp_path)
        record = done.model_copy(update={"status": "failed", "reason": NAN, "result": None})
        store.add(first, lambda folder: record)

    notes = Meanwhile(4, fail)
    with another_driver(store, first):
        assert drive(stages, store, Here(), pretend.perform, notes) == {first: NAN}
    assert first not in [stage.key for stage in notes.began]


def test_what_a_driver_that_dies_was_at_is_done_here(tiny, tmp_path):
    store, stages = Store(tmp_path / "store"), only(tiny, "train")
    first = next(iter(stages))
    with another_driver(store, first) as other:

        def die() -> None:
            other.kill()
            other.wait()

        notes = Meanwhile(7, die)
        assert drive(stages, store, Here(), pretend.perform, notes) == {}
    assert store.finished() == set(stages)
    assert notes.began[-1].key == first
    assert store.claims() == {}


def test_claims_are_renewed_while_this_process_is_at_one_stage_for_long(tiny, tmp_path, monkeypatch):
    """Else another driver would begin it too."""
    monkeypatch.setattr(DRIVE, "_RENEW", 0.05)
    store, stages = Store(tmp_path / "store"), dict(list(only(tiny, "train").items())[:1])
    ages = []

    def perform(stage: Stage, store: Store) -> None:
        path = store.root / "claims" / f"{stage.kind}-{stage.id}"
        os.utime(path, (0, 0))
        end = time.monotonic() + 30
        while path.stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        ages.append(time.time() - path.stat().st_mtime)

    before = threading.active_count()
    drive(stages, store, Here(), perform)
    assert ages[0] < 30
    assert threading.active_count() == before


# --- any graph ----------------------------------------------------------------------------------------------------------


class Memory(Store):
    """A store without files, where some stages are finished and some have failed."""

    def __init__(self, done: set, bad: set) -> None:
        super().__init__(Path("nowhere"))
        self.done, self.bad, self.claimed = set(done), set(bad), set()

    def finished(self, kinds=()):
        return set(self.done)

    def failures(self, kinds=()):
        return set(self.bad)

    def load(self, keys):
        return {key: type("Failed", (), {"reason": "before"}) for key in keys}

    def has(self, key):
        return key in self.done

    def failed(self, key):
        return key in self.bad

    def claim(self, key):
        assert key not in self.claimed
        self.claimed.add(key)
        return True

    def release(self, key):
        self.claimed.remove(key)

    def sweep(self):
        pass


class Shuffled:
    """An engine that does its jobs in an order of its own."""

    def __init__(self, slots: int, choose) -> None:
        self.slots, self.choose, self.jobs = slots, choose, []

    def submit(self, job: Job) -> None:
        self.jobs.append(job)
        assert len(self.jobs) <= self.slots

    def wait(self, seconds: float) -> list[Outcome]:
        job = self.jobs.pop(self.choose(len(self.jobs)))
        return [Outcome(job.key, job.call(*job.arguments))]


FATES = ["done", "new", "new", "bad", "known"]


def nodes(size: int):
    """Parents, which come before, and what becomes of each node."""
    before = [st.sets(st.integers(0, max(place - 1, 0)), max_size=3 if place else 0) for place in range(size)]
    return st.tuples(*(st.tuples(parents, st.sampled_from(FATES)) for parents in before))


graphs = st.integers(0, 12).flatmap(nodes)


@settings(max_examples=40)
@given(graphs, st.integers(1, 4), st.randoms(use_true_random=False))
def test_any_graph_is_done_once_in_order_as_far_as_failures_allow(graph, slots, chance):
    cell, stages, fate = Cell(), {}, {}
    for place, (parents, what) in enumerate(graph):
        key = ("train", str(place))
        stages[key] = Stage(key, b"", tuple(("train", str(parent)) for parent in sorted(parents)), cell, 0)
        fate[key] = what
    done = {key for key in stages if fate[key] == "done"}
    store, order = Memory(done, {key for key in stages if fate[key] == "known"}), []

    def perform(stage: Stage, store: Memory) -> str | None:
        assert set(stage.parents) <= store.done
        order.append(stage.key)
        if fate[stage.key] == "bad":
            return "now"
        store.done.add(stage.key)
        return None

    notes = Notes()
    reasons = drive(stages, store, Shuffled(slots, chance.randrange), perform, notes)
    lost: set = set()
    for key, stage in stages.items():
        if fate[key] in ("bad", "known") or (fate[key] == "new" and lost & set(stage.parents)):
            lost.add(key)
    blocked = {key for key in lost if fate[key] == "known" or lost & set(stages[key].parents)}
    assert set(reasons) == lost
    assert sorted(order) == sorted(stages.keys() - done - blocked)
    assert len(notes.done) == len({stage.key for stage, _ in notes.done})
    assert store.claimed == set()
