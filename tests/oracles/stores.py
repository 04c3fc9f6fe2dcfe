"""What a store is filled with, and what lies in it."""

from __future__ import annotations

from pathlib import Path

from pinchpoint.records import StageRecord
from pinchpoint.study import Store


def everything(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file() or path.name.startswith("."))


def add(store: Store, *records: StageRecord) -> None:
    for one in records:
        store.add((one.kind, one.id), lambda folder, one=one: one)
