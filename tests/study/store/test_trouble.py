"""A store that is spoilt, and what the file system refuses, are one sentence each; nothing is left half written."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars
import pytest

from oracles.stores import add, everything
from pinchpoint.errors import StoreError
from pinchpoint.records import STORE_SCHEMA, StageRecord
from pinchpoint.study import Store
from pinchpoint.study.outputs.files import write_rows, write_summary
from pinchpoint.study.store import parquet as tables

# --- what is spoilt -----------------------------------------------------------------------------------------------------


def spoilt(tmp_path: Path, key, content: bytes | polars.DataFrame) -> tuple[Store, Path]:
    store = Store(tmp_path)
    store.folder(key).mkdir(parents=True)
    path = store.folder(key) / "record.parquet"
    path.write_bytes(content) if isinstance(content, bytes) else content.write_parquet(path)
    return store, path


def sentence(store: Store, *keys) -> str:
    with pytest.raises(StoreError) as caught:
        store.load(keys)
    said = str(caught.value)
    assert "\n" not in said
    assert said.endswith(".")
    return said


@pytest.mark.parametrize(
    "spoil",
    [
        lambda table: b"",
        lambda table: b"PAR1",
        lambda table: b"\x00" * 500,
        lambda table: json.dumps(["not", "parquet"]).encode(),
        lambda table: polars.DataFrame({"store_schema": ["x"]}),
        lambda table: polars.DataFrame({"id": ["x"]}),
        lambda table: table.clear(),
        lambda table: table.with_columns(surprise=1),
        lambda table: table.drop("digest"),
        lambda table: table.with_columns(seed=polars.col("seed").cast(polars.String)),
    ],
    ids=[
        "empty", "beginning", "zeros", "not parquet", "schema is text", "no schema", "no row", "a column more",
        "a column less", "a column of another type",
    ],
)  # fmt: skip
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside another"])
def test_spoilt_record_is_one_sentence_that_says_what_to_delete(tmp_path, finished, spoil, beside):
    keys = [key for key in finished.records if key[0] == "profile"][:2]
    store, path = spoilt(tmp_path, keys[0], spoil(tables.frame("profile", [finished.records[keys[0]]])))
    if beside:
        add(store, finished.records[keys[1]])
    said = sentence(store, *keys)
    assert said.startswith(
        ("a stage's record must be readable, but got ", "a stage's record must have the columns of its kind")
    )
    assert str(path) in said
    assert said.endswith(f"; delete {store.folder(keys[0])} and run the study again.")


def test_truncated_record_is_one_sentence(tmp_path, key, record):
    store, path = spoilt(tmp_path, key, b"")
    tables.frame(key[0], [record]).write_parquet(path)
    whole = path.read_bytes()
    for length in (4, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert f"but got {path} (" in sentence(store, key)


@pytest.mark.parametrize("change", [{"status": "odd"}, {"seed": None}, {"result": None}], ids=str)
def test_record_that_makes_no_sense_is_one_sentence(tmp_path, key, record, change):
    table = tables.frame(key[0], [record])
    name, value = next(iter(change.items()))
    store, _ = spoilt(tmp_path, key, table.with_columns(polars.lit(value, dtype=table.schema[name]).alias(name)))
    if name == "result":
        assert store.load([key])[key].result is None
        return
    said = sentence(store, key)
    assert said.startswith(f"records of {store.root / 'stages' / key[0]} must make sense, but got ")
    assert said.endswith(f"; delete it, and {store.root / 'segments'}, and run the study again.")


@pytest.mark.parametrize("more", [{}, {"surprise": polars.lit(1)}], ids=["the same columns", "other columns"])
@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside older ones"])
def test_record_of_a_newer_schema_says_so_even_if_its_columns_are_unknown(tmp_path, finished, more, beside):
    keys = [key for key in finished.records if key[0] == "bound"][:2]
    newer = tables.frame("bound", [finished.records[keys[0]]])
    newer = newer.with_columns(polars.lit(STORE_SCHEMA + 1).cast(polars.Int64).alias("store_schema"), **more)
    store, path = spoilt(tmp_path, keys[0], newer)
    if beside:
        add(store, finished.records[keys[1]])
    rule = f"records must have store schema {STORE_SCHEMA} or older, but got {STORE_SCHEMA + 1} in "
    assert sentence(store, *keys) == f"{rule}{path}; update pinchpoint."


# --- what the file system refuses ---------------------------------------------------------------------------------------


def refused(store: Store, key, record: StageRecord, finished) -> list[str]:
    """What everything that writes says."""
    said = []
    for write in (
        lambda: store.add(key, lambda folder: record),
        lambda: store.claim(key),
        lambda: write_summary(store.root, finished.summary),
        lambda: write_rows(store.root, finished.summary.models),
    ):
        with pytest.raises(StoreError) as caught:
            write()
        said.append(str(caught.value))
    return said


def test_disk_that_refuses_is_one_sentence(tmp_path, key):
    def full(folder: Path) -> StageRecord:
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError) as caught:
        Store(tmp_path).add(key, full)
    assert str(caught.value) == (
        f"the store {tmp_path} must be writable, but got No space left on device; free some space or choose another "
        "folder with --out."
    )
    assert everything(tmp_path) == []


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of 64 kB; the test is skipped where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        pytest.skip(f"needs mount: {error}")
    if done.returncode:
        pytest.skip(f"needs the right to mount: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@contextmanager
def short_files(limit: int) -> Iterator[None]:
    """No file may grow above so many bytes: writing fails as on a full disk, for everybody and everywhere."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_one_sentence_and_all_goes_on_when_there_is_room(tmp_path, key, record, finished):
    root = tmp_path / "disk"
    with small_disk(root):
        store, filler = Store(root / "store"), root / "filler"
        store.root.mkdir()
        with suppress(OSError):
            filler.write_bytes(b"x" * 2**20)
        for said in refused(store, key, record, finished):
            assert "must be writable, but got No space left on device" in said
            assert said.endswith("; free some space or choose another folder with --out.")
        filler.unlink()
        assert everything(store.root) == []
        assert store.claim(key)
        assert store.add(key, lambda folder: record) == record
        assert store.load([key]) == {key: record}


