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
from pinchpoint.study.graph.stages import KINDS, Key, Kind
from pinchpoint.study.store import parquet

RECORD, DONE, FAILED = "record.parquet", "stages", "failed"
_STALE = 120.0
"""Seconds after which a claim that its driver has not renewed is nobody's."""
_EMPTY = 5.0
"""Seconds that a driver may take from making a claim to writing its name into it."""
_writing: dict[Path, int] = {}
"""Folders in which this process writes something now, and how many things."""


class Store:
    """A directory of finished stages on a file system that all drivers and workers see.

    Args:
        root: made where it does not exist, once something is written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __getstate__(self) -> dict[str, Path]:
        """Whoever it is sent to may work in another folder."""
        return {"root": self.root.absolute()}

    def __str__(self) -> str:
        """Where it is, for people."""
        return str(self.root)

    @property
    def home(self) -> Path | None:
        """The folder that everybody must see who works on the store; None where it is none."""
        return self.root.absolute()

    def folder(self, key: Key) -> Path:
        """Where a stage lies, whether or not it is finished."""
        return self.root / DONE / key[0] / key[1]

    def finished(self, kinds: Sequence[Kind] = KINDS) -> set[Key]:
        """All stages that are done or skipped.

        Raises:
            StoreError: where that cannot be told.
        """
        return self._listed(DONE, kinds)

    def failures(self, kinds: Sequence[Kind] = KINDS) -> set[Key]:
        """All stages that failed."""
        return self._listed(FAILED, kinds)

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

    def sizes(self, part: str) -> dict[str, int]:
        """Bytes of every file in a part of the store, by its path there."""

        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                seen = f"{error.strerror}: {error.filename}"
                raise StoreError(
                    "a store must be a folder that can be read", seen, "choose another with --store"
                ) from None

        root = self.root / part
        found = (Path(folder) / name for folder, _, names in os.walk(root, onerror=refuse) for name in names)
        return {path.relative_to(root).as_posix(): path.lstat().st_size for path in found}

    def has(self, key: Key) -> bool:
        """Whether the stage is done or skipped."""
        return self.folder(key).is_dir()

    def failed(self, key: Key) -> bool:
        """Whether the stage failed."""
        return (self.root / FAILED / key[0] / key[1]).is_dir()

    def check(self, keys: Iterable[Key]) -> None:
        """Read one record of each kind, to learn whether this version can.

        Raises:
            StoreError: where one is damaged or was written by a newer version.
        """
        for kind, name in {key[0]: key for key in keys}.values():
            parquet.read(kind, self._records(DONE, kind, [name]))

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
                more = parquet.read(kind, self._records(FAILED, kind, failed))
                table = polars.concat([table, more])
            try:
                found.update({(kind, record.id): record for record in parquet.records(kind, table)})
            except (ValidationError, ValueError) as error:
                seen = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
                remedy = f"delete it, and {self.root / 'segments'}, and run the study again"
                raise StoreError(f"records of {self.root / 'stages' / kind} must make sense", seen, remedy) from None
        return found

    def table(self, kind: Kind, names: set[str], columns: Sequence[polars.Expr] = ()) -> polars.DataFrame:
        """Records of one kind as a table, one row each; where columns are named, the id and those."""
        columns = [polars.col("id"), *columns] if columns else []
        parts = []
        left = set(names)
        for path, copied in self._segments(kind):
            here = left & copied
            if here:
                with contextlib.suppress(StoreError):
                    parts.append(parquet.read(kind, [path], columns).filter(polars.col("id").is_in(list(here))))
                    left -= here
        if left or not parts:
            loose = parquet.read(kind, self._records(DONE, kind, left))  # many files are read sooner whole than in part
            parts.append(loose.select(columns or polars.all()))
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
            with half_written(self.root) as temporary:
                work = Path(temporary) / key[1]
                work.mkdir()
                record = fill(work)
                parquet.write(parquet.frame(key[0], [record]), work / RECORD)
                where = self.folder(key)
                if record.status == "failed":
                    where = self.root / FAILED / key[0] / key[1]
                    where.parent.mkdir(parents=True, exist_ok=True)
                try:
                    work.rename(where)
                except OSError as error:
                    if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                        raise
                    return self.load([key])[key]
        return record

    def remove(self, key: Key) -> None:
        """Take a stage out, at once, as it came, whether it failed or not; segments of its kind go too."""
        with (
            self.writing(),
            half_written(self.root) as temporary,
        ):
            self._drop_segments(key[0])
            for where in (DONE, FAILED):
                with contextlib.suppress(FileNotFoundError):
                    (self.root / where / key[0] / key[1]).rename(Path(temporary) / where)

    def compact(self, above: int = 200) -> None:
        """Copy records that lie in no segment into one, where a kind has more than so many of them; what was copied
        from stages that are gone is dropped."""
        for kind in KINDS:
            names = {name for _, name in self.finished([kind])}
            copied = {name for _, ids in self._segments(kind) for name in ids}
            if not copied <= names:  # stages were deleted by hand; done again, they will differ from their copies
                self._drop_segments(kind)
                copied = set()
            loose = names - copied
            if len(loose) <= above:
                continue
            table = parquet.read(kind, self._records(DONE, kind, loose))
            self._add_segment(kind, hashlib.sha256("".join(sorted(loose)).encode()).hexdigest()[:16], table)

    def _records(self, where: str, kind: Kind, names: Iterable[str]) -> list[Path]:
        """Files with the records of stages."""
        return [self.root / where / kind / name / RECORD for name in sorted(names)]

    def _add_segment(self, kind: Kind, name: str, table: polars.DataFrame) -> None:
        with self.writing():
            path = self.root / "segments" / kind / f"{name}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            with half_written(self.root) as temporary:
                parquet.write(table, Path(temporary) / path.name)
                (Path(temporary) / path.name).replace(path)

    def _drop_segments(self, kind: Kind) -> None:
        shutil.rmtree(self.root / "segments" / kind, ignore_errors=True)

    def _segments(self, kind: Kind) -> Iterator[tuple[Path, set[str]]]:
        """Those that can be read, and whose records they hold; they are copies, the directories have the records."""
        for path in sorted((self.root / "segments" / kind).glob("*.parquet")):
            with contextlib.suppress(StoreError):
                yield path, set(parquet.read(kind, [path], [polars.col("id")])["id"])

    # --- who is at what ---------------------------------------------------------------------------------------------

    def claim(self, key: Key) -> bool:
        """Say that this driver does a stage; False where another one that lives does."""
        path = self._claim(key)
        mine = me()
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
                    self._clear(path, mine)
                except OSError:  # a full disk takes the name, but nothing into it
                    with contextlib.suppress(OSError):
                        path.unlink(missing_ok=True)
                    raise
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
                if self._alive(path):
                    found[path.name] = path.read_text(encoding="utf-8")
        return found

    def _claim(self, key: Key) -> Path:
        return self.root / "claims" / f"{key[0]}-{key[1]}"

    def _alive(self, path: Path, mine: str | None = None) -> bool:
        try:
            owner, age = path.read_text(encoding="utf-8"), time.time() - path.stat().st_mtime
        except OSError:
            return False
        return owner != mine and at_it(owner, age)

    def _clear(self, path: Path, mine: str | None = None) -> None:
        """Take a claim of nobody away. Where another driver was quicker, and it is its claim by now, it is put back."""
        with (
            contextlib.suppress(FileNotFoundError),
            half_written(self.root) as temporary,
        ):
            aside = path.rename(Path(temporary) / path.name)
            if self._alive(aside, mine):
                aside.rename(path)

    def sweep(self) -> None:
        """Remove what processes of this machine that were killed have left: half-written things, and claims."""
        for left in self.root.glob(f".writing-{_host()}-*"):
            with contextlib.suppress(ValueError):
                if not _runs(int(left.name.split("-")[2])):
                    shutil.rmtree(left, ignore_errors=True)
        for claim in (self.root / "claims").glob("*"):
            if not self._alive(claim):
                with contextlib.suppress(OSError):
                    self._clear(claim)

    def writing(self) -> Writing:
        """Within it, the file system's refusals become one sentence."""
        return Writing(self.root)


