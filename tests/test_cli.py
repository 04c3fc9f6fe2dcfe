"""The command line: teaches, ends with one sentence and status 2 on bad input, and loses nothing when interrupted."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars
import pytest
import yaml
from safetensors.torch import save_file

import pinchpoint
from oracles.console import Said, pinch
from pinchpoint.attack import Threat
from pinchpoint.evaluate import Samples, attack_sheet
from pinchpoint.evaluate.sheet import Plan
from pinchpoint.learn import build
from pinchpoint.learn.checkpoint import CheckpointConfig, load, save
from pinchpoint.learn.models import CifarResNetConfig
from pinchpoint.learn.resnet import Architecture, cifar_resnet
from pinchpoint.records import AttackSheet, BoundSheet, Profile, Run, Summary
from pinchpoint.tables import down, up

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="reads /proc")
TINY = Path(__file__).parent / "study" / "tiny.yaml"


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

    @property
    def checkpoint(self) -> Path:
        return self.folder / "runs" / self.summary["models"][0]["run"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed") / "tiny"
    return Undisturbed(folder, pinch("study", "run", TINY, "--out", folder, "--workers", 1))


def timeless(value: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


# --- help ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ((), ["Start with pinchpoint demo", "demo", "study", "profile", "bound", "--version"]),
        (("demo",), ["nothing is downloaded", "a second call is quick", "--workers", "--json", "runs/demo"]),
        (("study",), ["finished runs are never run again", "run", "status", "report"]),
        (("study", "run"), ["Ctrl-C keeps what is finished", "A study file (YAML)", "--out"]),
        (("study", "status"), ["Show how far a study has come", "--json"]),
        (("study", "report"), ["from the runs that are finished", "--json"]),
        (
            ("profile",),
            ["Low means compressible", "timm:resnet18", "checkpoint folder", "--k-share", "--target", "--input-size"],
        ),
        (
            ("bound",),
            [
                "norm <= structure x scale",
                "gets estimates only",
                "--norm",
                "--budget",
                "--input-size",
                "l2 or linf",
                "--k",
            ],
        ),
    ],
    ids=lambda value: " ".join(value) or "pinchpoint",
)
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_teaches(command, taught, flag):
    said = pinch(*command, flag)
    assert (said.status, said.err) == (0, "")
    plain = " ".join(said.out.replace("│", " ").split())
    for phrase in taught:
        assert phrase in plain
    assert "[bold]" not in plain


def test_without_a_command_the_help_is_shown():
    said = pinch()
    assert "Start with pinchpoint demo" in said.out + said.err


def test_version():
    assert pinch("--version") == Said(0, f"pinchpoint {pinchpoint.__version__}\n", "")


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        (("demmo",), "'demmo'"),
        (("study", "rnu"), "'rnu'"),
        (("demo", "--wokers", "2"), "--wokers"),
        (("demo", "--workers", "0"), "than or equal to 1"),
    ],
)
def test_wrong_usage_ends_with_status_2(wrong, named):
    said = pinch(*wrong)
    assert (said.status, said.out) == (2, "")
    assert named in said.err


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
    assert sorted(path.name for path in folder.iterdir()) == ["records.parquet", "report.html", "runs", "summary.json"]


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
    before = {path: path.stat().st_mtime_ns for path in undisturbed.folder.glob("runs/*/*")}
    again = pinch("study", "run", TINY, "--out", undisturbed.folder)
    assert (again.status, again.out) == (0, undisturbed.said.out)
    assert {path: path.stat().st_mtime_ns for path in undisturbed.folder.glob("runs/*/*")} == before


def test_status_before_and_after(undisturbed, tmp_path, study):
    empty = tmp_path / "none"
    said = pinch("study", "status", TINY, "--out", empty)
    assert said.out.splitlines()[:2] == [
        f"tiny: 0 of 8 runs finished in {empty}",
        "  waiting: lasso: group_lasso 0, seed 0",
    ]
    assert not empty.exists()
    many = pinch("study", "status", study(seeds=[0, 1, 2, 3]), "--out", empty)
    assert many.out.splitlines()[-1] == "  and 6 more"
    said = pinch("study", "status", TINY, "--out", undisturbed.folder)
    assert said == Said(0, f"tiny: 8 of 8 runs finished in {undisturbed.folder}\n", "")


def test_folder_is_runs_and_the_name_of_the_study_where_none_is_given(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert pinch("study", "status", TINY).out.startswith("tiny: 0 of 8 runs finished in runs/tiny\n")


def test_report_writes_the_same_from_the_store(undisturbed, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(undisturbed.folder / "runs", folder / "runs")
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
    assert json.loads(said.out) == {"study": "tiny", "folder": str(folder), "total": 8, "finished": 8, "waiting": []}
    said = pinch("profile", undisturbed.checkpoint, "--json")
    assert Profile.model_validate(json.loads(said.out))


# --- bad input ------------------------------------------------------------------------------------------------------------

BAD = [
    ({"stuyd": 1}, {}, "every key must be known, but got stuyd; perhaps study is meant."),
    ({"families": []}, {}, "a study needs families with distinct names, but got []; rename or add one."),
    ({"seeds": []}, {}, "seeds must be one or more distinct numbers from 0 to 2**32 - 1, but got []; use [0, 1, 2]."),
    ({}, {"data": {"name": "digit"}}, "a data set must be known by name, but got digit; use digits, mnist, "),
    ({}, {"data": {"name": "mnist"}}, "but got no PINCHPOINT_DATA; set PINCHPOINT_DATA to a folder with mnist.npz, or"),
    ({}, {"model": {"name": "resnet"}}, "model.name: Input should be fcn, cifar_resnet"),
    ({}, {"model": {"rank": 65}}, "the rank of a 128 x 64 layer lies in 1 ... 64, but got 65; choose one in that"),
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


def test_missing_file_is_one_sentence(tmp_path):
    for command in ("run", "status", "report"):
        error = pinch("study", command, tmp_path / "no.yaml", "--out", tmp_path / "store").error
        assert error.startswith(f"a study file must be a readable text file, but got {tmp_path / 'no.yaml'} (")
    assert list(tmp_path.iterdir()) == []


def test_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("mine")
    error = pinch("study", "run", TINY, "--out", tmp_path / "file", "--workers", 1).error
    assert error == (
        f"the store {tmp_path / 'file'} must be writable, but got Not a directory; free some space or choose another folder "
        "with --out."
    )
    assert (tmp_path / "file").read_text() == "mine"


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


def test_where_all_runs_fail_their_reason_is_told(study, tmp_path):
    file, folder = study(families=[WILD | {"grid": {"train.learning_rate": [1e30]}}]), tmp_path / "store"
    said = pinch("study", "run", file, "--out", folder, "--workers", 1)
    assert (said.status, said.out) == (2, "")
    failed = rf"2 of 2 runs failed; the first: wild: learning_rate 1e\+30, seed 0: {DIVERGED}"
    assert re.fullmatch(failed, said.err.splitlines()[-1])
    assert [path.name for path in folder.rglob("*")] == ["runs"]


# --- profile --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"k_share": 0.25, "target": 0.4}])
def test_profile_as_json_is_what_the_library_measures(undisturbed, options):
    flags = [text for key, value in options.items() for text in (f"--{key.replace('_', '-')}", value)]
    said = pinch("profile", undisturbed.checkpoint, *flags, "--json")
    assert (said.status, said.err) == (0, "")
    model, config = load(undisturbed.checkpoint)
    assert Profile.model_validate_json(said.out) == pinchpoint.profile(model, input_shape=config.input_shape, **options)


def cells(text: str, name: str) -> list[str]:
    """The row of a table that starts with this name."""
    (row,) = [line.split() for line in text.splitlines() if line.split()[:1] == [name] and ":" not in line]
    return row[1:]


def test_profile_table_shows_what_was_measured(undisturbed):
    result = pinchpoint.profile(load(undisturbed.checkpoint)[0])
    said = pinch("profile", undisturbed.checkpoint)
    assert said.out.splitlines()[0] == f"Compressibility of {undisturbed.checkpoint}"
    for layer in result.layers:
        views = [layer.neuron, layer.spectral, layer.entrywise, layer.column]
        shown = [
            f"{layer.rows}x{layer.columns}",
            f"{layer.effective_rank:.1f}",
            *(f"{view.residual:.3f}" for view in views),
        ]
        row = cells(said.out, layer.name)
        assert row[:6] == shown
        assert layer.linf <= float(row[6]) <= layer.linf + 0.0101
        assert layer.l2_upper <= float(row[7]) <= layer.l2_upper + 0.0101
        assert row[8:12] == [f"{view.k_for_target / view.n:.0%}" for view in views]
    means = [result.neuron, result.spectral, result.entrywise, result.column]
    assert cells(said.out, "network") == [f"{1 - mean:.3f}" for mean in means]


@pytest.mark.parametrize(("width", "groups"), [(80, 2), (120, 4)])
def test_profile_table_of_a_deep_network_fits_the_terminal(tmp_path, monkeypatch, width, groups):
    """As many columns as there is room for, each explained below."""
    config = CifarResNetConfig(depth=20, width=16)
    save(tmp_path, build(config, (3, 8, 8), 10), CheckpointConfig(model=config, input_shape=(3, 8, 8), classes=10))
    result = pinchpoint.profile(load(tmp_path)[0], norms=False)
    sizes = {"rows": 1000, "columns": 3072, "effective_rank": 954.8, "stable_rank": 406.74, "linf": 87654.3}
    view = result.layers[0].neuron.model_copy(update={"n": 1000, "k_for_target": 1000})
    wide = sizes | dict.fromkeys(("neuron", "spectral", "entrywise", "column"), view)
    result = result.model_copy(update={"layers": [layer.model_copy(update=wide) for layer in result.layers]})
    monkeypatch.setattr("pinchpoint.measure.profile", lambda *_, **__: result)
    text = pinch("profile", tmp_path, width=width).out
    table = text.partition("neur:")[0].splitlines()[1:]
    assert max(map(len, table)) <= width
    assert "…" not in text
    assert [line.split()[0] for line in table if line.split()[1:2] == ["1000x3072"]] == [
        layer.name for layer in result.layers
    ]
    told = {"norm:": "87655", "k:": "100%", "sprd:": f"{view.spread:.3f}", "stable rank:": "406.74"}
    shown = [heading for heading, cell in told.items() if cell in cells(text, "linear")]
    assert shown == [heading for heading in told if any(line.startswith(heading) for line in text.splitlines())]
    assert len(shown) == groups
    assert "no norm for 19 of 20 layers: not asked for (norms=False)" in text
    assert "left out: 19 BatchNorm2d: " in text


def test_profile_says_at_which_k(undisturbed):
    assert "resid: residual at k = 0.3 of the terms" in pinch("profile", undisturbed.checkpoint, "--k-share", 0.3).out
    said = pinch("profile", undisturbed.checkpoint, "--target", 0.5).out
    assert "resid: residual at k = a tenth of the terms" in said
    assert "k: share of the terms that suffices for a residual of at most 0.5" in said


def test_profile_of_a_bare_state_dict_tells_on_stderr_what_is_assumed(tmp_path):
    path = tmp_path / "net.safetensors"
    save_file(cifar_resnet(Architecture(8, 4, 3, 5)).state_dict(), path)
    said = pinch("profile", path, "--input-size", 8, "--json")
    assert said.status == 0
    assert said.err == (
        "note: the tensors are taken for a CIFAR ResNet-8 of width 4 with 5 classes and option A shortcuts\n"
        "note: the file gives no mean and std, so inputs are not normalised\n"
    )
    record = Profile.model_validate_json(said.out)
    assert [layer.name for layer in record.layers][:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert all(layer.l2_upper is not None for layer in record.layers)


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs pinchpoint[vision]")
def test_profile_of_a_network_of_timm():
    said = pinch("profile", "timm:test_vit", "--input-size", 32)
    assert said.status == 0
    assert said.err.startswith("note: weights are random (seed 0); for trained ones write timm:test_vit@FILE\n")
    assert len(cells(said.out, "head")) >= 6, "names are shown without the wrapper's own"
    record = json.loads(pinch("profile", "timm:test_vit", "--input-size", "3x32x32", "--json").out)
    assert record["layers"][-1]["name"] == "network.head"


@pytest.mark.long
@pytest.mark.parametrize("depth", [20, 32])
def test_profile_of_the_trained_resnets(real_data, depth):
    said = pinch("profile", real_data / f"cifar10_resnet{depth}.safetensors", "--json")
    record = Profile.model_validate_json(said.out)
    assert len(record.layers) == depth
    assert all(layer.l2_lower <= layer.l2_upper for layer in record.layers)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("none",),
            "but got none, where there is nothing; check the path, or write timm:none for the network of that name.",
        ),
        (("tmm:resnet18",), "but got tmm:resnet18; perhaps timm:resnet18 is meant."),
        (
            ("none", "--input-size", "big"),
            "an input size is SIDE, HEIGHTxWIDTH or CHANNELSxHEIGHTxWIDTH, but got big; ",
        ),
    ],
)
def test_profile_of_what_is_no_model_is_one_sentence(monkeypatch, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    assert text in pinch("profile", *arguments).error


def test_profile_of_what_is_no_whole_checkpoint_is_one_sentence(undisturbed, tmp_path):
    assert "a checkpoint is a directory with model.safetensors and config.json, but got no config.json in" in (
        pinch("profile", tmp_path).error
    )
    copy = tmp_path / "copy"
    shutil.copytree(undisturbed.checkpoint, copy)
    weights = copy / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert f"{weights} must be a whole safetensors file, but got " in pinch("profile", copy).error
    weights.write_bytes(whole)
    config = json.loads((copy / "config.json").read_text())
    config["model"]["hidden"] = [17]
    (copy / "config.json").write_text(json.dumps(config))
    assert pinch("profile", copy).error == (
        f"the tensors in {copy} must fit its config, which asks for 1.weight (17, 64) float32, but got 1.weight (16, "
        "64) float32; put the config beside the tensors it was written with."
    )
    (copy / "config.json").write_text("{")
    assert f"{copy / 'config.json'} must describe a model, but got " in pinch("profile", copy).error


@pytest.mark.parametrize(("flag", "value"), [("--k-share", 0), ("--k-share", "nan"), ("--target", -1)])
def test_profile_refuses_a_share_or_target_out_of_range(undisturbed, flag, value):
    assert " lies in " in pinch("profile", undisturbed.checkpoint, flag, value).error


# --- attack ---------------------------------------------------------------------------------------------------------------


def test_attack_as_json_is_what_the_library_finds(undisturbed, digits, tmp_path):
    flags = ("--data", "digits", "--samples", 40, "--attack", "apgd", "--steps", 5, "--no-checks", "--curve", 3)
    said = pinch("attack", undisturbed.checkpoint, *flags, "--threat", "linf:8/255", "--threat", "l2:0.3", "--json")
    assert said.status == 0
    assert said.err.splitlines()[0] == "note: the first 40 of 450 test samples are attacked; --samples changes it"
    model, _ = load(undisturbed.checkpoint)
    threats, plan = [Threat("linf", 8 / 255), Threat("l2", 0.3)], Plan("apgd", steps=5, checks=False, curve=3)
    there = attack_sheet(model, Samples(digits.x_test[:40], digits.y_test[:40]), threats, plan)
    here = AttackSheet.model_validate_json(said.out)
    assert timeless(here.model_dump()) == timeless(there.model_dump())


def test_attack_table_counts_what_settled_the_samples(undisturbed, tmp_path):
    flags = ("--data", "digits", "--samples", 40, "--attack", "universal", "--threat", "l2:0.5", "--out", tmp_path)
    said = pinch("attack", undisturbed.checkpoint, *flags)
    sheet = AttackSheet.model_validate_json((tmp_path / "attack.json").read_text())
    (found,) = sheet.threats
    assert said.status == 0
    assert f"fitted on {sheet.fitted_on} training samples" in said.out
    for name, count in found.settled.items():
        assert cells(said.out, name)[:2] == [str(count), f"{count / 40:.1%}"]
    assert f"l2 0.5: robust accuracy {found.robust_accuracy:.1%} " in said.out
    assert said.out.splitlines()[-1] == f"examples: {tmp_path / 'l2-0.5.safetensors'}"
    assert max(map(len, said.out.splitlines()[1:-1])) <= 90


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (
            ["--data", "digits", "--attack", "cw"],
            "attack must be one of standard, quick, apgd, pgd, fgsm, square, univ",
        ),
        (
            ["--data", "digits", "--threat", "linf:8"],
            "eps must not exceed the box, which is 1 wide in linf, but got 8.0",
        ),
        (
            ["--data", "digits", "--threat", "l3:1"],
            "norm must be one of linf, l2, l1, but got l3; write linf, l2 or l1.",
        ),
        (
            ["--data", "digits", "--threat", "linf"],
            "a threat is written norm:eps, but got linf; write for example linf:8/",
        ),
        (["--data", "digits", "--steps", 3], "steps can be chosen for apgd, pgd, square, universal, but got 3; leave"),
        (["--data", "letters"], "a data set must be known by name, but got letters; use digits, mnist,"),
        (["--data", "digits", "--out", "/proc/x"], "/proc/x must be writable, but got No such file or directory; name"),
        (
            ["--data", "digits", "--out", str(TINY)],
            f"{TINY} must be writable, but got File exists; name another folder",
        ),
        (["--data", "digits", "--device", "gpu"], "a device is auto, cpu, cuda or cuda:NUMBER, but got gpu; use auto"),
    ],
)
def test_attack_refuses_what_makes_no_sense(undisturbed, flags, text):
    said = pinch("attack", undisturbed.checkpoint, *flags)
    assert (said.status, said.out) == (2, "")
    assert said.err.splitlines()[-1].startswith(f"error: {text}")


@pytest.mark.long
def test_attack_on_data_of_another_shape(tmp_path):
    config = CifarResNetConfig(depth=8, width=4)
    save(tmp_path, build(config, (3, 8, 8), 10), CheckpointConfig(model=config, input_shape=(3, 8, 8), classes=10))
    said = pinch("attack", tmp_path, "--data", "digits")
    assert said.status == 2
    assert "images of 3 channels" in said.err
    assert "1x8x8" in said.err


@pytest.mark.long
def test_interrupted_attack_says_what_is_kept(undisturbed, monkeypatch, tmp_path):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pinchpoint.evaluate.attack_sheet", stop)
    said = pinch("attack", undisturbed.checkpoint, "--data", "digits", "--out", tmp_path)
    assert (said.status, said.out) == (130, "")
    assert said.err.splitlines()[-1] == "Interrupted: the same command goes on from there."


# --- interrupted and killed -----------------------------------------------------------------------------------------------


def begin(folder: Path, workers: int) -> subprocess.Popen[str]:
    """The real command, in a session of its own, as a terminal would start it."""
    command = [sys.executable, "-m", "pinchpoint.cli", "study", "run", TINY, "--out", folder, "--workers", str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def finished(folder: Path) -> dict[Path, int]:
    """Records of the finished runs, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/record.json")}


