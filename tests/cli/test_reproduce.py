"""``pinchpoint reproduce`` with a catalogue of one small study: where things lie, the page, and mistakes."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path

import polars
import pytest
import yaml

from oracles.console import pinch
from oracles.tiny import MINI
from pinchpoint.records import STORE_SCHEMA

OURS = MINI | {"title": "Small", "scales": {"quick": {}, "paper": {"seeds": [0, 1]}}}


@pytest.fixture(autouse=True)
def only_mini(tmp_path_factory, monkeypatch) -> None:
    folder = tmp_path_factory.mktemp("catalogue")
    (folder / "mini.yaml").write_text(yaml.safe_dump(OURS))
    (folder / "plain.yaml").write_text(yaml.safe_dump(MINI | {"title": "Small"}))
    monkeypatch.setattr(import_module("pinchpoint.utils.study_files"), "_folder", lambda: folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_list_counts_runs_at_a_scale():
    rows = json.loads(pinch("reproduce", "--list", "--scale", "paper", "--json").out)
    assert rows == [{"name": "mini", "title": "Small", "paper": "", "runs": 4}]
    assert "Small" in pinch("reproduce", "--list").out


def test_store_report_and_page_lie_where_they_are_wanted(here):
    first = ("reproduce", "mini", "--workers", 1, "--store", here / "elsewhere", "--out", here / "out")
    said = pinch(*first, "--page", here / "page.md")
    assert said.status == 0
    assert sorted(path.name for path in here.iterdir()) == ["elsewhere", "figures", "out", "page.md"]
    assert len(list((here / "elsewhere" / "stages").glob("*/*"))) == 6
    assert {path.name for path in (here / "out" / "mini-quick").iterdir()} == {
        "summary.json", "records.parquet", "report.html", "wall_seconds"
    }  # fmt: skip
    page = (here / "page.md").read_text()
    assert "## Small" in page
    assert (here / "figures" / "results" / "mini-rank.svg").is_file()
    assert "(figures/results/mini-rank.svg)" in page
    assert pinch("reproduce", "all", "mini", *first[2:]).status == 0, "each once"
    for path in (here / "elsewhere" / "stages" / "attack").glob("*/record.parquet"):
        polars.read_parquet(path).with_columns(polars.lit(STORE_SCHEMA + 1).alias("store_schema")).write_parquet(path)
    page_only = ("reproduce", "--page", here / "page.md", "--store", here / "elsewhere")
    assert "update pinchpoint" in pinch(*page_only).error, "not that nothing is finished"
    assert (here / "page.md").read_text() == page


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "reproduce needs the name of an experiment, but got none; see --list, or write all."),
        (["nosuch"], "an experiment must be known by name, but got nosuch; use all, or of: mini."),
        (["all", "plain"], "an experiment must be known by name, but got plain; use all, or of: mini."),
        (["mini", "--scale", "huge"], "a scale of mini.yaml must be one of its scales, but got huge; use "),
        (["--list", "--scale", "huge"], "a scale of mini.yaml must be one of its scales, but got huge; use "),
        (["mini", "--engine", "spark"], "an engine must be known by name, but got spark; use local, ray or slurm."),
        (["mini", "--mirror", "aim"], "a mirror is tensorboard:FOLDER, mlflow:URI or wandb:PROJECT, but got aim; "),
        (["mini", "--store", "s3://"], "an address must say where, but got s3://; name a place, such as s3://bucket/"),
        (["mini", "--page", "none/page.md"], "the folder of a page must be there, but got none; make it first, or "),
        (["mini", "--page", "."], "a page of results is a file, but got the folder .; name a Markdown file in it."),
        (
            ["--page", "page.md"],
            "a page of results needs a finished experiment, but got none in runs/reproduce/store; ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence_before_anything_runs(here, arguments, expected):
    assert pinch("reproduce", *arguments).error.startswith(expected)
    assert list(here.iterdir()) == []
