"""A run as a graph of stages. The id of a stage is a hash of what it depends on, and of nothing else.

So a model is trained once for all that look at it, and a changed attack repeats attacks alone.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from operator import itemgetter
from typing import Any, NamedTuple

from pydantic import BaseModel

from pinchpoint.auditing.config import AuditConfig, ThreatConfig
from pinchpoint.records import STAGE_KINDS, ThreatNorm
from pinchpoint.records.stages import MODEL_STAGES
from pinchpoint.study.config.cell import Cell

Kind = str
"""A name in ``STAGE_KINDS``."""

KINDS: tuple[Kind, ...] = tuple(STAGE_KINDS)

Key = tuple[Kind, str]
"""Kind and id: a stage's place in a store."""

STAGE_SCHEMA = 2
"""Raised when a stage comes to mean something else; part of every stage's id."""


class Stage(NamedTuple):
    """One piece of work.

    Attributes:
        key: kind and id: its place in a store.
        hashed: SHA-256 of all it depends on.
        parents: keys of the stages whose results it needs.
        cell: where its configuration stands.
        seed: of everything it draws.
        norm: the threat's, where it is about one.
    """

    key: Key
    hashed: bytes
    parents: tuple[Key, ...]
    cell: Cell
    seed: int
    norm: ThreatNorm | None = None

    @property
    def kind(self) -> Kind:
        """What is done."""
        return self.key[0]

    @property
    def id(self) -> str:
        """What it is kept under: the first 16 digits of its hash."""
        return self.key[1]

    @property
    def digest(self) -> str:
        """The whole hash."""
        return self.hashed.hex()

    @property
    def threat(self) -> ThreatConfig:
        """The threat it is about."""
        return next(threat for threat in self.cell.audit.threats if threat.norm == self.norm)

    @property
    def name(self) -> str:
        """Kind and norm, for people."""
        return self.kind if self.norm is None else f"{self.kind} {self.norm}"

    def config(self) -> dict[str, Any]:
        """What the stage depends on beside its parents and seed, for the record."""
        cell, audit = self.cell, self.cell.audit
        if self.kind == "train":
            return {section: _plain(getattr(cell, section)) for section in _RECIPE}
        if STAGE_KINDS[self.kind].makes_model:
            return {self.kind: _plain(getattr(cell, self.kind))}
        fields = {field: _plain(getattr(audit, field)) for field in STAGE_KINDS[self.kind].depends_on}
        return fields if self.norm is None else {"threat": _threat(self.kind, self.threat), **fields}


_RECIPE = (
    "data",
    "model",
    "penalty",
    "constant_frobenius",
    "frobenius_scale",
    "frobenius_ball",
    "spectral_ball",
    "adversarial",
    "train",
    "device",
    "threads",
)
"""Sections of a cell on which training depends."""

_sections = itemgetter(*_RECIPE)

_UNSEEN = {"workers", "memory_gb"}  # how image files are decoded
_TEST = {"limit_test"}

_PREFIX = {
    name: b"%d|%s|" % (STAGE_SCHEMA, f"{name}.{kind.revision}".encode() if kind.revision else name.encode())
    for name, kind in STAGE_KINDS.items()
}


