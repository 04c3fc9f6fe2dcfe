"""Where runs are kept: one directory a run, which appears by an atomic rename and is never half there.

ROOT/runs/ID/record.json, model.safetensors, config.json
ROOT/summary.json, records.parquet, report.html
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import ValidationError

from pinchpoint.errors import StoreError
from pinchpoint.records import SCHEMA_VERSION, Run, Summary

_RECORD = "record.json"


class Store:
    """A directory of finished runs.

    Args:
        root: made where it does not exist, once something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, run: str) -> Path:
        """Where a run lies, whether or not it is finished."""
        return self.root / "runs" / run

    def has(self, run: str) -> bool:
        """Whether the run is finished.

        Raises:
            StoreError: where that cannot be told.
        """
        try:
            return (self.path(run) / _RECORD).is_file()
        except OSError as error:
            seen = f"{error.strerror}: {self.root}"
            raise StoreError("a store must be a folder that can be read", seen, "choose another with --out") from None

    def load(self, run: str) -> Run:
        """A finished run's record.

        Raises:
            StoreError: where it is missing, damaged or written by a newer version.
        """
        path = self.path(run) / _RECORD
        try:
            content = json.loads(path.read_bytes())
            version = content.get("schema_version") if isinstance(content, dict) else None
            if isinstance(version, int) and version > SCHEMA_VERSION:
                raise StoreError(
                    f"records must have schema {SCHEMA_VERSION} or older", f"{version} in {path}", "update pinchpoint"
                )
            return Run.model_validate(content)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, ValidationError) as error:
            seen = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            remedy = f"delete {path.parent} and run the study again"
            raise StoreError("a run's record must be readable", f"{path} ({seen})", remedy) from None

    def add(self, run: str, fill: Callable[[Path], Run]) -> Run:
        """Let ``fill`` write files into an empty directory and return the record; then it becomes the run, at once.

        Whatever goes wrong, or is interrupted, leaves no trace. Where another process finished the run meanwhile, its
        result is kept.

        Raises:
            StoreError: where the directory cannot be written.
        """
        with self._writing():
            self.path(run).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=_mark(), ignore_cleanup_errors=True) as temporary:
                work = Path(temporary) / run
                work.mkdir()
                record = fill(work)
                (work / _RECORD).write_text(record.model_dump_json(indent=1) + "\n", encoding="utf-8")
                try:
                    work.rename(self.path(run))
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    return self.load(run)
        return record

    def belongs_to(self, study: str) -> None:
        """Refuse a folder whose summary is another study's: its summary and report would be replaced.

        Raises:
            StoreError: where it is.
        """
        try:
            other = json.loads((self.root / "summary.json").read_bytes()).get("study")
        except (OSError, ValueError, AttributeError):
            return
        if other != study:
            raise StoreError(
                f"the folder {self.root} must be free or hold the study '{study}'",
                f"the study '{other}'",
                "choose another folder with --out",
            )

    def sweep(self) -> None:
        """Remove what processes of this machine that were killed have left half-written."""
        if os.name != "posix":  # elsewhere asking whether a process lives can end it
            return
        for left in self.root.glob(f".writing-{_host()}-*"):
            with contextlib.suppress(ValueError, PermissionError):
                try:
                    os.kill(int(left.name.split("-")[2]), 0)
                except ProcessLookupError:
                    shutil.rmtree(left, ignore_errors=True)

    def write_summary(self, summary: Summary) -> Path:
        """summary.json, by atomic rename."""
        path = self.root / "summary.json"
        self._write(path, lambda temporary: temporary.write_text(summary.model_dump_json(indent=1) + "\n", "utf-8"))
        return path

    def write_parquet(self, rows: Iterable[dict[str, object]]) -> Path:
        """records.parquet: one row a model, with the layers and curves as nested columns."""
        import polars

        path = self.root / "records.parquet"
        frame = polars.DataFrame(list(rows), infer_schema_length=None)
        self._write(path, lambda temporary: frame.write_parquet(temporary))
        return path

    def _write(self, path: Path, write: Callable[[Path], object]) -> None:
        with self._writing():
            self.root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=_mark()) as temporary:
                write(Path(temporary) / path.name)
                (Path(temporary) / path.name).replace(path)

    def _writing(self) -> _Writing:
        return _Writing(self.root)


class _Writing:
    """Turns the file system's refusals into one sentence."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            seen = error.strerror or str(error)
            raise StoreError(
                f"the store {self.root} must be writable", seen, "free some space or choose another folder with --out"
            ) from None


def _mark() -> str:
    """Names of half-written things say whose they are."""
    return f".writing-{_host()}-{os.getpid()}-"


def _host() -> str:
    return "".join(letter for letter in platform.node() if letter.isalnum()) or "host"
