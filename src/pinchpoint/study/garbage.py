"""Stages that no study needs any more: found, shown, and only then deleted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from pinchpoint.errors import StoreError
from pinchpoint.study.config import StudyConfig
from pinchpoint.study.graph import KINDS, Key
from pinchpoint.study.plan import plan
from pinchpoint.study.store import Store

_ID = re.compile(r"[0-9a-f]{16}")
_OWN = (".parquet", ".safetensors", ".json")
"""Endings of the files that stages leave."""


@dataclass(frozen=True)
class Garbage:
    """Stages that nobody needs, and the bytes each takes; a stage that failed counts as one too."""

    sizes: Mapping[Key, int]

    @property
    def by_kind(self) -> dict[str, tuple[int, int]]:
        """How many of each kind, and their bytes."""
        kinds = {kind: [size for key, size in self.sizes.items() if key[0] == kind] for kind in KINDS}
        return {kind: (len(sizes), sum(sizes)) for kind, sizes in kinds.items() if sizes}

    @property
    def bytes(self) -> int:
        """Of all of them."""
        return sum(self.sizes.values())


def needed(configs: Iterable[StudyConfig]) -> set[Key]:
    """Every stage of the studies."""
    return {key for config in configs for key in plan(config).stages}


def find(store: Store, wanted: Set[Key]) -> Garbage:
    """What the store holds beside what is wanted.

    Raises:
        StoreError: where there is no store, it is no folder, or something in it is not a store's.
    """
    if store.home is None:
        raise StoreError("a store that is cleaned must be a folder", str(store), "use what its service has for that")
    if not any((store.root / part).is_dir() for part in _PARTS):
        raise StoreError("there must be a store", f"no stages in {store.root}", "name its folder with --out")
    sizes: dict[Key, int] = {}
    for part in _PARTS:
        for key, folder in _stages(store.root / part):
            if key not in wanted:
                sizes[key] = sizes.get(key, 0) + _size(folder)
    return Garbage(sizes)


def delete(store: Store, garbage: Garbage) -> None:
    """Take the stages out of the store, each at once.

    Nothing is deleted while a driver works in the store: what it is going to need cannot be known.

    Raises:
        StoreError: where a driver is at work, or the store cannot be written.
    """
    for key in garbage.sizes:
        _at_rest(store)
        store.remove(key)
    store.compact()


_PARTS = ("stages", "failed")


def _at_rest(store: Store) -> None:
    claims = store.claims()
    if claims:
        name, owner = next(iter(claims.items()))
        more = f", and {len(claims) - 1} more" if len(claims) > 1 else ""
        remedy = "wait until that driver has ended"
        raise StoreError("no driver may work in a store that is cleaned", f"{name} in work by {owner}{more}", remedy)


def _stages(part: Path) -> Iterator[tuple[Key, Path]]:
    """The stages in one part of a store; anything else there is refused."""
    for entry in _inside(part):
        if entry.name not in KINDS:
            raise _foreign(entry)
    for kind in KINDS:
        for folder in _inside(part / kind):
            if not _ID.fullmatch(folder.name):
                raise _foreign(folder)
            yield (kind, folder.name), folder


def _size(folder: Path) -> int:
    """Bytes of a stage's files."""
    files = _inside(folder)
    for file in files:
        if file.suffix not in _OWN or not file.is_file():
            raise _foreign(file)
    return sum(file.stat().st_size for file in files)


def _inside(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except FileNotFoundError:
        return []
    except OSError as error:
        remedy = "choose another with --out"
        seen = f"{error.strerror}: {folder}"
        raise StoreError("a store must be a folder that can be read", seen, remedy) from None


def _foreign(path: Path) -> StoreError:
    rule = "a store that is cleaned must hold stages and nothing else"
    return StoreError(rule, str(path), "move it elsewhere, or name the store's own folder with --out")
