"""``pinchpoint study`` given what cannot be: one sentence, status 2, and nothing written."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import polars
import pytest

import pinchpoint
from oracles.console import Said, pinch
from oracles.tiny import TINY, records
from pinchpoint.records import STORE_SCHEMA
from pinchpoint.study import Store, plan

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


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("study run", "Missing argument 'file'"),
        ("study frob", "No such command 'frob'"),
        ("study plan x --scale", "Option '--scale' requires an argument"),
        ("study status x --wach", "No such option: --wach (Possible options: --watch)"),
        ("study run x --workers 0", "Invalid value for '--workers': "),
        ("study run x --workers two", "Invalid value for '--workers': "),
        ("study run x --out ''", "Invalid value for '--out': a folder or address must be named"),
        ("study plan x --store ' '", "Invalid value for '--store': a folder or address must be named"),
        ("reproduce --workers -1", "Invalid value for '--workers': "),
        ("attack", "Missing argument 'MODEL'"),
    ],
)
def test_what_no_command_takes_is_one_sentence_that_repeats_it(command, expected, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = pinch(*shlex.split(command)).error
    assert error.startswith(expected)
    assert f", but got pinchpoint {command}; see pinchpoint" in error
    assert error.endswith(" --help.")
    assert list(tmp_path.iterdir()) == []


def test_a_command_named_alone_shows_its_help():
    for words in ((), ("study",)):
        said = pinch(*words)
        assert said.status == 2
        assert "Usage: " in said.out + said.err
        assert "error" not in said.err


def test_missing_file_is_one_sentence(tmp_path):
    for command in ("run", "status", "report", "plan"):
        error = pinch("study", command, tmp_path / "no.yaml", "--out", tmp_path / "store").error
        assert error.startswith(f"a study file must be a readable text file, but got {tmp_path / 'no.yaml'} (")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    error = pinch("study", "run", TINY, "--out", tmp_path / "file", "--workers", 1).error
    assert error.startswith(f"{tmp_path / 'file'} must be a folder, but got the file ")
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
        for what, one in zip(("store", "folder"), said, strict=True):
            assert one.err.splitlines()[-1] == (
                f"error: the {what} {folder} must be writable, but got Permission denied; free some space or choose another "
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
