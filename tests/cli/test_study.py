"""``pinchpoint study`` from beginning to end: what is told, what is written, and that nothing is done twice."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import polars
import pytest

import pinchpoint
from oracles.console import Said, pinch
from oracles.tiny import TINY
from pinchpoint.records import Summary
from pinchpoint.study import Store, plan

STAGES = "train 8/8, profile 8/8, bound 16/16, attack 16/16, universal 16/16, mechanism 16/16"


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


def test_the_bar_ends_full_where_another_driver_did_the_rest(undisturbed, tmp_path, monkeypatch):
    folder = tmp_path / "store"
    monkeypatch.setattr("pinchpoint.study.run", lambda *_, **__: undisturbed.copy(folder) and [])
    said = pinch("study", "run", TINY, "--out", folder)
    assert said.status == 0
    assert " 80/80 " in said.err


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