class Writing:
    """Turns the file system's refusals into one sentence."""

    def __init__(self, root: Path, what: str = "store") -> None:
        self.root, self.what = root, what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            seen = error.strerror or str(error).splitlines()[0]
            raise StoreError(
                f"the {self.what} {self.root} must be writable",
                seen,
                "free some space or choose another folder with --out",
            ) from None


def at_it(owner: str, age: float) -> bool:
    """Whether a claim of so many seconds ago, with this in it, is somebody's."""
    if age > (_STALE if owner else _EMPTY):
        return False
    host, _, process = owner.partition(" ")
    return host != _host() or not process.isdigit() or _runs(int(process))


def me() -> str:
    """This process, as it stands in its claims."""
    return f"{_host()} {os.getpid()}"


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


def mark() -> str:
    """Names of half-written things say whose they are."""
    return f".writing-{_host()}-{os.getpid()}-"


@contextlib.contextmanager
def half_written(folder: Path) -> Iterator[str]:
    """A directory in ``folder`` for what is being written; gone in the end, also where the process is terminated."""
    _writing[folder] = _writing.get(folder, 0) + 1
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=mark(), ignore_cleanup_errors=True) as temporary:
            yield temporary
    finally:
        _writing[folder] -= 1


def remove_half_written() -> None:
    """For a process that ends now: what it was writing goes."""
    for folder in [folder for folder, count in _writing.items() if count]:
        for directory in folder.glob(f"{mark()}*"):
            shutil.rmtree(directory, ignore_errors=True)


def _host() -> str:
    return "".join(letter for letter in platform.node() if letter.isalnum()) or "host"
