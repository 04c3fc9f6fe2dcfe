"""The store: a run is there whole, or not at all."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import polars
import pytest

from pinchpoint.errors import ModelError, StoreError
from pinchpoint.records import SCHEMA_VERSION, Run
from pinchpoint.study import Store


@pytest.fixture
def record(finished) -> Run:
    return next(iter(finished.runs.values()))


def everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() or path.name.startswith("."))


def test_add_then_load_gives_the_record_back(tmp_path, record):
    store = Store(tmp_path / "made" / "here")
    assert not store.has(record.id)
    seen = []

    def fill(folder: Path) -> Run:
        seen.append(list(folder.iterdir()))
        (folder / "model.bin").write_bytes(b"weights")
        assert not store.has(record.id)
        return record

    assert store.add(record.id, fill) == record
    assert seen == [[]]
    assert store.has(record.id)
    assert store.load(record.id) == record
    assert [path.name for path in everything(store.root)] == ["model.bin", "record.json"]
    assert store.path(record.id) == store.root / "runs" / record.id


@pytest.mark.parametrize("error", [ModelError("a", "b", "c"), KeyboardInterrupt(), SystemExit(1), RuntimeError("x")])
def test_fill_that_raises_leaves_no_trace(tmp_path, record, error):
    store = Store(tmp_path)

    def fill(folder: Path) -> Run:
        (folder / "model.bin").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)) as caught:
        store.add(record.id, fill)
    assert caught.value is error
    assert everything(tmp_path) == []
    assert not store.has(record.id)
    assert store.add(record.id, lambda folder: record) == record


def test_losing_the_race_keeps_the_result_of_the_other(tmp_path, record):
    store, other = Store(tmp_path), Store(tmp_path)
    mine = record.model_copy(update={"machine": "mine"})
    theirs = record.model_copy(update={"machine": "theirs"})

    def fill(folder: Path) -> Run:
        other.add(record.id, lambda _: theirs)
        return mine

    assert store.add(record.id, fill) == theirs
    assert store.load(record.id) == theirs
    assert [path.name for path in everything(tmp_path)] == ["record.json"]


def test_disk_that_refuses_is_one_sentence(tmp_path, record):
    def full(folder: Path) -> Run:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError) as caught:
        Store(tmp_path).add(record.id, full)
    assert str(caught.value) == (
        f"the store {tmp_path} must be writable, but got No space left on device; free some space or choose another "
        "folder with --out."
    )
    assert everything(tmp_path) == []


def test_file_where_the_folder_should_be_is_one_sentence(tmp_path, record, finished):
    (tmp_path / "file").write_text("here first")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Store(root)
        assert not store.has(record.id)
        for write in (
            lambda store=store: store.add(record.id, lambda folder: record),
            lambda store=store: store.write_summary(finished.summary),
            lambda store=store: store.write_parquet(finished.summary.models),
        ):
            with pytest.raises(StoreError, match=r"must be writable, but got .*; free some space or choose another"):
                write()
    assert (tmp_path / "file").read_text() == "here first"


def test_name_no_file_system_takes_is_one_sentence(tmp_path, record):
    with pytest.raises(StoreError, match="must be a folder that can be read, but got File name too long: "):
        Store(tmp_path / ("long" * 100)).has(record.id)


def spoilt(tmp_path: Path, record: Run, text: str | bytes) -> Store:
    store = Store(tmp_path)
    store.path(record.id).mkdir(parents=True)
    path = store.path(record.id) / "record.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return store


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda whole: whole[: len(whole) // 2], r"\("),
        (lambda whole: "", "Expecting value"),
        (lambda whole: "[]", "Input should be a valid dictionary"),
        (lambda whole: b"\xff\xff", "decode"),
        (lambda whole: json.dumps(json.loads(whole) | {"surprise": 1}), "Extra inputs are not permitted"),
        (lambda whole: json.dumps({**json.loads(whole), "seed": None}), "Input should be a valid integer"),
    ],
    ids=["truncated", "empty", "a list", "not text", "an unknown key", "a missing number"],
)
def test_spoilt_record_is_one_sentence_that_says_what_to_delete(tmp_path, record, spoil, reason):
    store = spoilt(tmp_path, record, spoil(record.model_dump_json()))
    with pytest.raises(StoreError, match=reason) as caught:
        store.load(record.id)
    said = str(caught.value)
    path = store.path(record.id)
    assert said.startswith(f"a run's record must be readable, but got {path / 'record.json'} (")
    assert said.endswith(f"; delete {path} and run the study again.")
    assert "\n" not in said


def test_record_of_a_newer_schema_says_so_even_if_its_fields_are_unknown(tmp_path, record):
    newer = json.loads(record.model_dump_json()) | {"schema_version": SCHEMA_VERSION + 1, "surprise": 1}
    store = spoilt(tmp_path, record, json.dumps(newer))
    with pytest.raises(StoreError) as caught:
        store.load(record.id)
    assert str(caught.value).startswith(
        f"records must have schema {SCHEMA_VERSION} or older, but got {SCHEMA_VERSION + 1} in "
    )
    assert str(caught.value).endswith("; update pinchpoint.")


def test_record_that_is_missing_is_one_sentence(tmp_path):
    with pytest.raises(StoreError, match=r"a run's record must be readable, but got .*No such file"):
        Store(tmp_path).load("0123")
    assert everything(tmp_path) == []


def test_summary_and_parquet_replace_older_ones_and_leave_nothing_beside(tmp_path, finished):
    store = Store(tmp_path)
    (tmp_path / "summary.json").write_text("old")
    (tmp_path / "records.parquet").write_text("old")
    summary = store.write_summary(finished.summary)
    parquet = store.write_parquet(finished.summary.models)
    assert everything(tmp_path) == [parquet, summary]
    assert type(finished.summary).model_validate_json(summary.read_text()) == finished.summary
    assert len(polars.read_parquet(parquet)) == len(finished.summary.models)


def test_parquet_holds_the_rows_of_the_summary(finished):
    frame = polars.read_parquet(finished.store.root / "records.parquet")
    assert frame.to_dicts() == finished.summary.models
    curves = frame["curve_linf"].to_list()
    assert [[point["eps"] for point in curve] for curve in curves] == [[0.02, 0.05, 0.1]] * len(frame)


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = "".join(letter for letter in platform.node() if letter.isalnum()) or "host"
    dead, alive, foreign = (
        tmp_path / f".writing-{name}-x" for name in (f"{host}-{gone.pid}", f"{host}-{os.getpid()}", "elsewhere-1")
    )
    for folder in (dead, alive, foreign, tmp_path / "runs" / "kept"):
        (folder / "inside").mkdir(parents=True)
    Store(tmp_path).sweep()
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {alive.name, foreign.name, "runs"}
    assert (tmp_path / "runs" / "kept").is_dir()


def test_a_run_in_hand_is_named_after_its_process_so_that_it_can_be_swept(tmp_path):
    def fill(folder):
        assert f"-{os.getpid()}-" in folder.parent.name
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Store(tmp_path).add("run", fill)
