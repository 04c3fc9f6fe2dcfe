"""What a study leaves for readers, beside its store: summary.json and records.parquet, each written by atomic rename."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from pinchpoint.errors import StoreError
from pinchpoint.records import Summary
from pinchpoint.study.store import parquet
from pinchpoint.study.store.store import Writing, half_written


def belongs_to(folder: Path, study: str) -> None:
    """Refuse a folder whose summary is another study's: its summary and report would be replaced.

    Raises:
        StoreError: where it is.
    """
    try:
        other = json.loads((folder / "summary.json").read_bytes()).get("study")
    except (OSError, ValueError, AttributeError):
        return
    if other != study:
        raise StoreError(
            f"the folder {folder} must be free or hold the study '{study}'",
            f"the study '{other}'",
            "choose another folder with --out",
        )


def write_summary(folder: Path, summary: Summary) -> Path:
    """summary.json."""
    text = summary.model_dump_json(indent=1) + "\n"
    return write_whole(folder / "summary.json", lambda temporary: temporary.write_text(text, "utf-8"))


def write_rows(folder: Path, rows: Iterable[dict[str, object]]) -> Path:
    """records.parquet: one row a model, with the layers and curves as nested columns."""
    import polars

    frame = polars.DataFrame(list(rows), infer_schema_length=None)
    return write_whole(folder / "records.parquet", lambda temporary: parquet.write(frame, temporary))


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let ``write`` fill a file, which then takes its place at once.

    Raises:
        StoreError: where the folder cannot be written.
    """
    with Writing(path.parent, "folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
        with half_written(path.parent) as temporary:
            write(Path(temporary) / path.name)
            (Path(temporary) / path.name).replace(path)
    return path
