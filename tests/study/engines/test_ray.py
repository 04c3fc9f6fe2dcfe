"""The engine for Ray: the same records bit for bit, worker and node deaths, and what can be wrong with a cluster."""

from __future__ import annotations

import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from oracles import pretend
from oracles.as_user import refused
from pinchpoint.data import DataConfig, load
from pinchpoint.errors import ConfigError, DataError, StoreError
from pinchpoint.study import Here, Store, parse, plan, run
from pinchpoint.study.engines.driver import Silent, drive
from pinchpoint.study.engines.local import Job
from pinchpoint.study.engines.ray import Ray

ray = pytest.importorskip("ray")

SMALL = {
    "seeds": [0],
    "families": [{"name": "lasso", "view": "neuron", "grid": {"penalty.group_lasso": [0, 0.1]}}],
    "base/audit/threats": [{"norm": "linf", "eps": 0.05}],
}


def own_process() -> int:
    return os.getpid()


def up(node) -> int:
    """Wait for the node's worker, without which the others may have done everything before. Its process."""
    there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node.node_id, soft=False)
    found: int = ray.get(ray.remote(own_process).options(scheduling_strategy=there).remote())
    return found


def until(engine: Ray, count: int) -> dict[str, object]:
    """Outcomes by id, when so many are there."""
    found, end = {}, time.monotonic() + 600
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} outcomes"
        found.update({outcome.key[1]: outcome for outcome in engine.wait(1.0)})
    return found


@pytest.mark.slow
def test_records_and_weights_are_the_same_bit_for_bit(edited, numbers, tmp_path, capfd):
    config = parse(edited(SMALL))
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    assert run(config, here, engine=Here()) == []
    assert run(config, there, engine=Ray(workers=2)) == []
    stages = plan(config).stages
    mine, theirs = here.load(stages), there.load(stages)
    assert len(theirs) == len(stages)
    for key in stages:
        assert numbers(theirs[key].model_dump()) == numbers(mine[key].model_dump())
        files = {path.name for path in here.folder(key).iterdir()} - {"record.parquet"}
        assert {path.name for path in there.folder(key).iterdir()} - {"record.parquet"} == files
        for name in files:
            assert (there.folder(key) / name).read_bytes() == (here.folder(key) / name).read_bytes()
    assert not ray.is_initialized()
    assert [path.name for path in there.root.glob(".*")] == []
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_address_where_nobody_answers_is_one_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with refused(
            ConfigError,
            f"a Ray cluster must answer, but got 127.0.0.1:{port} ([Errno 111] Connection refused); start one with "
            "ray start --head, or leave --address out.",
        ):
            _ = Ray(f"127.0.0.1:{port}").slots


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with refused(
        ConfigError,
        "the engine ray needs the package ray, but got a Python without it; run pip install 'pinchpoint[ray]'.",
    ):
        Ray()