class Hasher:
    """Ids of the stages of cells, quickly: a section that many cells share, as one object, is written out once."""

    def __init__(self) -> None:
        self._digests: dict[str, dict[int, tuple[object, bytes]]] = defaultdict(dict)
        self._audits: dict[tuple[int, bytes], tuple[AuditConfig, list[tuple[Kind, ThreatNorm | None, bytes]]]] = {}

    def stages(self, cell: Cell, seed: int, surrogate: Cell | None = None) -> list[Stage]:
        """The stages of a run, parents first; the last model of the first three kinds is the one judged.

        Args:
            cell: what is done.
            seed: of the run.
            surrogate: the cell whose model lends its examples, where the audit asks for them.
        """
        made = self.models(cell, seed)
        model = made[-1]
        only: tuple[Key, ...] = (model.key,)
        lent, lender = only, b""
        attacks: dict[ThreatNorm | None, Stage] = {}
        if surrogate is not None and cell.surrogate is not None:
            made += self.models(surrogate, seed + cell.surrogate.seed_shift)
            lender, lent = made[-1].hashed, (model.key, made[-1].key)
        drawn = model.hashed + seed.to_bytes(8, "big")
        for kind, norm, digest in self._audit(cell.audit, self._digest(cell.judged_data, "test")):
            if STAGE_KINDS[kind].looks_at_attack:
                attack = attacks[norm]
                made.append(_stage(kind, attack.hashed + digest, (model.key, attack.key), cell, 0, norm))
            elif STAGE_KINDS[kind].needs_surrogate:
                made.append(_stage(kind, drawn + lender + digest, lent, cell, seed, norm))
            elif STAGE_KINDS[kind].seeded:
                made.append(_stage(kind, drawn + digest, only, cell, seed, norm))
                if kind == "attack":
                    attacks[norm] = made[-1]
            else:
                made.append(_stage(kind, model.hashed + digest, only, cell, 0, norm))
        return made

    def models(self, cell: Cell, seed: int) -> list[Stage]:
        """The stages that make a cell's model: training, then what is done to it."""
        digest = b"".join(map(self._digest, _sections(vars(cell)), _RECIPE))
        drawn = seed.to_bytes(8, "big")
        made = [_stage("train", drawn + digest, (), cell, seed, None)]
        for kind in MODEL_STAGES[1:]:
            section = getattr(cell, kind)
            if section is not None:
                before = made[-1]
                content = before.hashed + drawn + self._digest(section, kind)
                made.append(_stage(kind, content, (before.key,), cell, seed, None))
        return made

    def _digest(self, section: object, name: str) -> bytes:
        known = self._digests[name].get(id(section))
        if known is None:  # the section is kept, so its identity stays its own
            known = self._digests[name][id(section)] = section, _content(section, name)
        return known[1]

    def _audit(self, audit: AuditConfig, test: bytes) -> list[tuple[Kind, ThreatNorm | None, bytes]]:
        known = self._audits.get((id(audit), test))
        if known is None:
            wanted: list[tuple[Kind, ThreatNorm | None, bytes]] = [("profile", None, test + _fields("profile", audit))]
            for kind in audit.stages:
                if not STAGE_KINDS[kind].per_norm:
                    wanted.append((kind, None, _fields(kind, audit)))
            for threat in audit.threats:
                for kind in KINDS:
                    if kind in audit.stages and STAGE_KINDS[kind].per_norm:
                        content = _written(_threat(kind, threat))
                        wanted.append((kind, threat.norm, test + content + _fields(kind, audit)))
            known = (audit, wanted)
            self._audits[id(audit), test] = known
        return known[1]


def _content(section: object, name: str) -> bytes:
    """A section as stages see it."""
    if not isinstance(section, BaseModel):
        return f"{name}={section!r};".encode()
    if name == "transfer":
        content = section.model_dump(mode="json", exclude={"data": _UNSEEN | _TEST})
    elif name == "test":
        content = section.model_dump(mode="json", include=_TEST)
    else:
        content = section.model_dump(mode="json", exclude=_UNSEEN | (_TEST if name == "data" else set()))
    return name.encode() + _sha(_written(content))


def _stage(
    kind: Kind, content: bytes, parents: tuple[Key, ...], cell: Cell, seed: int, norm: ThreatNorm | None
) -> Stage:
    hashed = _sha(_PREFIX[kind] + content)
    return Stage((kind, hashed[:8].hex()), hashed, parents, cell, seed, norm)


_encoder = json.JSONEncoder(sort_keys=True)


def _written(content: Mapping[str, Any]) -> bytes:
    return _encoder.encode(content).encode()


def _sha(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _fields(kind: Kind, audit: AuditConfig) -> bytes:
    fields = {field: _plain(getattr(audit, field)) for field in STAGE_KINDS[kind].depends_on}
    return _written(fields)


def _threat(kind: Kind, threat: ThreatConfig) -> dict[str, Any]:
    """What of a threat a stage depends on."""
    values: dict[str, Any] = {
        "eps": threat.eps,
        "curve": sorted({*threat.curve, threat.eps}),
        "universal_eps": threat.eps if threat.universal_eps is None else threat.universal_eps,
    }
    return {"norm": threat.norm, **{field: values[field] for field in STAGE_KINDS[kind].threat_fields}}


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def run_id(stages: Iterable[Stage]) -> str:
    """The id of a run: a hash of those of its stages."""
    return hashlib.sha256(b"".join([stage.hashed for stage in stages])).hexdigest()[:16]
