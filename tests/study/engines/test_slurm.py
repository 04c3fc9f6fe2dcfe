"""The engine for SLURM: through submitit's local executor, and through a cluster whose commands are small scripts."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

import pytest

from oracles import pretend
from oracles.as_user import refused
from pinchpoint.data import DataConfig, load
from pinchpoint.errors import ConfigError, DataError
from pinchpoint.study import Here, Store, parse, plan
from pinchpoint.study.engines.driver import drive
from pinchpoint.study.engines.local import Engine, Job, Outcome
from pinchpoint.study.engines.slurm import Slurm

pytest.importorskip("submitit")


@pytest.fixture(autouse=True)
def oracles_are_found(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))


def until(engine: Engine, count: int) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    end = time.monotonic() + 600
    while len(found) < count:
        assert time.monotonic() < end, f"{len(found)} of {count} outcomes"
        found.update({outcome.key[1]: outcome for outcome in engine.wait(1.0)})
    return found


@pytest.mark.slow
def test_outcomes_are_values_errors_and_losses(tmp_path):
    engine = Slurm(cluster="local", grace=1.0)
    assert engine.slots == 64
    engine.submit(Job(("train", "value"), math.sqrt, (4.0,), home=tmp_path))
    engine.submit(Job(("train", "ours"), load, (DataConfig(name="digit"),), home=tmp_path))
    engine.submit(Job(("train", "theirs"), math.sqrt, (-1.0,), home=tmp_path))
    engine.submit(Job(("train", "lost"), os._exit, (3,), home=tmp_path))
    found = until(engine, 4)
    assert found["value"].value == 2.0
    assert type(found["ours"].error) is DataError
    assert type(found["theirs"].error) is ValueError
    assert "math domain error" in found["theirs"].error.__notes__[0]
    assert found["lost"].lost.startswith("its job ")
    assert found["lost"].lost.endswith(" ended without a result (finished)")
    left = [path.name for path in (tmp_path / "slurm").glob("*_result.pkl")]
    assert left == []


@pytest.mark.slow
def test_close_cancels_and_leaves_nothing_half_written(tmp_path):
    store = Store(tmp_path / "store")
    engine = Slurm(cluster="local")
    engine.submit(Job(("train", "a"), pretend.linger, (store,), home=store.root))
    end = time.monotonic() + 600
    while not list(store.root.rglob("half")):
        assert time.monotonic() < end
        time.sleep(0.1)
    engine.close()
    while list(store.root.rglob("half")):
        assert time.monotonic() < end
        time.sleep(0.1)
    assert list(store.root.glob(".writing*")) == []


SBATCH = """#!{python}
import pathlib, re, subprocess, sys, os
script = pathlib.Path(sys.argv[-1])
folder = pathlib.Path(os.environ["FAKE_SLURM"])
number = 1 + len(list(folder.glob("*.job")))
(folder / f"{{number}}.job").write_text(script.read_text())
environment = os.environ | {{
    "SLURM_JOB_ID": str(number), "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0",
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here",
}}
log = open(folder / f"{{number}}.log", "w")
process = subprocess.Popen(["bash", str(script)], env=environment, stdout=log, stderr=log, start_new_session=True)
(folder / f"{{number}}.pid").write_text(str(process.pid))
print(f"Submitted batch job {{number}}")
"""
SRUN = """#!{python}
import os, sys
command = [argument for argument in sys.argv[1:]]
while command[0].startswith("-"):
    command = command[2:] if command[0] in ("--output", "--error") else command[1:]
os.execvp(command[0], command)
"""
SACCT = """#!{python}
import os, pathlib, sys
folder = pathlib.Path(os.environ["FAKE_SLURM"])
print("JobID|State|NodeList")
for path in folder.glob("*.pid"):
    stat = pathlib.Path("/proc") / path.read_text() / "stat"
    alive = stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"
    print(f"{{path.stem}}|{{'RUNNING' if alive else 'NODE_FAIL'}}|here")
"""
SCANCEL = """#!{python}
import os, pathlib, signal, sys
folder = pathlib.Path(os.environ["FAKE_SLURM"])
os.killpg(int((folder / f"{{sys.argv[1]}}.pid").read_text()), signal.SIGTERM)
"""
SINFO = "#!/bin/sh\necho '(null)'\n{gpus}\n"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """A folder with the commands of a cluster that does jobs at once, here; it keeps their scripts."""
    folder = tmp_path / "cluster"
    folder.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL, "sinfo": SINFO}.items():
        (folder / name).write_text(text.format(python=sys.executable, gpus=""))
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(folder))
    return folder


@pytest.mark.slow
def test_study_on_a_cluster_is_the_same_table(slurm, edited, numbers, tmp_path):
    stages = dict(list(plan(parse(edited({"seeds": [0]}))).stages.items())[:6])
    here, there = Store(tmp_path / "here"), Store(tmp_path / "there")
    assert drive(stages, here, Here(), pretend.perform) == {}
    engine = Slurm(3)
    assert drive(stages, there, engine, pretend.perform) == {}
    engine.close()
    mine, theirs = here.load(stages), there.load(stages)
    assert theirs.keys() == mine.keys() == stages.keys()
    for key in stages:
        assert numbers(theirs[key].model_dump()) == numbers(mine[key].model_dump()) | {"machine": theirs[key].machine}
    scripts = [path.read_text() for path in slurm.glob("*.job")]
    assert len(scripts) == len(stages)
    assert all("#SBATCH --cpus-per-task=1" in script and "--time=240" in script for script in scripts)
    assert not any("gpus" in script for script in scripts)


def test_resources_are_the_jobs(slurm, tmp_path):
    sinfo = slurm / "sinfo"
    sinfo.write_text(SINFO.format(gpus="echo gpu:h100:8"))
    engine = Slurm()
    engine.submit(Job(("train", "a"), math.sqrt, (4.0,), cpus=3, gpus=1, home=tmp_path))
    engine.submit(Job(("bound", "b"), math.sqrt, (4.0,), cpus=1, gpus=0, home=tmp_path))
    engine.close()
    first, second = ((slurm / f"{number}.job").read_text() for number in (1, 2))
    assert "#SBATCH --cpus-per-task=3" in first
    assert "#SBATCH --gpus-per-node=1" in first
    assert "#SBATCH --job-name=train-a" in first
    assert "gpus" not in second


@pytest.mark.slow
def test_job_that_its_node_takes_along_is_lost(slurm, tmp_path):
    engine = Slurm(grace=0.5)
    engine.submit(Job(("train", "a"), time.sleep, (100,), home=tmp_path))
    end = time.monotonic() + 600
    while "Loading pickle" not in (slurm / "1.log").read_text():
        assert time.monotonic() < end
        time.sleep(0.1)
    os.killpg(int((slurm / "1.pid").read_text()), signal.SIGKILL)
    assert until(engine, 1)["a"].lost == "its job 1 ended without a result (node_fail)"
    engine.close()


def test_machine_without_slurm_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with refused(
        ConfigError,
        "the engine slurm needs SLURM, but got a machine without sbatch; run it on a node that submits jobs, or with "
        "--engine local.",
    ):
        Slurm()


def test_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with refused(
        ConfigError,
        "the engine slurm needs the package submitit, but got a Python without it; run pip install 'pinchpoint[slurm]'.",
    ):
        Slurm()
