"""Tables of records: the same columns whatever the records hold, read by anyone."""

from __future__ import annotations

import polars
import pytest

from pinchpoint.errors import StoreError
from pinchpoint.records import STAGE_KINDS
from pinchpoint.study.store import parquet


@pytest.mark.parametrize("kind", STAGE_KINDS)
def test_no_record_makes_a_table_with_all_columns(kind, tmp_path):
    table = parquet.read(kind, [])
    assert table.is_empty()
    assert table.schema == polars.Schema(parquet.schema(kind)) == parquet.frame(kind, []).schema
    assert parquet.records(kind, table) == []


def test_columns_are_the_same_whether_stages_were_done_or_not(finished):
    for kind in {key[0] for key in finished.records}:
        record = next(record for key, record in finished.records.items() if key[0] == kind)
        skipped = record.model_copy(update={"status": "skipped", "reason": "x", "result": None})
        one, other = parquet.frame(kind, [record]), parquet.frame(kind, [skipped])
        assert one.schema == other.schema
        assert parquet.records(kind, polars.concat([one, other])) == [record, skipped]


def test_any_reader_of_parquet_sees_numbers_in_columns(finished):
    """As docs tell users of DuckDB and Polars."""
    files = str(finished.store.root / "stages" / "attack" / "*" / "record.parquet")
    table = polars.scan_parquet(files).select("id", polars.col("result").struct.field("robust_accuracy")).collect()
    expected = {
        record.id: record.result.robust_accuracy for key, record in finished.records.items() if key[0] == "attack"
    }
    assert dict(table.iter_rows()) == expected


def test_a_file_without_the_right_to_be_read_is_one_sentence(tmp_path):
    (tmp_path / "stage").mkdir()
    with pytest.raises(StoreError, match=r"a stage's record must be readable, but got .*stage "):
        parquet.read("train", [tmp_path / "stage"])
    with pytest.raises(StoreError, match=r"a stage's record must be readable, but got .*No such file"):
        parquet.read("train", [tmp_path / "none" / "record.parquet"])


def test_odd_letters_in_paths_are_only_letters(finished, tmp_path):
    """Stars and brackets are no patterns, and key=value folders add no columns."""
    record = next(record for key, record in finished.records.items() if key[0] == "bound")
    path = tmp_path / "a=1" / "[b]*?" / "record.parquet"
    path.parent.mkdir(parents=True)
    parquet.write(parquet.frame("bound", [record]), path)
    assert parquet.records("bound", parquet.read("bound", [path])) == [record]
