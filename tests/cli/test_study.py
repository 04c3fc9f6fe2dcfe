"""``pinchpoint study`` and ``reproduce``: one sentence and status 2 on bad input, and nothing lost when interrupted."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml

import pinchpoint
from oracles.console import Said, pinch
from oracles.nursery import alive
from pinchpoint.records import STORE_SCHEMA, Summary
from pinchpoint.study import Store, parse, plan

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
TINY = Path(__file__).parent.parent / "study" / "tiny.yaml"
Write = Callable[..., Path]


@pytest.fixture
def study(tmp_path) -> Write:
    """Writes the tiny study to a file, with some top-level keys or sections of base replaced."""

    def write(base: dict[str, Any] | None = None, **changes: Any) -> Path:
        content = yaml.safe_load(TINY.read_text()) | changes
        content["base"] |= base or {}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@dataclass(frozen=True)
class Undisturbed:
    """The tiny study, run to its end by one command. Not to be changed."""

    folder: Path
    said: Said

    @property
    def summary(self) -> Any:
        return json.loads((self.folder / "summary.json").read_text())

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.folder / "stages", folder / "stages")
        return folder


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed") / "tiny"
    return Undisturbed(folder, pinch("study", "run", TINY, "--out", folder, "--workers", 1))


def timeless(value: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def records(folder: Path) -> dict[Path, int]:
    """Records of the finished stages, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/*/record.parquet")}


STAGES = "train 8/8, profile 8/8, bound 16/16, attack 16/16, universal 16/16, mechanism 16/16"

# --- a study from beginning to end ----------------------------------------------------------------------------------------


def test_run_prints_tables_headline_and_where_things_are(undisturbed):
    said, folder = undisturbed.said, undisturbed.folder
    assert said.status == 0
    summary = Summary.model_validate(undisturbed.summary)
    assert summary.headline in said.out
    for note in summary.notes:
        assert f"note: {note}" in said.out
    for name in ("summary.json", "records.parquet", "report.html"):
        assert (folder / name).is_file()
        assert str(folder / name) in said.out
    assert polars.read_parquet(folder / "records.parquet").to_dicts() == summary.models
    names = ["claims", "records.parquet", "report.html", "stages", "summary.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    assert list((folder / "claims").iterdir()) == []


def test_tables_fit_80_columns_and_hold_the_means_of_the_summary(undisturbed):
    *tables, _ = undisturbed.said.out.partition("Means over seeds")[0].splitlines()
    assert max(map(len, tables)) <= 80
    assert "…" not in "".join(tables)
    family = undisturbed.summary["families"][1]
    for level in family["levels"]:
        (row,) = [line.split() for line in tables if line.split()[:1] == [level["label"]]]
        keys = ["robust_accuracy", "robust_over_clean", "universal_accuracy", "gap"]
        keys = ["compressibility", "clean_accuracy", *(f"{key}_{norm}" for norm in ("linf", "l2") for key in keys)]
        assert row[1:] == [f"{level['mean'][key]:.2f}" for key in keys]


def test_second_run_does_nothing_again_and_says_the_same(undisturbed):
    before = {path: path.stat().st_mtime_ns for path in undisturbed.folder.glob("stages/*/*/*")}
    again = pinch("study", "run", TINY, "--out", undisturbed.folder)
    assert (again.status, again.out) == (0, undisturbed.said.out)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.folder.glob("stages/*/*/*")} == before


def test_status_before_and_after(undisturbed, tmp_path, study):
    empty = tmp_path / "none"
    said = pinch("study", "status", TINY, "--out", empty)
    assert said.out.splitlines()[:3] == [
        f"tiny: 0 of 8 runs finished in {empty}",
        f"  stages: {STAGES}".replace(" 8/", " 0/").replace(" 16/", " 0/"),
        "  waiting: lasso: group_lasso 0, seed 0",
    ]
    assert not empty.exists()
    many = pinch("study", "status", study(seeds=[0, 1, 2, 3]), "--out", empty)
    assert many.out.splitlines()[-1] == "  and 6 more"
    said = pinch("study", "status", TINY, "--out", undisturbed.folder)
    assert said == Said(0, f"tiny: 8 of 8 runs finished in {undisturbed.folder}\n  stages: {STAGES}\n", "")


def test_status_names_who_is_at_what(undisturbed, tmp_path):
    folder = undisturbed.copy(tmp_path / "store")
    key = next(iter(plan(pinchpoint.study.read(TINY)).stages))
    Store(folder).remove(key)
    Store(folder).claim(key)
    said = pinch("study", "status", TINY, "--out", folder).out.splitlines()
    assert re.fullmatch(rf"  running: train-{key[1]} \(\S+ {os.getpid()}\)", said[2])


def test_folder_is_runs_and_the_name_of_the_study_where_none_is_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pinch("study", "status", TINY).out.startswith("tiny: 0 of 8 runs finished in runs/tiny\n")


def test_report_writes_the_same_from_the_store(undisturbed, tmp_path):
    folder = undisturbed.copy(tmp_path / "copy")
    said = pinch("study", "report", TINY, "--out", folder)
    assert (said.status, said.err) == (0, "")
    assert (folder / "summary.json").read_bytes() == (undisturbed.folder / "summary.json").read_bytes()
    assert "<html" in (folder / "report.html").read_text()[:500].lower()


def test_report_from_an_empty_store_is_one_sentence_and_writes_nothing(tmp_path):
    folder = tmp_path / "none"
    assert pinch("study", "report", TINY, "--out", folder).error == (
        "a report needs at least one finished run, but got an empty store; run the study first: pinchpoint study run "
        "FILE."
    )
    assert not folder.exists()


def test_json_is_all_there_is_on_stdout(undisturbed, monkeypatch):
    folder = undisturbed.folder
    monkeypatch.setattr("pinchpoint.study.catalogue", lambda name: pinchpoint.study.read(TINY))
    for command in (("study", "run", TINY), ("study", "report", TINY), ("demo",)):
        said = pinch(*command, "--out", folder, "--json")
        assert said.status == 0
        assert json.loads(said.out) == undisturbed.summary
    said = pinch("study", "status", TINY, "--out", folder, "--json")
    counts = {kind: [of, of] for kind, of in (("train", 8), ("profile", 8))}
    counts |= {kind: [16, 16] for kind in ("bound", "attack", "universal", "mechanism")}
    assert json.loads(said.out) == {
        "study": "tiny", "folder": str(folder), "total": 8, "finished": 8, "stages": counts, "waiting": [], "failed": [],
        "running": {},
    }  # fmt: skip


def test_values_may_be_replaced_on_the_command_line(undisturbed, tmp_path):
    said = pinch("study", "status", TINY, "seeds=[0]", "families.rank.grid.model.rank=[null]", "--out", tmp_path / "x")
    assert said.status == 2
    assert "family 'rank' needs one label a level, 1 in all, but got 2" in said.err
    overrides = ["seeds=[0]", "families.rank.grid.model.rank=[null]", "families.rank.labels=null", "train.epochs=2"]
    said = pinch("study", "status", TINY, *overrides, "--out", undisturbed.folder)
    assert said.out.startswith("tiny: 3 of 3 runs finished in "), "the same runs have the same ids"
    said = pinch("study", "status", TINY, "train.epochs=3", "--out", undisturbed.folder)
    assert said.out.startswith("tiny: 0 of 8 runs finished in ")


def test_a_scale_may_be_chosen(undisturbed, study):
    file = study(scales={"quick": {"seeds": [1]}, "large": {"base": {"train": {"epochs": 9}}}})
    for scale, done in (("quick", "4 of 4"), ("large", "0 of 8")):
        said = pinch("study", "status", file, "--scale", scale, "--out", undisturbed.folder)
        assert said.out.startswith(f"tiny: {done} runs finished in ")


# --- bad input ------------------------------------------------------------------------------------------------------------

BAD = [
    ({"stuyd": 1}, {}, "every key must be known, but got stuyd; perhaps study is meant."),
    ({"families": []}, {}, "a study needs families with distinct names, but got []; rename or add one."),
    ({"seeds": []}, {}, "seeds must be one or more distinct numbers from 0 to 2**32 - 1, but got []; use [0, 1, 2]."),
    ({"seeds": "x"}, {}, "seeds: Input should be a list, but got 'x'"),
    (
        {"families": [{"name": "a", "view": "neuron", "grid": {"threads": [1]}, "zip": {"threads": [2]}}]},
        {},
        "one axis",
    ),
    ({}, {"data": {"name": "digit"}}, "a data set must be known by name, but got digit; use digits, mnist, "),
    ({}, {"data": {"name": "mnist"}}, "but got no PINCHPOINT_DATA; set PINCHPOINT_DATA to a folder with mnist.npz, or"),
    ({}, {"model": {"name": "resnet"}}, "model.name: Input should be fcn, cifar_resnet"),
    ({}, {"model": {"rank": 65}}, "the rank of a 128 x 64 layer lies in 1 ... 64, but got 65; choose one in that"),
    ({}, {"device": "gpu"}, "device: Input should be auto, cpu, cuda or cuda:N, but got 'gpu'"),
    ({}, {"audit": {"threats": [{"norm": "linf", "eps": -1}]}}, "threats.0.eps: Input should be greater than or"),
]


@pytest.mark.parametrize(("changes", "base", "expected"), BAD, ids=lambda value: str(value)[:30])
@pytest.mark.parametrize("command", ["run", "report"])
def test_bad_study_is_one_sentence_and_nothing_is_written(
    study, tmp_path, monkeypatch, command, changes, base, expected
):
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    folder = tmp_path / "store"
    file = study(base, **changes)
    error = pinch("study", command, file, "--out", folder).error
    if command == "run" or not base.keys() & {"data", "model"} or "resnet" in expected:
        assert expected in error
    else:  # data and model are tried by run only
        assert error.startswith("a report needs at least one finished run")
    assert error.endswith(".")
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seeds"], "an override is written key=value, but got seeds; write for example train.epochs=5."),
        (["=3"], "an override is written key=value, but got =3;"),
        (["seeds=[0"], "the value of seeds must be YAML, but got [0; put it in quotes."),
        (["train.epoch=3"], "every key must be known, but got train.epoch; perhaps epochs is meant."),
        (["nonsense=3"], "every key must be known, but got nonsense;"),
        (["train.epochs=many"], "train.epochs: Input should be a valid integer"),
        (["families.x.title=y"], "what is changed by name must be there, but got x; use one of: lasso, rank."),
        (["families.lasso=3"], "what changes lasso must be a mapping, but got 3; write lasso: {...}, or null."),
        (["--scale", "quick"], "must be one of its scales, but got quick; use none."),
        (["--engine", "spark"], "an engine must be known by name, but got spark; use local, ray or slurm."),
        (["--address", "auto"], "an address is that of a Ray cluster, but got --engine local; add --engine ray."),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_bad_arguments_are_one_sentence_and_nothing_is_written(tmp_path, arguments, expected):
    error = pinch("study", "run", TINY, *arguments, "--out", tmp_path / "store").error
    assert expected in error
    assert error.endswith(".")
    assert not (tmp_path / "store").exists()


def test_missing_file_is_one_sentence(tmp_path):
    for command in ("run", "status", "report", "plan"):
        error = pinch("study", command, tmp_path / "no.yaml", "--out", tmp_path / "store").error
        assert error.startswith(f"a study file must be a readable text file, but got {tmp_path / 'no.yaml'} (")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    error = pinch("study", "run", TINY, "--out", tmp_path / "file", "--workers", 1).error
    assert error.startswith("a store must be a folder that can be read, but got Not a directory: ")
    assert error.endswith("file; choose another with --out.")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda table: table.with_columns(polars.lit(STORE_SCHEMA + 1).alias("store_schema")), r"records must have store "
         rf"schema {STORE_SCHEMA} or older, but got {STORE_SCHEMA + 1} in \S+; update pinchpoint\."),
        (lambda table: table.drop("kind"), r"a stage's record must have the columns of its kind, but got others in \S+; "
         r"delete \S+ and run the study again\."),
        (lambda table: table.with_columns(digest=polars.lit("0" * 64)), r"the id of a stage must belong to one "
         r"configuration, but got train [0-9a-f]{16} of two; change any value of one of them, for example its seed, or "
         r"choose another folder with --out\."),
    ],
    ids=["a newer schema", "a damaged record", "an id of two"],
)  # fmt: skip
def test_a_store_that_is_not_as_it_should_be_is_one_sentence(undisturbed, tmp_path, spoil, expected):
    folder = undisturbed.copy(tmp_path / "store")
    for path in folder.glob("stages/train/*/record.parquet"):
        spoil(polars.read_parquet(path)).write_parquet(path)
    before = records(folder)
    for command in ("run", "report"):
        assert re.fullmatch(expected, pinch("study", command, TINY, "--out", folder).error)
    assert records(folder) == before
    assert [path.name for path in folder.iterdir()] == ["stages"]


