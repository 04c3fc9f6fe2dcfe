"""Where stages are kept: one directory a stage, which appears by an atomic rename and is never half there.

ROOT/stages/KIND/ID/record.parquet, and what the stage leaves: a checkpoint, points
ROOT/failed/KIND/ID/record.parquet    stages that ended badly and would again
ROOT/segments/KIND/*.parquet    copies of many records in one file, so that reading is quick; the directories are the truth
ROOT/claims/KIND-ID             who is at it now; advice to other drivers, never a lock

Many drivers may write at once. Two that do the same stage write the same, and the first rename stays.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import polars
from pydantic import ValidationError

from pinchpoint.errors import StoreError
from pinchpoint.records import StageRecord
from pinchpoint.study import tables
from pinchpoint.study.graph import KINDS, Key, Kind

_RECORD, _DONE, _FAILED = "record.parquet", "stages", "failed"
_STALE = 120.0
"""Seconds after which a claim that its driver has not renewed is nobody's."""


class Store:
    """A directory of finished stages on a file system that all drivers and workers see.

    Args:
        root: made where it does not exist, once something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, key: Key) -> Path:
        """Where a stage lies, whether or not it is finished."""
        return self.root / _DONE / key[0] / key[1]

    def finished(self, kinds: Sequence[Kind] = KINDS) -> set[Key]:
        """All stages that are done or skipped.

        Raises:
            StoreError: where that cannot be told.
        """
        return self._listed(_DONE, kinds)

    def failures(self, kinds: Sequence[Kind] = KINDS) -> set[Key]:
        """All stages that failed."""
        return self._listed(_FAILED, kinds)

    def _listed(self, where: str, kinds: Sequence[Kind]) -> set[Key]:
        found: set[Key] = set()
        for kind in kinds:
            try:
                with os.scandir(self.root / where / kind) as entries:
                    found.update((kind, entry.name) for entry in entries)
            except FileNotFoundError:
                continue
            except OSError as error:
                seen = f"{error.strerror}: {self.root}"
                remedy = "choose another with --out"
                raise StoreError("a store must be a folder that can be read", seen, remedy) from None
        return found

    def has(self, key: Key) -> bool:
        """Whether the stage is done or skipped."""
        return self.folder(key).is_dir()

    def load(self, keys: Iterable[Key]) -> dict[Key, StageRecord]:
        """Records of stages, failed ones too; those that are not there are left out.

        Raises:
            StoreError: where one is damaged or was written by a newer version.
        """
        wanted: dict[Kind, set[str]] = {}
        for kind, name in keys:
            wanted.setdefault(kind, set()).add(name)
        there, bad = self.finished(list(wanted)), self.failures(list(wanted))
        found: dict[Key, StageRecord] = {}
        for kind, names in wanted.items():
            failed = sorted(name for name in names if (kind, name) in bad - there)
            table = self.table(kind, {name for name in names if (kind, name) in there})
            if failed:
                more = tables.read(kind, [self.root / _FAILED / kind / name / _RECORD for name in failed])
                table = polars.concat([table, more])
            try:
                found.update({(kind, record.id): record for record in tables.records(kind, table)})
            except (ValidationError, ValueError) as error:
                seen = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                remedy = f"delete it, and {self.root / 'segments'}, and run the study again"
                raise StoreError(f"records of {self.root / 'stages' / kind} must make sense", seen, remedy) from None
        return found

    def table(self, kind: Kind, names: set[str]) -> polars.DataFrame:
        """Records of one kind as a table, one row each."""
        parts = []
        left = set(names)
        for segment in self._segments(kind):
            part = segment.filter(polars.col("id").is_in(list(left)))
            left -= set(part["id"])
            parts.append(part)
        if left or not parts:
            parts.append(tables.read(kind, [self.folder((kind, name)) / _RECORD for name in sorted(left)]))
        return polars.concat(parts)

    def add(self, key: Key, fill: Callable[[Path], StageRecord]) -> StageRecord:
        """Let ``fill`` write files into an empty directory and return the record; then it becomes the stage, at once.

        Whatever goes wrong, or is interrupted, leaves no trace. Where another process finished the stage meanwhile, its
        result is kept.

        Raises:
            StoreError: where the directory cannot be written.
        """
        with self.writing():
            self.folder(key).parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.root, prefix=_mark(), ignore_cleanup_errors=True) as temporary:
                work = Path(temporary) / key[1]
                work.mkdir()
                record = fill(work)
                tables.frame(key[0], [record]).write_parquet(work / _RECORD, statistics=False)
                where = self.folder(key)
                if record.status == "failed":
                    where = self.root / _FAILED / key[0] / key[1]
                    where.parent.mkdir(parents=True, exist_ok=True)
                try:
                    work.rename(where)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    return self.load([key])[key]
        return record

    def remove(self, key: Key) -> None:
        """Take a stage out, at once, as it came, whether it failed or not."""
        with (
            self.writing(),
            tempfile.TemporaryDirectory(dir=self.root, prefix=_mark(), ignore_cleanup_errors=True) as temporary,
        ):
            for where in (_DONE, _FAILED):
                with contextlib.suppress(FileNotFoundError):
                    (self.root / where / key[0] / key[1]).rename(Path(temporary) / where)

    def compact(self, above: int = 200) -> None:
        """Copy records that lie in no segment into one, where a kind has more than so many of them."""
        for kind in KINDS:
            names = {name for _, name in self.finished([kind])}
            loose = names - {name for segment in self._segments(kind) for name in segment["id"]}
            if len(loose) <= above:
                continue
            table = tables.read(kind, [self.folder((kind, name)) / _RECORD for name in sorted(loose)])
            mark = hashlib.sha256("".join(sorted(loose)).encode()).hexdigest()[:16]
            with self.writing():
                path = self.root / "segments" / kind / f"{mark}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryDirectory(dir=self.root, prefix=_mark()) as temporary:
                    table.write_parquet(Path(temporary) / path.name)
                    (Path(temporary) / path.name).replace(path)

    def _segments(self, kind: Kind) -> Iterator[polars.DataFrame]:
        for path in sorted((self.root / "segments" / kind).glob("*.parquet")):
            with contextlib.suppress(StoreError, FileNotFoundError):  # a copy: the directories hold the records
                yield tables.read(kind, [path])

    # --- who is at what ---------------------------------------------------------------------------------------------

    def claim(self, key: Key) -> bool:
        """Say that this driver does a stage; False where another one that lives does."""
        path = self._claim(key)
        mine = f"{_host()} {os.getpid()}"
        with self.writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            for _ in range(2):
                try:
                    with path.open("x", encoding="utf-8") as file:
                        file.write(mine)
                    return True
                except FileExistsError:
                    if self._alive(path, mine):
                        return False
                    path.unlink(missing_ok=True)
        return False

    def renew(self, keys: Iterable[Key]) -> None:
        """This driver is still at these."""
        for key in keys:
            with contextlib.suppress(OSError):
                os.utime(self._claim(key))

    def release(self, key: Key) -> None:
        """This driver is at it no more."""
        with contextlib.suppress(OSError):
            self._claim(key).unlink(missing_ok=True)

    def claims(self) -> dict[str, str]:
        """What is being done now: KIND-ID to the host and process of its driver."""
        found = {}
        for path in sorted((self.root / "claims").glob("*")):
            with contextlib.suppress(OSError):
                if self._alive(path, ""):
                    found[path.name] = path.read_text(encoding="utf-8")
        return found

    def _claim(self, key: Key) -> Path:
        return self.root / "claims" / f"{key[0]}-{key[1]}"

    def _alive(self, path: Path, mine: str) -> bool:
        try:
            owner, age = path.read_text(encoding="utf-8"), time.time() - path.stat().st_mtime
        except OSError:
            return False
        host, _, process = owner.partition(" ")
        if owner == mine or age > _STALE:
            return False
        if host != _host() or not process.isdigit():
            return True
        return _runs(int(process))

    def sweep(self) -> None:
        """Remove what processes of this machine that were killed have left half-written."""
        for left in self.root.glob(f".writing-{_host()}-*"):
            with contextlib.suppress(ValueError):
                if not _runs(int(left.name.split("-")[2])):
                    shutil.rmtree(left, ignore_errors=True)

    def writing(self) -> Writing:
        """Within it, the file system's refusals become one sentence."""
        return Writing(self.root)


class Writing:
    """Turns the file system's refusals into one sentence."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        refused = isinstance(error, OSError) or (
            isinstance(error, polars.exceptions.PolarsError) and "os error" in str(error)
        )
        if refused:
            seen = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise StoreError(
                f"the store {self.root} must be writable", seen, "free some space or choose another folder with --out"
            ) from None


def _runs(process: int) -> bool:
    """Whether a process of this machine lives; True where that cannot be asked."""
    if os.name != "posix":  # elsewhere asking can end it
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _mark() -> str:
    """Names of half-written things say whose they are."""
    return f".writing-{_host()}-{os.getpid()}-"


def _host() -> str:
    return "".join(letter for letter in platform.node() if letter.isalnum()) or "host"
