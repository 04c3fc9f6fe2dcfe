"""A store that is no folder: any address that fsspec knows, such as s3://bucket/prefix.

It is laid out as a folder's is, so a copy of one is the other. There is no rename there: a stage's files are written first,
its record last, and only a record makes a stage. What a writer that was killed has left is written over by whoever does
the stage again. Two that finish a stage at once keep the first record, where the service can refuse to replace a file
(S3 can); their files are the same.

Credentials are the service's own business: its usual variables and files (AWS_PROFILE, AWS_ENDPOINT_URL, FSSPEC_S3_...).
"""

from __future__ import annotations

import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars

from pinchpoint.errors import ConfigError, PinchpointError, StoreError
from pinchpoint.records import StageRecord
from pinchpoint.study.graph.stages import Key, Kind
from pinchpoint.study.store import parquet
from pinchpoint.study.store.store import DONE, FAILED, RECORD, Store, at_it, half_written, me

_KEPT = 8
"""Stages whose files a process holds copies of; the one in hand needs three at most."""


def open_store(where: str | Path) -> Store:
    """The store in a folder, or at an address; one object an address and process, which share their copies.

    Args:
        where: a path, or PROTOCOL://...

    Raises:
        ConfigError: for an address that nothing here can open.

    >>> print(open_store("runs/demo"), open_store("memory://demo"))
    runs/demo memory://demo
    """
    if isinstance(where, Path) or "://" not in where:
        return Store(Path(where))
    if where.startswith("file://"):
        return Store(Path(where.removeprefix("file://")))
    return _remote(where.rstrip("/") if where.partition("://")[2].strip("/") else where)


