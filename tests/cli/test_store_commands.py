"""``study plan``, ``export``, ``gc``, ``schema`` and ``run --mirror`` as a user sees them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import fsspec
import polars
import pytest
import yaml

from oracles.console import pinch
from oracles.tiny import MINI

LONGER = MINI | {"scales": {"long": {"base": {"train": {"epochs": 2}}}}}


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with mini.yaml, and its store, finished. Not to be changed."""
    folder = tmp_path_factory.mktemp("mini")
    (folder / "mini.yaml").write_text(yaml.safe_dump(LONGER))
    (folder / "notes").mkdir()
    assert pinch("study", "run", folder / "mini.yaml", "--out", folder / "store", "--workers", 1).status == 0
    return folder


def test_plan_says_how_long_and_that_it_is_an_estimate(made, tmp_path):
    file = made / "mini.yaml"
    done = pinch("study", "plan", file, "--out", made / "store").out
    assert done.endswith("Nothing is left to do.\n")
    said = pinch("study", "plan", file, "--out", tmp_path / "new", "--workers", 2).out
    assert "mini: 2 runs in 6 stages (6 before sharing)\n" in said
    assert re.search(r"^ train +0 +2 +\d+ s $", said, re.MULTILINE)
    sentence = "with 2 workers: an estimate, from what like stages took (0 stages) and from a probe (6).\n"
    assert said.endswith(sentence)
    said = pinch("study", "plan", file, "--out", tmp_path / "new", "--no-probe").out
    assert re.search(r"^ train +0 +2 +unknown $", said, re.MULTILINE)
    assert said.endswith("How long 6 stages will take is not known: no probe was made.\n")
    changed = ("study", "plan", file, "audit.steps=3", "--no-probe", "--out", made / "store")
    assert "from what like stages took (2 stages)" in pinch(*changed).out
    assert not (tmp_path / "new").exists()
    left = json.loads(pinch(*changed, "--json", "--workers", 2).out)["estimate"]
    assert (left["recorded"], left["probed"], left["unknown"], left["workers"]) == (2, 0, 0, 2)
    assert left["wall_seconds"] == pytest.approx(sum(left["seconds"].values()) / 2)


def test_plan_needs_no_data(made, tmp_path, monkeypatch):
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    said = pinch("study", "plan", made / "mini.yaml", "data.name=mnist", "--out", tmp_path)
    assert said.status == 0
    assert "How long 6 stages will take is not known: the data set 'mnist' is read from the folder" in said.out


def test_export_writes_the_rows(made, tmp_path):
    file, store = made / "mini.yaml", made / "store"
    said = pinch("study", "export", file, "--store", store, "--out", tmp_path / "rows.parquet")
    assert (said.status, said.out) == (0, f"2 rows: {tmp_path / 'rows.parquet'}\n")
    frame = polars.read_parquet(tmp_path / "rows.parquet")
    assert frame.select("study", "label").rows() == [("mini", "rank none"), ("mini", "rank 2")]
    said = pinch("study", "export", file, file, "--store", store, "--out", tmp_path / "rows.csv", "--json")
    assert json.loads(said.out) == {"file": str(tmp_path / "rows.csv"), "rows": 4}
    text = "rows are written to .parquet, .csv or .jsonl, but got rows.txt; give --out one of these endings."
    assert pinch("study", "export", file, "--store", store, "--out", tmp_path / "rows.txt").error == text
    error = pinch("study", "export", file, "--store", tmp_path, "--out", tmp_path / "none.csv").error
    assert "at least one finished run" in error
    assert not (tmp_path / "none.csv").exists()


def test_gc_shows_before_it_deletes(made, tmp_path):
    store = Path(shutil.copytree(made / "store", tmp_path / "store"))
    said = pinch("study", "gc", made / "mini.yaml", "--out", store)
    assert (said.status, said.out) == (0, f"Every stage in {store} is needed.\n")
    said = pinch("study", "gc", "demo", "--out", store).out
    assert said.endswith("Nothing was deleted; --delete does it.\n")
    assert re.search(r"^ all +6 ", said, re.MULTILINE)
    assert pinch("study", "plan", made / "mini.yaml", "--out", store).out.endswith("Nothing is left to do.\n")
    said = pinch("study", "gc", "demo", "--out", store, "--delete", "--json")
    document = json.loads(said.out)
    assert document["deleted"] is True
    assert {kind: part["stages"] for kind, part in document["kinds"].items()} == {
        "train": 2, "profile": 2, "attack": 2
    }  # fmt: skip
    assert [path.name for path in (store / "stages").glob("*/*")] == []
    assert (store / "summary.json").exists()


