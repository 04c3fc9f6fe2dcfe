"""``pinchpoint study run`` interrupted and killed: nothing is lost, and the same command goes on."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from oracles.console import pinch
from oracles.nursery import alive
from oracles.tiny import TINY, Undisturbed, records, timeless
from pinchpoint.study import Store, parse, plan

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")


def begin(folder: Path, workers: int) -> subprocess.Popen[str]:
    """The real command, in a session of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "pinchpoint.cli", "study", "run", TINY, "--out", folder, "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 300
    while not condition():
        assert time.monotonic() < end, "nothing happened for five minutes"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def check_completes(folder: Path, undisturbed: Undisturbed) -> None:
    """A second call completes the study, keeps what was finished, and ends with the same numbers."""
    kept = records(folder)
    assert 1 <= len(kept) < 80
    config = parse(TINY.read_text())
    assert len(Store(folder).load(plan(config).stages)) == len(kept)
    said = pinch("study", "run", TINY, "--out", folder, "--workers", 1)
    assert said.status == 0
    after = records(folder)
    assert len(after) == 80
    assert {path: after[path] for path in kept} == kept
    assert timeless(json.loads((folder / "summary.json").read_text())) == timeless(undisturbed.summary)
    assert not list(folder.glob(".writing-*"))


def check_interrupted(process: subprocess.Popen[str], folder: Path) -> int:
    """One sentence after whatever the bar left, which speaks of what is kept; how many stages that is."""
    out, err = process.communicate(timeout=300)
    stages = plan(parse(TINY.read_text())).stages
    finished = Store(folder).finished()
    runs = sum(finished.issuperset(task.stages) for task in plan(parse(TINY.read_text())).tasks)
    *before, sentence = err.splitlines()
    assert (process.returncode, out) == (130, "")
    assert sentence == (
        f"Interrupted: {len(finished)} of {len(stages)} stages ({runs} of 8 runs) are kept in {folder}. "
        "The same command goes on from there."
    )
    assert all(line.lstrip().startswith("tiny ") or not line.strip() for line in before), "only the bar stands above"
    return len(finished)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.slow
def test_interrupted_study_keeps_what_is_finished_and_goes_on(tmp_path, undisturbed, workers):
    folder = undisturbed.copy(tmp_path / "store")
    for task in plan(parse(TINY.read_text())).tasks[-3:]:  # the others are done already
        for key in task.stages:
            shutil.rmtree(Store(folder).folder(key))
    there = len(records(folder))
    process = begin(folder, workers)
    wait_until(lambda: len(records(folder)) > there, process)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
    assert check_interrupted(process, folder) == len(records(folder))
    assert {path.name for path in folder.iterdir()} <= {"stages", "claims"}
    assert list((folder / "claims").iterdir()) == []
    check_completes(folder, undisturbed)


@pytest.mark.slow
@needs_proc
def test_interrupt_while_workers_start_is_one_sentence_too(tmp_path):
    folder = tmp_path / "store"
    process = begin(folder, 2)
    wait_until(lambda: len(alive(process.pid)) >= 3, process)
    time.sleep(0.3)  # they are importing now
    os.killpg(process.pid, signal.SIGINT)
    assert check_interrupted(process, folder) == 0
    assert records(folder) == {}


@needs_proc
@pytest.mark.slow
def test_killed_study_leaves_no_worker_behind_and_goes_on(tmp_path, undisturbed):
    folder = tmp_path / "store"
    process = begin(folder, 2)
    wait_until(lambda: records(folder), process)
    process.kill()
    wait_until(lambda: not alive(process.pid))
    process.communicate(timeout=300)
    check_completes(folder, undisturbed)


@needs_proc
@pytest.mark.slow
def test_study_killed_at_random_moments_ten_times_goes_on(tmp_path, undisturbed):
    """The real command with real stages; drivers and workers die, two commands share the store."""
    folder, moments, kills = tmp_path / "store", random.Random(), 0
    while kills < 10:
        pair = [begin(folder, workers) for workers in (1, 2)]
        time.sleep(moments.uniform(3, 12))
        for process in pair:
            victims = alive(process.pid)
            if victims and process.poll() is None:
                os.kill(moments.choice(victims), signal.SIGKILL)
                kills += 1
            time.sleep(moments.uniform(0, 2))
        for process in pair:
            process.kill()
            wait_until(lambda process=process: not alive(process.pid))
            process.communicate(timeout=300)
        if len(records(folder)) == 80:
            shutil.rmtree(folder)
    assert pinch("study", "run", TINY, "--out", folder, "--workers", 1).status == 0
    assert len(records(folder)) == 80
    assert timeless(json.loads((folder / "summary.json").read_text())) == timeless(undisturbed.summary)
    assert not list(folder.glob(".writing-*"))
