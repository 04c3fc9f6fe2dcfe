"""Stages that no study needs any more: found, shown, and only then deleted."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass

from pinchpoint.errors import StoreError
from pinchpoint.study.config.study import StudyConfig
from pinchpoint.study.graph.plan import plan
from pinchpoint.study.graph.stages import KINDS, Key
from pinchpoint.study.store.store import Store

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
        StoreError: where there is no store, it cannot be read, or something in it is not a store's.
    """
    files = {part: store.sizes(part) for part in _PARTS}
    if not any(files.values()):
        raise StoreError("there must be a store", f"no stages in {store}", "name its place with --store")
    sizes: dict[Key, int] = {}
    for part in _PARTS:
        for path, size in files[part].items():
            key = _stage(path, f"{store}/{part}")
            if key not in wanted:
                _check_own(path, f"{store}/{part}")
                sizes[key] = sizes.get(key, 0) + size
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


def _stage(path: str, there: str) -> Key:
    """Whose file it is; one that is no stage's is refused."""
    kind, *below = path.split("/")
    known = next((one for one in KINDS if one == kind), None)
    if known is None:
        raise _foreign(f"{there}/{kind}")
    if len(below) < 2 or not _ID.fullmatch(below[0]):
        raise _foreign(f"{there}/{kind}/{below[0]}" if below else f"{there}/{kind}")
    return known, below[0]


def _check_own(path: str, there: str) -> None:
    """Refuse what no stage leaves."""
    if path.count("/") != 2 or not path.endswith(_OWN):
        raise _foreign(f"{there}/{path}")


def _foreign(path: str) -> StoreError:
    rule = "a store that is cleaned must hold stages and nothing else"
    return StoreError(rule, path, "move it elsewhere, or name the store's own place with --store")