# --- on two nodes -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster() -> Iterator[object]:
    """A head with one CPU, on loopback; tests add nodes and take them away."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))  # nodes find the oracles, too
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        try:
            yield made
        finally:
            made.shutdown()


@pytest.fixture
def second(cluster) -> Iterator[object]:
    node = cluster.add_node(num_cpus=1)
    try:
        yield node
    finally:
        if node in cluster.worker_nodes:
            cluster.remove_node(node)


@pytest.fixture
def engine(cluster) -> Iterator[Ray]:
    made = Ray(cluster.address)
    try:
        yield made
    finally:
        made.close()


@pytest.mark.slow
def test_slots_follow_the_cluster(cluster, engine):
    assert engine.slots == 1
    node = cluster.add_node(num_cpus=3)
    assert engine.slots == 4
    cluster.remove_node(node)
    assert engine.slots == 1


@pytest.mark.slow
def test_outcomes_are_values_errors_and_losses(cluster, engine):
    engine.submit(Job(("train", "value"), math.sqrt, (4.0,)))
    engine.submit(Job(("train", "ours"), load, (DataConfig(name="digit"),)))
    engine.submit(Job(("train", "theirs"), math.sqrt, (-1.0,)))
    engine.submit(Job(("train", "lost"), os._exit, (3,)))
    engine.submit(Job(("train", "wide"), math.sqrt, (9.0,), cpus=64, gpus=1))
    found = until(engine, 5)
    assert found["value"].value == 2.0
    assert type(found["ours"].error) is DataError
    assert "a data set must be known by name, but got digit" in str(found["ours"].error)
    assert type(found["theirs"].error) is ValueError
    assert "math domain error" in found["theirs"].error.__notes__[0]
    assert found["lost"].lost == "its process was killed (out of memory?)"
    assert found["wide"].value == 3.0


@pytest.mark.slow
def test_store_that_a_node_does_not_see_is_one_sentence(cluster, engine, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_sign", lambda home: str(home / "unseen"))
    engine.submit(Job(("train", "a"), math.sqrt, (4.0,), home=tmp_path))
    error = until(engine, 1)["a"].error
    assert type(error) is StoreError
    assert str(error) == (
        f"every node must see the store, but got a node ({os.uname().nodename}) without {tmp_path}; choose a folder that "
        "all nodes share with --out, or an address such as s3://... with --store."
    )


@pytest.mark.slow
def test_node_sees_the_folder_and_the_variables_of_the_driver(cluster, engine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PINCHPOINT_DATA", "here")
    engine.submit(Job(("train", "folder"), os.getcwd, (), home=tmp_path))
    engine.submit(Job(("train", "variable"), os.getenv, ("PINCHPOINT_DATA",)))
    found = until(engine, 2)
    assert found["folder"].value == str(tmp_path)
    assert found["variable"].value == "here"
    assert len(list(tmp_path.iterdir())) == 1
    engine.close()
    assert list(tmp_path.iterdir()) == []


class Killer(Silent):
    """Takes a node away when its worker has begun something and so many stages are there, and adds another later."""

    def __init__(self, cluster, node, worker: int, root: Path) -> None:
        self.cluster, self.node, self.worker, self.root = cluster, node, worker, root
        self.ended_ones, self.killed = 0, False

    def ended(self, stage, reason) -> None:
        self.ended_ones += 1
        if self.killed and self.node is None:
            self.node = self.cluster.add_node(num_cpus=1)
        if (
            not self.killed
            and self.ended_ones >= 15
            and any(self.worker in who for who in pretend.begun(self.root).values())
        ):
            self.cluster.remove_node(self.node, allow_graceful=False)
            self.node, self.killed = None, True


@pytest.mark.slow
def test_node_killed_in_the_middle_loses_nothing(cluster, second, engine, tiny, numbers, tmp_path):
    stages = plan(tiny).stages
    calm, stormy = Store(tmp_path / "calm"), Store(tmp_path / "stormy")
    assert drive(stages, calm, Here(), pretend.perform) == {}
    assert engine.slots == 2  # which joins the cluster
    killer = Killer(cluster, second, up(second), stormy.root)
    try:
        assert drive(stages, stormy, engine, pretend.perform, killer) == {}
    finally:
        if killer.node is not None:
            cluster.remove_node(killer.node)
    assert killer.killed
    pretend.check_whole(stormy, stages)
    mine, theirs = calm.load(stages), stormy.load(stages)
    assert theirs.keys() == mine.keys() == stages.keys()
    for key in stages:
        expected = numbers(mine[key].model_dump()) | {"machine": theirs[key].machine}
        assert numbers(theirs[key].model_dump()) == expected


DRIVER = """
import sys, time
from pathlib import Path
from pinchpoint.study import Store
from pinchpoint.study.engines.local import Job
from pinchpoint.study.engines.ray import Ray

store, sign = Store(Path(sys.argv[1])), Path(sys.argv[2])

def work(store, sign):
    def fill(folder):
        (folder / "half").touch()
        sign.touch()
        for _ in range(10_000):
            time.sleep(0.01)
    store.add(("train", "a"), fill)

engine = Ray(workers=1)
engine.slots
store.root.mkdir()
engine.submit(Job(("train", "a"), work, (store, sign), home=store.home))
while not sign.exists():
    engine.wait(0.1)
try:
    print("begun", flush=True)
    engine.wait(100)
except KeyboardInterrupt:
    engine.close()
    print("interrupted")
"""


@pytest.mark.slow
def test_interrupt_cancels_and_leaves_nothing(tmp_path):
    command = [sys.executable, "-c", DRIVER, str(tmp_path / "store"), str(tmp_path / "sign")]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    assert len(list(tmp_path.rglob("half"))) == 1
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    said, errors = process.communicate(timeout=600)
    assert said == "interrupted\n"
    assert errors == ""
    assert list((tmp_path / "store").rglob(".writing*")) == []
