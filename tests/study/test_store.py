"""The store: a stage is there whole, or not at all; who is at what; what a file system refuses is one sentence."""

from __future__ import annotations

import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import polars
import pytest

from pinchpoint.errors import ModelError, StoreError
from pinchpoint.records import STORE_SCHEMA, StageRecord
from pinchpoint.study import Store, tables
from pinchpoint.study.outputs import write_rows, write_summary
from pinchpoint.study.store import mark

HOST = "".join(letter for letter in platform.node() if letter.isalnum()) or "host"


@pytest.fixture
def record(finished) -> StageRecord:
    return next(iter(finished.records.values()))


@pytest.fixture
def key(finished):
    return next(iter(finished.records))


@pytest.fixture(scope="module")
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() or path.name.startswith("."))


def add(store: Store, *records: StageRecord) -> None:
    for one in records:
        store.add((one.kind, one.id), lambda folder, one=one: one)


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
        assert store.table(kind, names).sort("id").equals(loose.table(kind, names).sort("id"))


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
            for said in refused(store, key, record, finished):
                assert said == (
                    f"the store {store.root} must be writable, but got Permission denied; free some space or choose "
                    "another folder with --out."
                )
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