def wait_until(condition: Callable[[], object], process: subprocess.Popen[str] | None = None) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "nothing happened for two minutes"
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.01)


def alive(session: int) -> list[int]:
    """Processes of a session, without those that only wait to be reaped."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, of, *_ = path.read_text().rpartition(")")[2].split()
            if int(of) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def check_completes(folder: Path, undisturbed: Undisturbed) -> None:
    """A second call completes the study, keeps what was finished, and ends with the same numbers."""
    kept = finished(folder)
    assert 1 <= len(kept) < 8
    for path in kept:
        Run.model_validate_json(path.read_text())
    said = pinch("study", "run", TINY, "--out", folder, "--workers", 1)
    assert said.status == 0
    after = finished(folder)
    assert len(after) == 8
    assert {path: after[path] for path in kept} == kept
    assert timeless(json.loads((folder / "summary.json").read_text())) == timeless(undisturbed.summary)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=pytest.mark.slow), 2])
@pytest.mark.long
def test_interrupted_study_keeps_what_is_finished_and_goes_on(tmp_path, undisturbed, workers):
    folder = tmp_path / "store"
    process = begin(folder, workers)
    wait_until(lambda: finished(folder), process)
    os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches every process of the terminal
    out, err = process.communicate(timeout=60)
    kept = finished(folder)
    assert (process.returncode, out) == (130, "")
    _, sentence = err.splitlines()
    assert sentence == f"Interrupted: {len(kept)} of 8 runs are kept in {folder}. The same command goes on from there."
    assert len(kept) <= 1 + workers, "nothing is begun after the interrupt"
    assert [path.name for path in folder.iterdir()] == ["runs"]
    check_completes(folder, undisturbed)


@pytest.mark.slow
@needs_proc
def test_interrupt_while_workers_start_is_one_sentence_too(tmp_path):
    folder = tmp_path / "store"
    process = begin(folder, 2)
    wait_until(lambda: len(alive(process.pid)) >= 3, process)
    time.sleep(0.3)  # they are importing now
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == (
        f"Interrupted: 0 of 8 runs are kept in {folder}. The same command goes on from there."
    )
    assert "Traceback" not in err
    assert not folder.exists()


@needs_proc
@pytest.mark.long
def test_killed_study_leaves_no_worker_behind_and_goes_on(tmp_path, undisturbed):
    folder = tmp_path / "store"
    process = begin(folder, 2)
    wait_until(lambda: finished(folder), process)
    process.kill()
    wait_until(lambda: not alive(process.pid))
    process.communicate(timeout=60)
    assert len(finished(folder)) <= 3, "workers finish nothing but what they had in hand"
    check_completes(folder, undisturbed)


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


# --- bound ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bounded(undisturbed) -> Said:
    return pinch("bound", undisturbed.checkpoint, "--budget", 6)  # ample, so that a busy machine leaves nothing out


def test_bound_shows_the_bracket_then_every_method_and_the_layers_in_80_columns(undisturbed, bounded):
    assert (bounded.status, bounded.err) == (0, "")
    lines = bounded.out.splitlines()
    assert lines[0] == f"Bounds of {undisturbed.checkpoint} on inputs of 1x8x8"
    assert max(map(len, lines[1:])) <= 80
    for norm in ("l2", "linf"):
        (bracket,) = [line for line in lines if line.startswith(f"{norm}: ")]
        lower, upper = re.fullmatch(
            rf"{norm}: (\S+) <= Lipschitz constant <= (\S+), a factor of \S+ apart", bracket
        ).groups()
        assert 0 < float(lower) <= float(upper)
        place = lines.index(bracket)
        shown = {line.split()[0]: line for line in lines[place + 1 : place + 13] if line.strip()}
        assert {"seen", "sampled", "ascent", "product", "first-order", "encoder"} <= shown.keys()
        (tightest,) = [line.split()[1] for line in shown.values() if line.endswith(" tightest")]
        assert tightest == upper
    assert cells(bounded.out, "1")[0] == "16x64"


def test_bound_shows_numbers_on_the_safe_side():
    for value in (1.23456, 0.99999, 9.9999e-7, 123456.0, 1e300, 2.0, 0.25):
        assert value * 0.998 <= float(down(value)) <= value <= float(up(value)) <= value * 1.002
    assert (up(2.0), down(2.0), up(99999.0), down(0.001)) == ("2.000", "2.000", "1.000e+05", "0.001000")


def test_bound_as_json_is_the_record_and_norms_can_be_chosen(undisturbed):
    said = pinch("bound", undisturbed.checkpoint, "--norm", "linf", "--budget", 0, "--k", 3, "--json")
    assert (said.status, said.err) == (0, "")
    record = BoundSheet.model_validate_json(said.out)
    assert [network.norm for network in record.networks] == ["linf"]
    assert {bounds.k for layer in record.layers for bounds in layer.norms} == {3}
    assert record.input_shape == [1, 8, 8]


def test_bound_says_what_would_not_fit_and_why(undisturbed):
    said = pinch("bound", undisturbed.checkpoint, "--norm", "l2", "--budget", 0)
    plain = " ".join(said.out.split())
    assert "fast and first-order: would take about" in plain
    assert "of the budget are left" in plain
    assert "l2: 1 pairs of layers not aligned" in plain


@pytest.mark.long
@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="needs pinchpoint[vision]")
def test_bound_of_a_network_with_attention_is_no_bound():
    said = pinch("bound", "timm:test_vit", "--input-size", 32, "--norm", "l2", "--budget", 2)
    assert said.status == 0
    assert re.search(r"^l2: no bound; seen, by search: \d", said.out, re.MULTILINE)
    assert "What is seen is no bound" in said.out
    assert re.search(r"^not bounded: Attention at \S+attn", said.out, re.MULTILINE)
    assert "<=" not in said.out
    assert len(cells(said.out, "head")) == 7


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("none",), "check the path, or write timm:none for the network of that name."),
        (("CHECKPOINT", "--norm", "l1"), "norm must be one of linf, l2, but got l1; write linf or l2."),
        (("CHECKPOINT", "--budget", "-1"), "budget_s must be zero or more seconds, but got -1.0; try 20."),
        (("CHECKPOINT", "--budget", "nan"), "budget_s must be zero or more seconds, but got nan; try 20."),
        (("CHECKPOINT", "--k", "0"), "k must be at least 1, but got 0; leave it out for the tightest choice."),
        (("CHECKPOINT", "--input-size", "3x8x8"), "takes images of 1 channels, but got 3x8x8; use 1x8x8."),
        (("CHECKPOINT", "--input-size", "9"), "must take inputs of 1x9x9, but got "),
    ],
)
def test_bound_of_what_cannot_be_bounded_is_one_sentence(undisturbed, monkeypatch, tmp_path, arguments, text):
    monkeypatch.chdir(tmp_path)
    given = [undisturbed.checkpoint if argument == "CHECKPOINT" else argument for argument in arguments]
    assert text in pinch("bound", *given).error
