"""SIGKILL at random moments: nothing is lost, half-written or done twice, and the end is that of an undisturbed run.

The stages only pretend to work (``oracles.pretend``), so that the store and the drivers are all there is; the real command
is killed in tests/cli/test_study.py.
"""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from oracles import pretend
from oracles.nursery import Driver, Nursery, nursery
from pinchpoint.study import Plan, Store, StudyConfig, gather, plan

pytestmark = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")


@pytest.fixture(scope="module")
def drivers(tmp_path_factory):
    errors = tmp_path_factory.mktemp("nursery") / "errors"
    with nursery(errors) as found:
        yield found
    assert errors.read_text() == "", "drivers and workers die silently"


@dataclass(frozen=True)
class Undisturbed:
    """What the pretended study comes to where nobody disturbs it."""

    config: StudyConfig
    plan: Plan
    table: Any
    seconds: float


@pytest.fixture(scope="module")
def undisturbed(drivers: Nursery, tiny: StudyConfig, tmp_path_factory) -> Undisturbed:
    root, planned = tmp_path_factory.mktemp("undisturbed") / "store", plan(tiny)
    drivers.driver(root.with_name("first")).wait()
    began = time.monotonic()
    driver = drivers.driver(root)
    driver.wait()
    seconds = time.monotonic() - began
    assert driver.ended == []
    assert Store(root).finished() == set(planned.stages)
    return Undisturbed(tiny, planned, table(tiny, Store(root)), seconds)


def table(config: StudyConfig, store: Store) -> Any:
    """The rows of the summary, without what depends on the clock."""
    return [{key: value for key, value in row.items() if key != "seconds"} for row in gather(config, store)[0].models]


def check(store: Store, undisturbed: Undisturbed) -> None:
    """Nothing is half there, whatever has just been killed."""
    pretend.check_whole(store, undisturbed.plan.stages)


def check_end(store: Store, undisturbed: Undisturbed) -> None:
    """Everything is there, once, with nothing beside it."""
    check(store, undisturbed)
    assert store.finished() == set(undisturbed.plan.stages)
    assert store.failures() == set()
    assert table(undisturbed.config, store) == undisturbed.table
    assert list((store.root / "claims").iterdir()) == []
    assert {path.name for path in store.root.iterdir()} == {"stages", "claims", "summary.json", "records.parquet"}


def end(drivers: Nursery, root: Path) -> None:
    """A driver that nobody kills."""
    last = drivers.driver(root)
    last.wait()
    assert last.ended == []


def kept(store: Store) -> dict[Path, int]:
    """Records that are there, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in store.root.glob("stages/*/*/record.parquet")}


@pytest.mark.long
def test_a_driver_killed_at_random_moments_forty_times(drivers, undisturbed, tmp_path):
    moments, kills, study = random.Random(1), 0, 0
    while kills < 40:
        study += 1
        store, before = Store(tmp_path / f"study{study}"), dict[Path, int]()
        while True:
            driver = drivers.driver(store.root)
            time.sleep(moments.uniform(0, undisturbed.seconds / 3))
            if not driver.kill():
                assert driver.ended == []
                break
            kills += 1
            now = kept(store)
            assert before.items() <= now.items(), "what was there stays as it was"
            before = now
            if kills % 5 == 0:
                check(store, undisturbed)
        check_end(store, undisturbed)
    assert kills >= 40


def kill_a_worker(driver: Driver, moments: random.Random) -> bool:
    workers = driver.workers()
    if workers:
        with suppress(ProcessLookupError):
            os.kill(moments.choice(workers), signal.SIGKILL)
    return bool(workers)


@pytest.mark.long
def test_workers_killed_at_random_moments_twelve_times(drivers, undisturbed, tmp_path):
    """Their driver starts others; where one stage has bad luck four times, it says so, and the next driver goes on."""
    moments, kills, study = random.Random(2), 0, 0
    while kills < 12:
        study += 1
        store = Store(tmp_path / f"study{study}")
        ended: list[str] | None = None
        while ended != []:
            driver, last = drivers.driver(store.root, workers=2), time.monotonic() + 120
            while driver.ended is None:
                assert time.monotonic() < last, "the driver hangs"
                time.sleep(moments.uniform(0, undisturbed.seconds / 4))
                if kills < 12:
                    kills += kill_a_worker(driver, moments)
            driver.wait()
            ended = driver.ended
            assert all("its process was killed (out of memory?), 4 times" in reason for reason in ended)
            check(store, undisturbed)
        check_end(store, undisturbed)


@pytest.mark.long
def test_two_drivers_share_the_work(drivers, undisturbed, tmp_path):
    store = Store(tmp_path / "study")
    pair = [drivers.driver(store.root) for _ in range(2)]
    for driver in pair:
        driver.wait()
        assert driver.ended == []
    check_end(store, undisturbed)
    begun = pretend.begun(store.root)
    assert [len(who) for who in begun.values()] == [1] * len(undisturbed.plan.stages), "nothing is done by both"
    parts = [sum(who == [driver.process] for who in begun.values()) for driver in pair]
    assert min(parts) >= 1, "each does a part"


@pytest.mark.slow
def test_of_two_drivers_one_is_killed_and_the_other_takes_over_six_times(drivers, undisturbed, tmp_path):
    moments = random.Random(3)
    for study in range(6):
        store = Store(tmp_path / f"study{study}")
        stays, goes = drivers.driver(store.root), drivers.driver(store.root)
        time.sleep(moments.uniform(0.1, 0.5) * undisturbed.seconds)
        killed = goes.kill()
        stays.wait()
        assert stays.ended == []
        end(drivers, store.root)  # which finds nothing to do, and sweeps
        check_end(store, undisturbed)
        again = {name: who for name, who in pretend.begun(store.root).items() if len(who) > 1}
        assert all(who == [goes.process, stays.process] for who in again.values())
        assert len(again) <= int(killed), "only what the dead one had in hand"


@pytest.mark.slow
def test_drivers_killed_two_hundred_times_while_others_are_at_it(drivers, undisturbed, tmp_path):
    """Three at once on one store, other moments each time."""
    moments, kills, study = random.Random(), 0, 0
    while kills < 200:
        study += 1
        store = Store(tmp_path / f"study{study}")
        crowd: list[Driver] = []
        while store.finished() != set(undisturbed.plan.stages):
            crowd += [drivers.driver(store.root) for _ in range(3 - len(crowd))]
            time.sleep(moments.uniform(0, undisturbed.seconds / 3))
            kills += crowd.pop(moments.randrange(3)).kill()
            check(store, undisturbed)
        for driver in crowd:
            driver.wait()
        end(drivers, store.root)
        check_end(store, undisturbed)
