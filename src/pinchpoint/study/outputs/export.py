"""The rows of one or several studies as one file for other tools: Parquet, CSV, or JSON lines.

The records of stages need no exporting, they are Parquet already (docs/study.md):

    SELECT id, seconds, result.robust_accuracy FROM read_parquet('STORE/stages/attack/*/record.parquet')
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars

from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.study.analysis.rows import read_rows
from pinchpoint.study.config.study import StudyConfig
from pinchpoint.study.graph.plan import plan
from pinchpoint.study.outputs.files import write_whole
from pinchpoint.study.store import parquet
from pinchpoint.study.store.remote import open_address
from pinchpoint.study.store.store import Store

Row = dict[str, Any]


def rows_of(config: StudyConfig, store: Store) -> list[Row]:
    """One flat row a model that is finished, the study's name first; layers and curves are nested.

    Raises:
        StoreError: where none is.
    """
    return [{"study": config.study, **row} for row in read_rows(config, plan(config), store).rows]


def check_suffix(where: str | Path) -> None:
    """Refuse a file of a kind that cannot be written.

    >>> check_suffix("rows.csv")

    Raises:
        ConfigError: where it is.
    """
    if Path(where).suffix not in _WRITERS:
        rule = f"rows are written to {', '.join(list(_WRITERS)[:-1])} or {list(_WRITERS)[-1]}"
        raise ConfigError(rule, Path(where).name, "give --out one of these endings")


def write(rows: Sequence[Row], path: Path) -> Path:
    """Write the rows; the file appears whole or not at all, and a column that a row lacks is empty there.

    CSV has nested columns as JSON. In JSON, numbers that are not finite are null.

    Raises:
        ConfigError: for another ending than .parquet, .csv and .jsonl.
        StoreError: where the file cannot be written.
    """
    check_suffix(path)
    return write_whole(path, lambda temporary: _WRITERS[path.suffix](rows, temporary))


def send(rows: Sequence[Row], address: str) -> None:
    """Write the rows to an address that fsspec knows, such as s3://bucket/rows.parquet; see ``write``.

    Raises:
        ConfigError: for another ending, or an address that nothing here can open.
        StoreError: where the service refuses.
    """
    files, there = open_address(address)
    with tempfile.TemporaryDirectory(prefix="pinchpoint-export-") as temporary:
        path = write(rows, Path(temporary) / Path(there).name)
        try:
            files.put_file(str(path), there)
        except Exception as error:  # each service has errors of its own
            said = " ".join(str(error).split()) or type(error).__name__
            remedy = "check the address, the network and your credentials"
            raise StoreError(f"{address} must be writable", said, remedy) from None


def _parquet(rows: Sequence[Row], path: Path) -> None:
    parquet.write(_frame(rows), path)


def _csv(rows: Sequence[Row], path: Path) -> None:
    nested = (dict, list)
    flat = [{name: _json(value) if isinstance(value, nested) else value for name, value in row.items()} for row in rows]
    flat = [{_cell(name): _cell(value) for name, value in row.items()} for row in flat]
    path.write_text(_frame(flat).write_csv(), encoding="utf-8")


def _cell(value: Any) -> Any:
    """Text that a spreadsheet would take for a formula, with the apostrophe in front that makes it text."""
    if not isinstance(value, str) or not value.lstrip().startswith(
        ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
    ):
        return value
    with suppress(ValueError):
        float(value)
        return value
    return f"'{value}"


def _jsonl(rows: Sequence[Row], path: Path) -> None:
    path.write_text("".join(_json(row) + "\n" for row in rows), encoding="utf-8")


_WRITERS: dict[str, Callable[[Sequence[Row], Path], None]] = {".parquet": _parquet, ".csv": _csv, ".jsonl": _jsonl}


def _frame(rows: Sequence[Row]) -> polars.DataFrame:
    """A column of one study that another lacks is a column of the table."""
    names = dict.fromkeys(name for row in rows for name in row)
    return polars.DataFrame([{name: row.get(name) for name in names} for row in rows], infer_schema_length=None)


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value