def test_a_folder_of_another_study_is_left_alone(tmp_path):
    (tmp_path / "summary.json").write_text('{"study": "other"}')
    for command in ("run", "report"):
        assert pinch("study", command, TINY, "--out", tmp_path).error == (
            f"the folder {tmp_path} must be free or hold the study 'tiny', but got the study 'other'; "
            "choose another folder with --out."
        )
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_read_only_store_is_one_sentence_and_the_study_goes_on_when_it_is_mended(undisturbed):
    """Permissions do not bind root, who becomes somebody else for it."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o755)
        folder = undisturbed.copy(Path(place) / "store")
        key = list(plan(pinchpoint.study.read(TINY)).stages)[-1]
        Store(folder).remove(key)
        before = records(folder)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222 | 0o444)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        try:
            said = [pinch("study", command, TINY, "--out", folder) for command in ("run", "report")]
        finally:
            if root:
                os.seteuid(0)
        for one in said:
            assert one.err.splitlines()[-1] == (
                f"error: the store {folder} must be writable, but got Permission denied; free some space or choose another "
                "folder with --out."
            )
            assert (one.status, one.out) == (2, "")
        assert records(folder) == before
        for path in [folder, *folder.rglob("*")]:
            path.chmod(path.stat().st_mode | 0o200)
        assert pinch("study", "run", TINY, "--out", folder, "--workers", 1).status == 0
        assert records(folder).keys() == before.keys() | {Store(folder).folder(key) / "record.parquet"}


@pytest.mark.long
def test_real_command_ends_with_status_2(study, tmp_path):
    """The installed script, in a process of its own."""
    script = Path(sys.executable).with_name("pinchpoint")
    command = [script] if script.is_file() else [sys.executable, "-m", "pinchpoint.cli"]
    file, folder = study({"data": {"name": "digit"}}), tmp_path / "store"
    done = subprocess.run([*command, "study", "run", file, "--out", folder], capture_output=True, text=True)
    assert (
        "a data set must be known by name, but got digit; use digits"
        in Said(done.returncode, done.stdout, done.stderr).error
    )
    assert not folder.exists()


WILD = {"name": "wild", "view": "neuron", "grid": {"train.learning_rate": [0.01, 1e30]}}
DIVERGED = r"the loss must stay finite, but got a training loss of nan at step 2 .*; the initial weights are kept\."


@pytest.mark.parametrize("json_wanted", [False, True])
def test_run_that_fails_is_told_the_others_are_reported_and_labels_are_shown_as_they_are(study, tmp_path, json_wanted):
    file = study(seeds=[0], families=[WILD | {"labels": ["[/b]:smile:", "[red]"]}])
    folder = tmp_path / "store"
    said = pinch("study", "run", file, "--out", folder, "--workers", 1, *(["--json"] if json_wanted else []))
    assert said.status == 2
    failed = rf"wild: \[red\], seed 0: {DIVERGED}"
    assert re.fullmatch(f"1 of 2 runs failed; the first: {failed}", said.err.splitlines()[-1])
    assert "Traceback" not in said.err
    summary = json.loads((folder / "summary.json").read_text())
    assert [row["label"] for row in summary["models"]] == ["[/b]:smile:"]
    assert any(re.fullmatch(f"Failed: {failed}", note) for note in summary["notes"])
    if json_wanted:
        assert json.loads(said.out) == summary
    else:
        assert " [/b]:smile: " in said.out
    now = json.loads(pinch("study", "status", file, "--out", folder, "--json").out)
    assert [one["run"] for one in now["failed"]] == ["wild: [red], seed 0"]
    assert re.fullmatch(DIVERGED, now["failed"][0]["reason"])
    shown = pinch("study", "status", file, "--out", folder).out.splitlines()
    assert re.fullmatch(f"  failed: {failed}", shown[-1])


def test_where_all_runs_fail_their_reason_is_told_again_until_they_are_tried_again(study, tmp_path):
    file, folder = study(families=[WILD | {"grid": {"train.learning_rate": [1e30]}}]), tmp_path / "store"
    failed = rf"2 of 2 runs failed; the first: wild: learning_rate 1e\+30, seed 0: {DIVERGED}"
    times = []
    for flags in ([], [], ["--retry-failed"]):
        said = pinch("study", "run", file, "--out", folder, "--workers", 1, *flags)
        assert (said.status, said.out) == (2, "")
        assert re.fullmatch(failed, said.err.splitlines()[-1])
        found = sorted(path for path in folder.rglob("*") if path.is_file())
        assert [path.name for path in found] == ["record.parquet"] * 2
        assert {path.parts[-4:-2] for path in found} == {("failed", "train")}
        times.append([path.stat().st_mtime_ns for path in found])
    assert times[0] == times[1], "it is not tried again"
    assert all(before < after for before, after in zip(times[1], times[2], strict=True)), "where asked, it is"


# --- interrupted and killed -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.long
def test_interrupted_study_keeps_what_is_finished_and_goes_on(tmp_path, undisturbed, workers):
    folder = tmp_path / "store"
    process = begin(folder, workers)
    wait_until(lambda: records(folder), process)
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


@pytest.mark.slow
def test_demo(tmp_path):
    """The main job as a user calls it."""
    folder = tmp_path / "demo"
    done = subprocess.run(
        [sys.executable, "-m", "pinchpoint.cli", "demo", "--out", folder], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0
    summary = Summary.model_validate_json((folder / "summary.json").read_text())
    assert summary.headline in done.stdout
    assert (folder / "report.html").stat().st_size > 100_000
    assert len(polars.read_parquet(folder / "records.parquet")) == 45
