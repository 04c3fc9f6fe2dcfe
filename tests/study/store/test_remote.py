"""Stores at an address: in memory, and on a real S3 service (moto's server), with many writers and one that is killed."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import polars
import pytest
from typer.testing import CliRunner

from oracles import pretend
from oracles.as_user import refused
from pinchpoint.cli import app
from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.study import Here, Key, Processes, RemoteStore, Stage, Store, gather, open_store, plan
from pinchpoint.study.engines.driver import drive
from pinchpoint.study.stages.run import perform

TESTS = Path(__file__).parents[2]


@pytest.fixture
def store(tmp_path) -> Iterator[RemoteStore]:
    """A store in this process's memory."""
    made = open_store(f"memory:/{tmp_path}/store")
    assert isinstance(made, RemoteStore)
    yield made
    for path in paths(made):
        fsspec.filesystem("memory").rm_file(f"{made.address}/{path}")


@pytest.fixture(scope="module")
def copied(finished, tmp_path_factory) -> RemoteStore:
    """The finished tiny study, copied file by file: a folder and an address are laid out alike. Not to be changed."""
    address = f"memory:/{tmp_path_factory.mktemp('copied')}/store"
    fsspec.filesystem("memory").put(str(finished.store.root / "stages"), f"{address}/stages", recursive=True)
    made = open_store(address)
    assert isinstance(made, RemoteStore)
    return made


def paths(store: RemoteStore) -> set[str]:
    """What lies there."""
    files = fsspec.filesystem("memory")
    base = files._strip_protocol(store.address)
    return {path.removeprefix(f"{base}/") for path in files.find(base)}


def first_run(finished) -> dict[Key, Stage]:
    return {key: finished.plan.stages[key] for key in finished.plan.tasks[0].stages}


def failing(record):
    return record.model_copy(update={"status": "failed", "reason": "it diverged", "result": None})


def test_folder_and_address_are_told_apart():
    assert type(open_store("runs/a")) is Store
    assert open_store(Path("runs/a")).root == Path("runs/a")
    assert open_store("file:///runs/a").root == Path("/runs/a")
    there = open_store("memory://told/apart/")
    assert there is open_store("memory://told/apart")
    assert pickle.loads(pickle.dumps(there)) is there
    assert there.home is None
    assert str(there) == "memory://told/apart"


def test_local_store_crosses_process_borders_with_its_whole_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pickle.loads(pickle.dumps(Store(Path("a")))).root == tmp_path / "a"


def test_copy_of_a_folder_is_a_store(finished, copied, tmp_path):
    assert copied.finished() == set(finished.plan.stages)
    assert copied.load(finished.plan.stages) == finished.records
    summary, runs = gather(finished.config, copied, folder=tmp_path)
    assert summary == finished.summary
    assert {one.id: one for one in runs} == finished.runs


def test_folder_is_a_copy_of_the_files(finished, copied):
    key = next(key for key in finished.plan.stages if key[0] == "train")
    copy = copied.folder(key)
    theirs = finished.store.folder(key)
    assert {path.name for path in copy.iterdir()} == {path.name for path in theirs.iterdir()} - {"record.parquet"}
    assert all(path.read_bytes() == (theirs / path.name).read_bytes() for path in copy.iterdir())
    assert copied.folder(key) == copy
    assert not copied.folder(("train", "none")).exists()


def test_few_copies_are_held(finished, copied):
    keys = [key for key in finished.plan.stages if key[0] in ("train", "attack")][:12]
    folders = [copied.folder(key) for key in keys]
    assert folders[-1].is_dir()
    assert sum(folder.is_dir() for folder in folders) == 8


def test_study_done_there_is_the_study_done_here(finished, store, numbers):
    stages = first_run(finished)
    assert drive(stages, store, Here(), perform) == {}
    there = store.load(stages)
    assert {key: numbers(one.model_dump()) for key, one in there.items()} == {
        key: numbers(finished.records[key].model_dump()) for key in stages
    }
    assert not any(path.startswith("claims/") for path in paths(store))
    train = next(key for key in stages if key[0] == "train")
    assert (store.folder(train) / "model.safetensors").read_bytes() == (
        finished.store.folder(train) / "model.safetensors"
    ).read_bytes()


def test_stage_is_there_once_its_record_is(finished, store):
    key, record = next(iter(finished.records.items()))
    files = fsspec.filesystem("memory")
    seen = []

    def fill(folder):
        (folder / "model").write_text("weights")
        seen.append((store.has(key), store.finished(), store.load([key])))
        return record

    assert store.add(key, fill) == record
    assert seen == [(False, set(), {})]
    assert store.has(key)
    files.rm_file(f"{store.address}/stages/{key[0]}/{key[1]}/record.parquet")  # as if its writer were killed before it
    assert not store.has(key)
    assert store.finished() == set()
    assert store.load([key]) == {}
    assert not store.folder(key).exists()
    assert store.add(key, fill) == record
    assert (store.folder(key) / "model").read_text() == "weights"


