"""Rows and records for other tools: what DuckDB and Polars read is what the summary and the records hold."""

from __future__ import annotations

import csv
import json
import math

import duckdb
import fsspec
import polars
import pytest

from oracles.as_user import refused
from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.study import Store
from pinchpoint.study.outputs.export import rows_of, send, write


@pytest.fixture(scope="module")
def rows(finished):
    return rows_of(finished.config, finished.store)


def test_there_is_a_row_for_each_place_in_a_family(finished, rows):
    assert [row | {"study": "tiny"} for row in finished.summary.models] == rows
    assert list(rows[0])[:4] == ["study", "run", "family", "family_title"]
    assert len(rows) == 10


def test_every_format_gives_the_rows_back(tmp_path, rows):
    assert polars.read_parquet(write(rows, tmp_path / "deep" / "rows.parquet")).to_dicts() == rows
    lines = write(rows, tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    with write(rows, tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        read = list(csv.DictReader(file))
    for found, row in zip(read, rows, strict=True):
        assert list(found) == list(row)
        for name, value in row.items():
            if isinstance(value, dict | list):
                assert json.loads(found[name]) == value
            elif value is None:
                assert found[name] == ""
            else:
                assert type(value)(found[name]) == value
    assert sorted(path.name for path in tmp_path.iterdir()) == ["deep", "rows.csv", "rows.jsonl"]


def test_rows_of_unlike_studies_share_a_table(tmp_path):
    rows = [{"study": "a", "x": 1, "y": 2.5}, {"study": "b", "x": 0.5, "curve": [{"eps": 0.1}]}]
    frame = polars.read_parquet(write(rows, tmp_path / "rows.parquet"))
    assert frame.to_dicts() == [
        {"study": "a", "x": 1.0, "y": 2.5, "curve": None},
        {"study": "b", "x": 0.5, "y": None, "curve": [{"eps": 0.1}]},
    ]
    assert write(rows, tmp_path / "rows.csv").read_text().splitlines()[1:] == [
        "a,1.0,2.5,",
        'b,0.5,,"[{""eps"": 0.1}]"',
    ]


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path):
    row = {"a": math.nan, "curve": [{"b": math.inf, "c": 1.0}]}
    assert write([row], tmp_path / "rows.jsonl").read_text() == '{"a": null, "curve": [{"b": null, "c": 1.0}]}\n'
    assert math.isnan(polars.read_parquet(write([row], tmp_path / "rows.parquet"))["a"][0])


def test_the_file_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write([{"a": 1}], tmp_path / "rows.jsonl")
    with pytest.raises(TypeError):
        write([{"a": 2}, {"a": object()}], path)
    assert path.read_text() == '{"a": 1}\n'
    (tmp_path / "rows.csv").mkdir()
    with pytest.raises(StoreError, match="must be writable, but got Is a directory"):
        write([{"a": 1}], tmp_path / "rows.csv")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["rows.csv", "rows.jsonl"]


def test_rows_go_to_an_address_too(rows, monkeypatch):
    send(rows, "memory://exported/rows.parquet")
    files = fsspec.filesystem("memory")
    assert polars.read_parquet(files.cat("/exported/rows.parquet")).to_dicts() == rows
    with refused(ConfigError, "an address must say where, but got s3://; name a place, such as s3://bucket/prefix."):
        send(rows, "s3://")

    def full(self, *_):
        raise RuntimeError("no room\nleft")

    monkeypatch.setattr(type(files), "put_file", full)
    remedy = "check the address, the network and your credentials."
    with refused(StoreError, f"memory://full/rows.csv must be writable, but got no room left; {remedy}"):
        send(rows, "memory://full/rows.csv")


def test_mistakes_are_one_sentence(tmp_path, tiny):
    text = "rows are written to .parquet, .csv or .jsonl, but got rows.xlsx; give --out one of these endings."
    with refused(ConfigError, text):
        write([], tmp_path / "rows.xlsx")
    with pytest.raises(StoreError, match="at least one finished run"):
        rows_of(tiny, Store(tmp_path))


def test_duckdb_and_polars_read_the_records_of_stages_where_they_lie(finished):
    attacks = {key[1]: record for key, record in finished.records.items() if key[0] == "attack"}
    files = f"{finished.store.root}/stages/attack/*/record.parquet"
    said = duckdb.sql(f"SELECT id, result.norm, result.robust_accuracy, len(result.curve) FROM read_parquet('{files}')")
    wanted = {
        (name, one.result.norm, one.result.robust_accuracy, len(one.result.curve)) for name, one in attacks.items()
    }
    assert set(said.fetchall()) == wanted
    scanned = polars.scan_parquet(files).select("id", polars.col("result").struct.unnest()).collect()
    chosen = scanned.select("id", "norm", "robust_accuracy", polars.col("curve").list.len())
    assert set(chosen.rows()) == wanted


def test_sql_joins_a_training_with_the_attacks_on_its_model(finished):
    root = finished.store.root
    said = duckdb.sql(f"""
        SELECT train.seed, json_extract(train.config, '$.penalty.group_lasso')::DOUBLE AS lasso,
               attack.result.robust_accuracy
        FROM read_parquet('{root}/stages/attack/*/record.parquet') AS attack
        JOIN read_parquet('{root}/stages/train/*/record.parquet') AS train
          ON list_contains(attack.parents, 'train/' || train.id)
        WHERE attack.result.norm = 'l2' AND json_extract(train.config, '$.model.rank') = 'null'
    """)
    rows = [row for row in finished.summary.models if row["family"] == "lasso"]
    wanted = {(row["seed"], [0, 0.01, 0.1][row["level"]], row["robust_accuracy_l2"]) for row in rows}
    assert set(said.fetchall()) == wanted