def test_a_limit_on_files_is_one_sentence_too(tmp_path, key, record, finished):
    store = Store(tmp_path)
    with short_files(0):
        for said in refused(store, key, record, finished):
            assert f"{tmp_path} must be writable, but got File too large" in said
    assert everything(tmp_path) == []
    assert store.claim(key)
    assert store.add(key, lambda folder: record) == record


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Only reading is allowed below the folder: by its mode, which root has to become somebody else to feel."""
    modes = {path: path.stat().st_mode for path in [folder, *folder.rglob("*")]}
    for path, mode in modes.items():
        path.chmod(mode & ~0o222)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


def test_a_read_only_store_is_read_and_refuses_in_one_sentence(key, record, finished):
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        store = Store(Path(place) / "store")
        add(store, *list(finished.records.values())[1:4])
        (store.root / "claims").mkdir()
        with as_nobody(store.root):
            assert len(store.finished()) == 3
            assert store.load(finished.records).keys() == store.finished()
            said = refused(store, key, record, finished)
            rule = f"{store.root} must be writable, but got Permission denied; free some space or choose another folder"
            assert said == [f"the {what} {rule} with --out." for what in ("store", "store", "folder", "folder")]
            store.sweep()
        assert store.claim(key)
        assert store.add(key, lambda folder: record) == record


def test_file_where_the_folder_should_be_is_one_sentence(tmp_path, key, record, finished):
    (tmp_path / "file").write_text("here first")
    for root in (tmp_path / "file", tmp_path / "file" / "below"):
        store = Store(root)
        assert not store.has(key)
        for said in refused(store, key, record, finished):
            assert "must be writable, but got " in said
            assert "; free some space or choose another" in said
        with pytest.raises(StoreError, match="a store must be a folder that can be read, but got Not a directory: "):
            store.finished()
    assert (tmp_path / "file").read_text() == "here first"


def test_name_no_file_system_takes_is_one_sentence(tmp_path):
    store = Store(tmp_path / ("long" * 100))
    for ask in (store.finished, store.failures):
        with pytest.raises(StoreError, match="must be a folder that can be read, but got File name too long: "):
            ask()


# --- what is left for readers -------------------------------------------------------------------------------------------


def test_summary_and_parquet_replace_older_ones_and_leave_nothing_beside(tmp_path, finished):
    (tmp_path / "summary.json").write_text("old")
    (tmp_path / "records.parquet").write_text("old")
    summary = write_summary(tmp_path, finished.summary)
    parquet = write_rows(tmp_path, finished.summary.models)
    assert everything(tmp_path) == [parquet, summary]
    assert type(finished.summary).model_validate_json(summary.read_text()) == finished.summary
    assert len(polars.read_parquet(parquet)) == len(finished.summary.models)


def test_parquet_holds_the_rows_of_the_summary(finished):
    frame = polars.read_parquet(finished.store.root / "records.parquet")
    assert frame.to_dicts() == finished.summary.models
    curves = frame["curve_linf"].to_list()
    assert [[point["eps"] for point in curve] for curve in curves] == [[0.02, 0.05, 0.1]] * len(frame)