def test_first_record_stays(finished, store):
    key, record = next(iter(finished.records.items()))
    mine, theirs = (record.model_copy(update={"machine": name}) for name in ("mine", "theirs"))

    def fill(folder):
        store.add(key, lambda folder: theirs)
        return mine

    assert store.add(key, fill) == theirs
    assert store.load([key]) == {key: theirs}


def test_race_for_the_record_is_won_by_one(finished, store, monkeypatch):
    key, record = next(iter(finished.records.items()))
    mine, theirs = (record.model_copy(update={"machine": name}) for name in ("mine", "theirs"))
    assert store.add(key, lambda folder: theirs) == theirs
    monkeypatch.setattr(store, "_exists", lambda path: False)  # it came after the question
    assert store.add(key, lambda folder: mine) == theirs
    assert store.load([key]) == {key: theirs}


def test_failures_are_kept_apart_and_removed(finished, store):
    key, record = next(iter(finished.records.items()))
    store.add(key, lambda folder: failing(record))
    assert (store.has(key), store.failed(key)) == (False, True)
    assert store.failures() == {key}
    assert store.load([key])[key].reason == "it diverged"
    store.remove(key)
    assert paths(store) == set()
    store.add(key, lambda folder: failing(record).model_copy(update={"reason": "another"}))
    assert store.load([key])[key].reason == "another"


def test_work_that_is_interrupted_leaves_nothing(store):
    def fill(folder):
        (folder / "half").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.add(("train", "a"), fill)
    assert paths(store) == set()
    assert list(store.root.iterdir()) == []


def test_segments_are_read_and_dropped(finished, store):
    records = {key: one for key, one in finished.records.items() if key[0] == "train"}
    for key, record in records.items():
        store.add(key, lambda folder, record=record: record)
    store.compact(above=3)
    assert len([path for path in paths(store) if path.startswith("segments/train/")]) == 1
    elsewhere = RemoteStore(store.address)
    assert elsewhere.load(records) == records
    assert not (elsewhere.root / "stages").exists()  # no record was asked for one by one
    key = next(iter(records))
    store.remove(key)
    assert elsewhere.load(records) == {other: one for other, one in records.items() if other != key}
    assert not any(path.startswith("segments/") for path in paths(store))


def test_claims_keep_others_off_while_their_driver_lives(store):
    key, files = ("train", "a"), fsspec.filesystem("memory")
    path = f"{store.address}/claims/train-a"
    assert store.claim(key)
    assert store.claim(key)  # its own
    assert list(store.claims()) == ["train-a"]
    files.pipe_file(path, b"elsewhere 1")
    assert not store.claim(key)
    store.sweep()
    assert store.claims() == {"train-a": "elsewhere 1"}
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    host = "".join(letter for letter in platform.node() if letter.isalnum())
    files.pipe_file(path, f"{host} {gone.pid}".encode())
    assert store.claims() == {}
    assert store.claim(key)
    store.renew([key, ("train", "never claimed")])
    assert list(store.claims()) == ["train-a"]
    store.release(key)
    store.release(key)
    assert paths(store) == set()


@pytest.mark.parametrize("reader", ["polars", "duckdb"])
def test_other_programs_read_the_records(finished, copied, reader):
    files = fsspec.filesystem("memory")
    glob = f"{copied.address}/stages/train/*/record.parquet"
    if reader == "duckdb":
        duckdb = pytest.importorskip("duckdb")
        connection = duckdb.connect()
        connection.register_filesystem(files)
        rows = connection.sql(f"select id, seed, result.epochs from read_parquet('{glob}')").fetchall()
    else:
        table = polars.concat([polars.read_parquet(files.open(path)) for path in files.glob(glob)])
        rows = table.select("id", "seed", polars.col("result").struct.field("epochs")).rows()
    expected = [(one.id, one.seed, one.result.epochs) for key, one in finished.records.items() if key[0] == "train"]
    assert sorted(rows) == sorted(expected)


def test_command_line_keeps_stages_at_an_address(copied, tmp_path):
    file = str(Path(__file__).parents[1] / "tiny.yaml")
    command = ["study", "status", file, "--out", str(tmp_path / "none"), "--store", copied.address, "--json"]
    said = json.loads(CliRunner().invoke(app, command).stdout)
    assert (said["folder"], said["finished"], said["total"]) == (copied.address, 8, 8)
    assert not (tmp_path / "none").exists()


def test_service_that_does_not_answer_is_one_sentence(store, monkeypatch):
    def refuse(*args, **kwargs):
        raise RuntimeError("no credentials\nand more")

    for name in ("find", "exists", "pipe_file"):
        monkeypatch.setattr(store._files, name, refuse)
    for ask in (
        store.finished,
        lambda: store.has(("train", "a")),
        lambda: store.claim(("train", "a")),
        lambda: store.folder(("train", "a")),
    ):
        with refused(
            StoreError,
            f"the store {store.address} must be reachable, but got no credentials; check its address, the network and "
            "your credentials.",
        ):
            ask()


