"""The store: a stage is there whole, or not at all; many records read quickly; who is at what."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import polars
import pytest

from oracles.stores import add, everything
from pinchpoint.errors import ModelError
from pinchpoint.records import StageRecord
from pinchpoint.study import Store
from pinchpoint.study.store import parquet
from pinchpoint.study.store.store import mark

HOST = "".join(letter for letter in platform.node() if letter.isalnum()) or "host"


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


# --- whole or not at all ------------------------------------------------------------------------------------------------


def test_add_then_load_gives_the_record_back(tmp_path, key, record):
    store = Store(tmp_path / "made" / "here")
    assert not store.has(key)
    assert store.load([key]) == {}
    assert not store.root.exists()
    seen = []

    def fill(folder: Path) -> StageRecord:
        seen.append(list(folder.iterdir()))
        (folder / "model.bin").write_bytes(b"weights")
        assert not store.has(key)
        return record

    assert store.add(key, fill) == record
    assert seen == [[]]
    assert store.has(key)
    assert not store.failed(key)
    assert store.finished() == {key}
    assert store.load([key]) == {key: record}
    assert [path.name for path in everything(store.root)] == ["model.bin", "record.parquet"]
    assert store.folder(key) == store.root / "stages" / key[0] / key[1]


@pytest.mark.parametrize("error", [ModelError("a", "b", "c"), KeyboardInterrupt(), SystemExit(1), RuntimeError("x")])
def test_fill_that_raises_leaves_no_trace(tmp_path, key, record, error):
    store = Store(tmp_path)

    def fill(folder: Path) -> StageRecord:
        (folder / "model.bin").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        store.add(key, fill)
    assert caught.value is error
    assert everything(tmp_path) == []
    assert not store.has(key)
    assert store.add(key, lambda folder: record) == record


def test_losing_the_race_keeps_the_result_of_the_other(tmp_path, key, record):
    store, other = Store(tmp_path), Store(tmp_path)
    mine = record.model_copy(update={"machine": "mine"})
    theirs = record.model_copy(update={"machine": "theirs"})

    def fill(folder: Path) -> StageRecord:
        add(other, theirs)
        return mine

    assert store.add(key, fill) == theirs
    assert store.load([key]) == {key: theirs}
    assert [path.name for path in everything(tmp_path)] == ["record.parquet"]


def test_a_failure_is_kept_with_its_reason_until_the_stage_is_done(tmp_path, key, record):
    store = Store(tmp_path)
    failed = record.model_copy(update={"status": "failed", "reason": "it broke.", "result": None})
    add(store, failed)
    assert (store.has(key), store.failed(key)) == (False, True)
    assert (store.finished(), store.failures()) == (set(), {key})
    assert store.load([key]) == {key: failed}
    add(store, record)
    assert store.load([key]) == {key: record}, "what was done counts"


def test_a_stage_that_cannot_be_done_is_finished(tmp_path, key, record):
    store = Store(tmp_path)
    skipped = record.model_copy(update={"status": "skipped", "reason": "no bound.", "result": None})
    add(store, skipped)
    assert (store.finished(), store.failures()) == ({key}, set())
    assert store.load([key]) == {key: skipped}


def test_remove_takes_a_stage_out_as_it_came(tmp_path, key, record):
    store = Store(tmp_path)
    add(store, record, record.model_copy(update={"status": "failed", "reason": "x", "result": None}))
    assert (store.has(key), store.failed(key)) == (True, True)
    store.remove(key)
    assert (store.has(key), store.failed(key)) == (False, False)
    assert everything(tmp_path) == []
    store.remove(key)


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path, gone):
    dead, alive, foreign = (
        tmp_path / f".writing-{name}-x" for name in (f"{HOST}-{gone}", f"{HOST}-{os.getpid()}", "elsewhere-1")
    )
    for folder in (dead, alive, foreign, tmp_path / "stages" / "kept", tmp_path / "claims"):
        (folder / "inside").mkdir(parents=True)
    (tmp_path / "claims" / "inside").rmdir()
    claims = {"dead": f"{HOST} {gone}", "alive": f"{HOST} {os.getppid()}", "foreign": "elsewhere 1"}
    for name, owner in claims.items():
        (tmp_path / "claims" / name).write_text(owner)
    Store(tmp_path).sweep()
    assert {path.name for path in tmp_path.iterdir()} == {alive.name, foreign.name, "stages", "claims"}
    assert (tmp_path / "stages" / "kept").is_dir()
    assert {path.name for path in (tmp_path / "claims").iterdir()} == {"alive", "foreign"}


def test_a_stage_in_hand_is_named_after_its_process_so_that_it_can_be_swept(tmp_path, key):
    def fill(folder):
        assert folder.parent.name.startswith(mark())
        assert f"-{os.getpid()}-" in folder.parent.name
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).add(key, fill)


# --- many records -------------------------------------------------------------------------------------------------------


def test_records_from_segments_are_those_of_the_stages(finished, tmp_path):
    """All at once, some at once, and some after the segments were made."""
    loose, store = Store(tmp_path / "loose"), Store(tmp_path / "store")
    records = list(finished.records.values())
    add(loose, *records)
    add(store, *records[: len(records) // 2])
    store.compact(above=3)
    segments = sorted((store.root / "segments").glob("*/*.parquet"))
    assert len(segments) >= 4
    add(store, *records[len(records) // 2 :])
    assert store.load(finished.records) == loose.load(finished.records) == finished.records
    store.compact(above=3)
    store.compact(above=3)
    assert store.load(finished.records) == finished.records
    some = list(finished.records)[::3]
    assert store.load(some) == {key: finished.records[key] for key in some}
    for kind in {key[0] for key in finished.records}:
        names = {key[1] for key in finished.records if key[0] == kind}
        whole = loose.table(kind, names).sort("id")
        assert store.table(kind, names).sort("id").equals(whole)
        wanted = [polars.col("seconds") + 1, polars.col("result").alias("found")]
        for one in (store, loose):
            assert one.table(kind, names, wanted).sort("id").equals(whole.select("id", *wanted))


def test_a_record_is_looked_for_in_its_own_segment_alone(finished, tmp_path, monkeypatch):
    """However many others there are."""
    store = Store(tmp_path)
    records = [record for key, record in finished.records.items() if key[0] == "train"]
    for record in records:
        add(store, record)
        store.compact(above=0)
    paths = sorted((tmp_path / "segments" / "train").glob("*.parquet"))
    assert len(paths) == len(records) > 2
    whole: list[Path] = []
    read = parquet.read

    def watched(kind, files, columns=()):
        whole.extend([] if columns else files)
        return read(kind, files, columns)

    monkeypatch.setattr(parquet, "read", watched)
    assert store.load([("train", records[1].id)]) == {("train", records[1].id): records[1]}
    assert len(whole) == 1
    assert whole[0] in paths


def test_few_records_need_no_segment(finished, tmp_path):
    store = Store(tmp_path)
    add(store, *finished.records.values())
    store.compact()
    assert not (tmp_path / "segments").exists()


def test_a_segment_never_speaks_for_a_stage_that_is_gone(tmp_path, finished):
    """Removed, or deleted by hand and done again, it is what is there now."""
    kind = "attack"
    records = [record for record in finished.records.values() if record.kind == kind]
    first, key = records[0], (kind, records[0].id)
    later = first.model_copy(update={"machine": "another"})
    store = Store(tmp_path)
    add(store, *records)
    for forget in (store.remove, lambda key: subprocess.run(["rm", "-r", store.folder(key)], check=True)):
        store.compact(above=3)
        assert list((tmp_path / "segments" / kind).iterdir())
        forget(key)
        assert store.load([key]) == {}
        store.compact(above=100)
        add(store, later)
        assert store.load([key]) == {key: later}
        store.compact(above=3)
        assert store.load([key]) == {key: later}
        store.remove(key)
        add(store, first)


def test_a_damaged_segment_is_passed_over(finished, tmp_path):
    store = Store(tmp_path)
    add(store, *finished.records.values())
    store.compact(above=3)
    for path in (tmp_path / "segments").glob("*/*.parquet"):
        path.write_bytes(path.read_bytes()[:100])
    assert store.load(finished.records) == finished.records
    store.compact(above=3)
    assert store.load(finished.records) == finished.records


# --- claims -------------------------------------------------------------------------------------------------------------


def claim_by(store: Store, key, owner: str, age: float = 0.0) -> Path:
    path = store.root / "claims" / f"{key[0]}-{key[1]}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(owner)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_a_claim_is_this_drivers_until_it_is_given_up(tmp_path, key):
    store = Store(tmp_path)
    assert store.claim(key)
    assert store.claims() == {f"{key[0]}-{key[1]}": f"{HOST} {os.getpid()}"}
    store.release(key)
    assert store.claims() == {}
    store.release(key)
    assert store.claim(key)


@pytest.mark.parametrize(
    ("owner", "age", "free"),
    [
        ("HOST PARENT", 0, False),
        ("HOST PARENT", 100, False),
        ("HOST PARENT", 130, True),
        ("HOST GONE", 0, True),
        ("elsewhere 1", 0, False),
        ("elsewhere 1", 110, False),
        ("elsewhere 1", 130, True),
        ("", 0, False),
        ("", 10, True),
    ],
    ids=[
        "alive", "alive, silent", "alive, stale: another process has its number", "dead", "elsewhere",
        "elsewhere, silent", "elsewhere, stale", "being written", "never written",
    ],
)  # fmt: skip
def test_the_claim_of_another_driver_holds_while_it_lives(tmp_path, key, gone, owner, age, free):
    store = Store(tmp_path)
    owner = owner.replace("HOST", HOST).replace("PARENT", str(os.getppid())).replace("GONE", str(gone))
    path = claim_by(store, key, owner, age)
    assert (store.claims() == {}) == free
    assert store.claim(key) == free
    assert path.read_text() == (f"{HOST} {os.getpid()}" if free else owner)
    assert [entry.name for entry in tmp_path.iterdir()] == ["claims"]


def test_renewing_keeps_a_claim_alive(tmp_path, key):
    store = Store(tmp_path)
    path = claim_by(store, key, "elsewhere 1", age=130)
    store.renew([key, ("train", "not there")])
    assert time.time() - path.stat().st_mtime < 60
    assert not store.claim(key)


def test_a_claim_that_another_driver_has_taken_over_meanwhile_is_left_to_it(tmp_path, key, gone, monkeypatch):
    """Both saw the dead one's claim; the second comes too late."""
    store = Store(tmp_path)
    path = claim_by(store, key, f"{HOST} {gone}")
    clear = Store._clear

    def late(self: Store, path: Path, mine: str) -> None:
        claim_by(store, key, f"{HOST} {os.getppid()}")
        clear(self, path, mine)

    monkeypatch.setattr(Store, "_clear", late)
    assert not store.claim(key)
    assert path.read_text() == f"{HOST} {os.getppid()}"