class RemoteStore(Store):
    """A store at an address. ``root`` is a folder of this process with copies of what it has read; it goes with it.

    Args:
        address: PROTOCOL://...

    Raises:
        ConfigError: for an address that nothing here can open.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self._files, self._base = open_address(address)
        self._copies = tempfile.TemporaryDirectory(prefix="pinchpoint-store-", ignore_cleanup_errors=True)
        self._held: list[Path] = []
        super().__init__(Path(self._copies.name))

    def __reduce__(self) -> tuple[Callable[[str], Store], tuple[str]]:
        """Elsewhere it is opened anew."""
        return open_store, (self.address,)

    def __str__(self) -> str:
        """Where it is, for people."""
        return self.address

    @property
    def home(self) -> None:
        """None: it is reached over the network."""

    def folder(self, key: Key) -> Path:
        """A copy of the stage's files, fetched whole; where it is not finished, a folder that is not there."""
        copy = self.root / "copies" / key[0] / key[1]
        if copy.is_dir():
            return copy
        there = f"{self._base}/{DONE}/{key[0]}/{key[1]}/"
        names = [path.removeprefix(there) for path in self._find(there)]
        names = [name for name in names if name != RECORD and ".." not in name]
        with self.writing(), half_written(self.root) as temporary:
            if self.has(key):
                work = Path(temporary) / key[1]
                work.mkdir()
                self._fetch([there + name for name in names], [work / name for name in names])
                copy.parent.mkdir(parents=True, exist_ok=True)
                work.rename(copy)
                self._held.append(copy)
        while len(self._held) > _KEPT:
            shutil.rmtree(self._held.pop(0), ignore_errors=True)
        return copy

    def sizes(self, part: str) -> dict[str, int]:
        """Bytes of every file in a part of the store, by its path there."""
        there = f"{self._base}/{part}/"
        with self._asking():
            try:
                found = self._files.find(there, detail=True)
            except FileNotFoundError:
                return {}
        return {path.removeprefix(there): int(entry["size"]) for path, entry in found.items()}

    def has(self, key: Key) -> bool:
        """Whether the stage is done or skipped."""
        return self._exists(f"{self._base}/{DONE}/{key[0]}/{key[1]}/{RECORD}")

    def failed(self, key: Key) -> bool:
        """Whether the stage failed."""
        return self._exists(f"{self._base}/{FAILED}/{key[0]}/{key[1]}/{RECORD}")

    def add(self, key: Key, fill: Callable[[Path], StageRecord]) -> StageRecord:
        """Let ``fill`` write files into an empty directory and return the record; they are sent, and the record last.

        Where another process finished the stage meanwhile, its result is kept.

        Raises:
            StoreError: where it cannot be written.
        """
        with self.writing(), half_written(self.root) as temporary:
            work = Path(temporary)
            record = fill(work)
            parquet.write(parquet.frame(key[0], [record]), work / RECORD)
            there = f"{self._base}/{FAILED if record.status == 'failed' else DONE}/{key[0]}/{key[1]}"
            files = [path for path in sorted(work.rglob("*")) if path.is_file() and path.name != RECORD]
            if not self._exists(f"{there}/{RECORD}"):
                with self._asking():
                    for path in files:
                        self._files.put_file(str(path), f"{there}/{path.relative_to(work).as_posix()}")
                if self._create(f"{there}/{RECORD}", (work / RECORD).read_bytes()):
                    return record
        return self.load([key])[key]

    def remove(self, key: Key) -> None:
        """Take a stage out, whether it failed or not: its record first, and with it the stage, then its files."""
        self._drop_segments(key[0])
        for where in (DONE, FAILED):
            there = f"{self._base}/{where}/{key[0]}/{key[1]}"
            self._delete(f"{there}/{RECORD}")
            for path in self._find(there):
                self._delete(path)
            shutil.rmtree(self.root / where / key[0] / key[1], ignore_errors=True)
        shutil.rmtree(self.root / "copies" / key[0] / key[1], ignore_errors=True)

    def _listed(self, where: str, kinds: Sequence[Kind]) -> set[Key]:
        found: set[Key] = set()
        for kind in kinds:
            paths = (path.split("/") for path in self._find(f"{self._base}/{where}/{kind}"))
            found.update((kind, parts[-2]) for parts in paths if parts[-1] == RECORD)
        return found

    def _records(self, where: str, kind: Kind, names: Iterable[str]) -> list[Path]:
        copies = super()._records(where, kind, names)
        missing = [copy for copy in copies if where == FAILED or not copy.is_file()]
        self._fetch([f"{self._base}/{where}/{kind}/{copy.parent.name}/{RECORD}" for copy in missing], missing)
        return copies

    def _add_segment(self, kind: Kind, name: str, table: polars.DataFrame) -> None:
        super()._add_segment(kind, name, table)
        copy = self.root / "segments" / kind / f"{name}.parquet"
        with self._asking():
            self._files.pipe_file(f"{self._base}/segments/{kind}/{name}.parquet", copy.read_bytes())

    def _drop_segments(self, kind: Kind) -> None:
        for path in self._find(f"{self._base}/segments/{kind}"):
            self._delete(path)
        super()._drop_segments(kind)

    def _segments(self, kind: Kind) -> Iterator[tuple[Path, set[str]]]:
        there = {path.rpartition("/")[2]: path for path in self._find(f"{self._base}/segments/{kind}")}
        folder = self.root / "segments" / kind
        for copy in folder.glob("*.parquet"):
            if copy.name not in there:
                copy.unlink()
        missing = [name for name in there if not (folder / name).is_file()]
        self._fetch([there[name] for name in missing], [folder / name for name in missing])
        return super()._segments(kind)

    # --- who is at what ---------------------------------------------------------------------------------------------

    def claim(self, key: Key) -> bool:
        """Say that this driver does a stage; False where another one that lives does."""
        path = self._claim_at(key)
        for _ in range(2):
            if self._create(path, me().encode()):
                return True
            owner = self._owner(path)
            if owner not in (None, me()):
                return False
            self._delete(path)
        return False

    def renew(self, keys: Iterable[Key]) -> None:
        """This driver is still at these."""
        for key in keys:
            with suppress(StoreError), self._asking():
                if self._files.exists(self._claim_at(key)):
                    self._files.pipe_file(self._claim_at(key), me().encode())

    def release(self, key: Key) -> None:
        """This driver is at it no more."""
        with suppress(StoreError):
            self._delete(self._claim_at(key))

    def claims(self) -> dict[str, str]:
        """What is being done now: KIND-ID to the host and process of its driver."""
        owners = {path.rpartition("/")[2]: self._owner(path) for path in self._find(f"{self._base}/claims")}
        return {name: owner for name, owner in owners.items() if owner is not None}

    def sweep(self) -> None:
        """Remove claims of drivers that are gone. Files without a record are left: somebody may be writing them."""
        for path in self._find(f"{self._base}/claims"):
            if self._owner(path) is None:
                self._delete(path)

    def _claim_at(self, key: Key) -> str:
        return f"{self._base}/claims/{key[0]}-{key[1]}"

    def _owner(self, path: str) -> str | None:
        """Who made a claim and is still at it."""
        with self._asking():
            try:
                owner = self._files.cat_file(path).decode()
                age = time.time() - self._files.modified(path).timestamp()
            except FileNotFoundError:
                return None
        return owner if at_it(owner, age) else None

    # --- what is asked of the service -------------------------------------------------------------------------------

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Within it, whatever the service or the network says against it becomes one sentence."""
        try:
            yield
        except PinchpointError:
            raise
        except Exception as error:  # each service has errors of its own
            said = (str(error) or type(error).__name__).splitlines()[0]
            remedy = "check its address, the network and your credentials"
            raise StoreError(f"the store {self.address} must be reachable", said, remedy) from None

    def _find(self, path: str) -> list[str]:
        with self._asking():
            try:
                return [str(one) for one in self._files.find(path)]
            except FileNotFoundError:
                return []

    def _exists(self, path: str) -> bool:
        with self._asking():
            return bool(self._files.exists(path))

    def _fetch(self, paths: list[str], copies: list[Path]) -> None:
        """Files, each to its place; many at a time, where the service can."""
        if not paths:
            return
        with self.writing(), half_written(self.root) as temporary:
            fetched = [str(Path(temporary) / str(number)) for number in range(len(paths))]
            with self._asking():
                self._files.get(paths, fetched)
            for one, copy in zip(fetched, copies, strict=True):
                copy.parent.mkdir(parents=True, exist_ok=True)
                Path(one).replace(copy)

    def _create(self, path: str, content: bytes) -> bool:
        """Write a file that is not there; False where it is."""
        with self._asking():
            try:
                self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            except OSError:  # some services refuse in other words
                if not self._files.exists(path):
                    raise
                return False
        return True

    def _delete(self, path: str) -> None:
        with self._asking(), suppress(FileNotFoundError):
            self._files.rm_file(path)


@functools.cache
def _remote(address: str) -> RemoteStore:
    return RemoteStore(address)


def open_address(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it.

    Raises:
        ConfigError: for an address that nothing here can open, or that names no place.
    """
    from fsspec.core import url_to_fs

    if not address.partition("://")[2].strip("/"):
        raise ConfigError("an address must say where", address, "name a place, such as s3://bucket/prefix")
    try:
        files, base = url_to_fs(address, use_listings_cache=False)
    except ImportError as error:
        remedy = "run pip install 'pinchpoint[s3]', or install what it names"
        raise ConfigError(f"a store at {address} needs a package of its own", str(error), remedy) from None
    except ValueError as error:
        remedy = "name a folder, or an address such as s3://bucket/prefix"
        raise ConfigError("a store's address must be one that fsspec knows", f"{address} ({error})", remedy) from None
    return files, base.rstrip("/")
