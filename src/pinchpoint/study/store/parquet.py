"""Stage records in and out of Parquet: one row each, ``result`` a struct with the columns of its kind."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars

from pinchpoint.errors import StoreError
from pinchpoint.records import STAGE_KINDS, STORE_SCHEMA, StageRecord
from pinchpoint.study.store import columns

_GROUP = 1000
"""Rows that lie together in a file: a reader of some columns holds no more of the others."""
_COMMON = {name: field for name, field in StageRecord.model_fields.items() if name != "result"}


def schema(kind: str) -> dict[str, polars.DataType]:
    """The columns of a kind of stage."""
    own = {name: columns.dtype(field.annotation) for name, field in _COMMON.items()}
    return {**own, "result": polars.Struct(columns.schema(STAGE_KINDS[kind].result))}


def frame(kind: str, records: Sequence[StageRecord]) -> polars.DataFrame:
    """Records of one kind, a row each."""
    rows = []
    for record in records:
        dumped = record.model_dump()
        row = {name: columns.encode(dumped[name], field.annotation) for name, field in _COMMON.items()}
        rows.append({**row, "result": columns.encode(dumped["result"], STAGE_KINDS[kind].result)})
    return polars.DataFrame(rows, schema=schema(kind), strict=True)


def records(kind: str, table: polars.DataFrame) -> list[StageRecord]:
    """The other way.

    Raises:
        pydantic.ValidationError: for rows that are no record of the kind.
    """
    wanted = {name: field.annotation for name, field in _COMMON.items()}
    changed = {name: kind_of for name, kind_of in wanted.items() if columns.changes(kind_of)}
    found = []
    for row in table.iter_rows(named=True):
        for name, annotation in changed.items():
            row[name] = columns.decode(row[name], annotation)
        row["result"] = columns.decode(row["result"], STAGE_KINDS[kind].result) if row["status"] == "done" else None
        found.append(StageRecord.model_validate(row))
    return found


def write(table: polars.DataFrame, path: Path) -> None:
    """A table as a file. What the file system refuses is an OSError, which polars would wrap in words of its own."""
    content = io.BytesIO()
    table.write_parquet(content, statistics=False, row_group_size=_GROUP)
    path.write_bytes(content.getbuffer())


def read(kind: str, files: Sequence[Path], columns: Sequence[polars.Expr] = ()) -> polars.DataFrame:
    """Files of one kind as one table; where columns are named, those alone, and the rest is never held whole.

    Raises:
        StoreError: for a file that is damaged, or written by a newer version; it is named.
    """
    if not files:
        return polars.DataFrame(schema=schema(kind)).select(columns or polars.all())
    try:
        content = polars.scan_parquet(list(files), hive_partitioning=False, glob=False)
        alike = content.collect_schema() == polars.Schema(schema(kind))
        some = content.select("store_schema", *columns)
        table = some.collect(engine="streaming") if columns else content.collect()
        known = int(table["store_schema"].max()) <= STORE_SCHEMA  # type: ignore[arg-type]
        if known and alike and table.height >= len(files):
            return table.drop("store_schema") if columns else table
    except (polars.exceptions.PolarsError, OSError, TypeError, ValueError):
        pass
    for file in files:
        _explain(kind, file)
    raise StoreError("records of one kind must have the same columns", kind, "update pinchpoint and run again")


def _explain(kind: str, file: Path) -> None:
    """Say what is wrong with a file, if anything is."""
    try:
        table = polars.read_parquet(file, glob=False, hive_partitioning=False)
        version: Any = table["store_schema"].max()
        newer = int(version) > STORE_SCHEMA
        alike = table.schema == polars.Schema(schema(kind))
    except (polars.exceptions.PolarsError, OSError, TypeError, ValueError) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        raise StoreError(
            "a stage's record must be readable", f"{file} ({said})", f"delete {file.parent} and run the study again"
        ) from None
    if newer:
        rule = f"records must have store schema {STORE_SCHEMA} or older"
        raise StoreError(rule, f"{version} in {file}", "update pinchpoint")
    if not alike:
        rule = "a stage's record must have the columns of its kind"
        raise StoreError(rule, f"others in {file}", f"delete {file.parent} and run the study again")