def test_gc_keeps_what_any_scale_needs(made, tmp_path):
    file = made / "mini.yaml"
    assert pinch("study", "run", file, "--scale", "long", "--out", tmp_path / "store", "--workers", 1).status == 0
    assert pinch("study", "gc", file, "--out", tmp_path / "store").out.startswith("Every stage in ")
    assert pinch("study", "run", file, "train.epochs=3", "--out", tmp_path / "store", "--workers", 1).status == 0
    said = pinch("study", "gc", file, "--out", tmp_path / "store").out
    assert re.search(r"^ train +2 ", said, re.MULTILINE)


def test_gc_looks_where_a_study_lies_unless_told(made, tmp_path, monkeypatch):
    shutil.copytree(made / "store", tmp_path / "runs" / "mini")
    monkeypatch.chdir(tmp_path)
    assert pinch("study", "gc", made / "mini.yaml").out == "Every stage in runs/mini is needed.\n"
    text = "the store of several studies must be named, but got demo, mini; name it with --store."
    assert pinch("study", "gc", made / "mini.yaml", "demo").error == text


def test_export_and_gc_take_addresses(made):
    files = fsspec.filesystem("memory")
    files.put(str(made / "store" / "stages"), "/commands/stages", recursive=True)
    said = pinch(
        "study", "export", made / "mini.yaml", "--store", "memory://commands", "--out", "memory://out/rows.csv"
    )
    assert (said.status, said.out) == (0, "2 rows: memory://out/rows.csv\n")
    assert files.cat("/out/rows.csv").startswith(b"study,run,family,")
    said = pinch("study", "gc", made / "mini.yaml", "--store", "memory://commands")
    assert said.out == "Every stage in memory://commands is needed.\n"
    document = json.loads(pinch("study", "gc", "demo", "--store", "memory://commands", "--delete", "--json").out)
    assert (document["store"], document["kinds"]["train"]["stages"]) == ("memory://commands", 2)
    assert files.find("/commands/stages") == []


def test_a_study_that_is_neither_a_file_nor_ours_is_one_sentence():
    for command in (("export", "--out", "rows.csv"), ("gc",)):
        error = pinch("study", command[0], "dmeo", *command[1:]).error
        rule = (
            "a study must be a file, or the name of one that comes with the package, but got dmeo; use one of: access, "
        )
        assert error.startswith(rule)


def test_gc_of_what_is_no_store_is_one_sentence(made):
    text = f"there must be a store, but got no stages in {made / 'notes'}; name its place with --store."
    assert pinch("study", "gc", made / "mini.yaml", "--out", made / "notes", "--delete").error == text


def test_schema_is_printed_or_written(tmp_path):
    printed = pinch("study", "schema")
    assert json.loads(printed.out)["title"] == "Pinchpoint study"
    assert json.loads(pinch("study", "schema", "summary").out)["title"] == "Pinchpoint summary"
    written = pinch("study", "schema", "--out", tmp_path)
    assert written.out.splitlines() == [f"{tmp_path / name}.json" for name in ("study", "summary", "audit")]
    assert (tmp_path / "study.json").read_text(encoding="utf-8") == printed.out
    text = "a schema must be known by name, but got run; use one of: study, summary, audit."
    assert pinch("study", "schema", "run").error == text


def test_mirrors_are_named_on_the_command_line_and_one_that_fails_is_a_warning(made, tmp_path, monkeypatch):
    monkeypatch.setattr("pinchpoint.study.outputs.trackers.KINDS", {"tensorboard": Broken, "mlflow": Kept})
    command = ("study", "run", made / "mini.yaml", "--out", tmp_path / "store", "--workers", 1)
    said = pinch(*command, "--mirror", "tensorboard:x", "--mirror", "mlflow:y", width=200)
    assert said.status == 0
    assert said.err.count("warning: the mirror broken was given up: no such host") == 1
    assert sorted(run.label for run in Kept.runs) == ["rank 2", "rank none"]
    text = "a mirror is tensorboard:FOLDER, mlflow:URI or wandb:PROJECT, but got aim; write one of these."
    assert pinch(*command, "--mirror", "aim").error == text


class Broken:
    name = "broken"

    def __init__(self, where):
        pass

    def show(self, run):
        raise OSError("no such host")


class Kept:
    name = "kept"
    runs: list = []  # noqa: RUF012

    def __init__(self, where):
        pass

    def show(self, run):
        self.runs.append(run)