def test_unknown_address_is_one_sentence():
    with refused(
        ConfigError,
        "a store's address must be one that fsspec knows, but got nowhere://a (Protocol not known: nowhere); name a "
        "folder, or an address such as s3://bucket/prefix.",
    ):
        open_store("nowhere://a")


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    registry = importlib.import_module("fsspec.registry")  # the package has a value of that name
    monkeypatch.setattr(registry, "_registry", {})
    with pytest.raises(
        ConfigError, match=r"a store at s3://a/b needs a package of its own, but got .*; run pip install"
    ):
        RemoteStore("s3://a/b")


# --- on S3 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """An empty bucket of a service that speaks S3, on this machine; the environment says where."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    settings = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "PYTHONPATH": str(TESTS),
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        fsspec.filesystem("s3").mkdir("studies")
        yield "s3://studies"
        server.stop()


@pytest.mark.slow
def test_s3_store_holds_a_study(finished, bucket, numbers, tmp_path):
    store = open_store(f"{bucket}/whole")
    stages = first_run(finished)
    engine = Processes(2)
    try:
        assert drive(stages, store, engine, perform) == {}
    finally:
        engine.close()
    there = store.load(stages)
    assert {key: numbers(one.model_dump()) for key, one in there.items()} == {
        key: numbers(finished.records[key].model_dump()) for key in stages
    }
    settings = {"aws_endpoint_url": os.environ["AWS_ENDPOINT_URL"], "aws_allow_http": "true"}
    glob = f"{bucket}/whole/stages/train/*/record.parquet"
    table = polars.read_parquet(glob, storage_options=settings)
    assert set(table["id"]) == {name for kind, name in stages if kind == "train"}
    duckdb = pytest.importorskip("duckdb").connect()
    duckdb.register_filesystem(fsspec.filesystem("s3"))
    assert duckdb.sql(f"select count(*) from read_parquet('{glob}')").fetchall() == [(len(table),)]


@pytest.mark.slow
def test_bucket_that_is_not_there_is_one_sentence(bucket, finished):
    key, record = next(iter(finished.records.items()))
    with pytest.raises(StoreError, match=r"the store s3://none/x must be reachable, but got .*; check its address"):
        open_store("s3://none/x").add(key, lambda folder: record)


@pytest.mark.slow
def test_claims_and_records_are_exclusive_on_s3(finished, bucket):
    store = open_store(f"{bucket}/exclusive")
    key, record = next(iter(finished.records.items()))
    assert [store._create(f"studies/exclusive/{name}", b"x") for name in ("a", "a", "b")] == [True, False, True]
    assert store.claim(key)
    other = record.model_copy(update={"machine": "another"})
    assert store.add(key, lambda folder: record) == record
    assert store.add(key, lambda folder: other) == record
    store.remove(key)
    assert store.finished() == set()


WRITER = """
import sys
from pathlib import Path
from oracles import pretend
from pinchpoint.study import Here, open_store, parse, plan
from pinchpoint.study.engines.driver import drive

pretend._log_of = lambda root: Path(sys.argv[3])
stages = plan(parse(Path(sys.argv[2]).read_text(), overrides={"seeds": [0]})).stages
print("begun", flush=True)
assert drive(stages, open_store(sys.argv[1]), Here(), pretend.perform) == {}
"""


@pytest.mark.slow
def test_many_writers_and_one_that_is_killed_lose_nothing(tiny, bucket, numbers, tmp_path):
    address, log = f"{bucket}/many", tmp_path / "log"
    command = [sys.executable, "-c", WRITER, address, str(Path(__file__).parents[1] / "tiny.yaml"), str(log)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for writer in writers:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "begun\n"
    store, stages = open_store(address), plan(tiny.model_copy(update={"seeds": [0]})).stages
    killed, rest = writers[0], writers[1:]
    while len(store.finished()) < 10:
        time.sleep(0.05)
    while True:  # between a stage's files and its record
        os.kill(killed.pid, signal.SIGSTOP)
        found = fsspec.filesystem("s3").find("studies/many/stages")
        whole = {path.rpartition("/")[0] for path in found if path.endswith("/record.parquet")}
        if {path.rpartition("/")[0] for path in found} - whole or len(whole) == len(stages):
            break
        os.kill(killed.pid, signal.SIGCONT)
        time.sleep(0.002)
    killed.kill()
    killed.wait()
    for writer in rest:
        assert writer.wait(timeout=600) == 0
    calm = Store(tmp_path / "calm")
    assert drive(stages, calm, Here(), pretend.perform) == {}
    mine, theirs = calm.load(stages), store.load(stages)
    assert theirs.keys() == mine.keys() == stages.keys()
    for key in stages:
        assert numbers(theirs[key].model_dump()) == numbers(mine[key].model_dump()) | {"machine": theirs[key].machine}
        assert (store.folder(key) / "large.txt").read_text() == stages[key].digest * pretend.PIECES
    assert store.claims() == {}
    assert len({record.machine for record in theirs.values()}) > 1
