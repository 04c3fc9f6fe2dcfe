"""A run as a graph of stages. The id of a stage is a hash of what it depends on, and of nothing else.

So a model is trained once for all that look at it, and a changed attack repeats attacks alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from pinchpoint.audit import AuditConfig, ThreatConfig
from pinchpoint.records import ThreatNorm
from pinchpoint.study.cell import Cell

Kind = Literal[
    "train", "transfer", "compress", "profile", "bound", "attack", "universal", "mechanism", "query", "transferred",
    "pictures",
]  # fmt: skip
KINDS: tuple[Kind, ...] = (
    "train", "transfer", "compress", "profile", "bound", "attack", "universal", "mechanism", "query", "transferred",
    "pictures",
)  # fmt: skip
MODELS: tuple[Kind, ...] = ("train", "transfer", "compress")
"""Stages that leave a checkpoint."""

Key = tuple[Kind, str]
"""Kind and id: a stage's place in a store."""

STAGE_SCHEMA = 1
"""Raised when a stage comes to mean something else; part of every stage's id."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One piece of work.

    Attributes:
        digest: SHA-256 of all it depends on.
        kind: what is done.
        parents: ids of the stages whose results it needs, with their kinds.
        cell: where its configuration stands.
        seed: of everything it draws.
        norm: the threat's, where it is about one.
    """

    digest: str
    kind: Kind
    parents: tuple[Key, ...]
    cell: Cell
    seed: int
    norm: ThreatNorm | None = None

    @property
    def id(self) -> str:
        """What it is kept under: the first 16 digits of the digest."""
        return self.digest[:16]

    @property
    def threat(self) -> ThreatConfig:
        """The threat it is about."""
        return next(threat for threat in self.cell.audit.threats if threat.norm == self.norm)

    @property
    def key(self) -> Key:
        """Kind and id: its place in a store."""
        return self.kind, self.id

    @property
    def name(self) -> str:
        """Kind and norm, for people."""
        return self.kind if self.norm is None else f"{self.kind} {self.norm}"

    def config(self) -> dict[str, Any]:
        """What the stage depends on beside its parents and seed, for the record."""
        cell, audit = self.cell, self.cell.audit
        if self.kind == "train":
            return {section: _plain(getattr(cell, section)) for section in _RECIPE}
        if self.kind in ("transfer", "compress"):
            return {self.kind: _plain(getattr(cell, self.kind))}
        fields = {field: _plain(getattr(audit, field)) for field in _AUDIT[self.kind]}
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

_UNSEEN = {"workers", "memory_gb"}  # how image files are decoded
_TEST = {"limit_test"}

_AUDIT: dict[str, tuple[str, ...]] = {
    "profile": ("samples", "k_share", "target"),
    "bound": ("samples", "jacobian_samples", "bound_seconds", "bound_steps"),
    "attack": ("samples", "traced_samples", "steps", "curve_steps"),
    "universal": ("samples", "universal_steps"),
    "mechanism": ("k_share",),
    "query": ("samples", "queries"),
    "transferred": ("samples", "steps"),
    "pictures": (),
}
"""Fields of the audit on which each kind of stage depends."""

_SEEDED = {"attack", "universal", "query", "transferred"}


class Hasher:
    """Ids of the stages of cells, quickly: a section that many cells share, as one object, is written out once."""

    def __init__(self) -> None:
        self._digests: dict[tuple[int, str], tuple[object, str]] = {}
        self._audits: dict[int, tuple[AuditConfig, list[tuple[Kind, ThreatNorm | None, str]]]] = {}

    def stages(self, cell: Cell, seed: int, surrogate: Cell | None = None) -> Iterator[Stage]:
        """The stages of a run, parents first; the last model of the first three kinds is the one judged.

        Args:
            cell: what is done.
            seed: of the run.
            surrogate: the cell whose model lends its examples, where the audit asks for them.
        """
        model: Key | None = None
        for stage in self.models(cell, seed):
            model = stage.key
            yield stage
        assert model is not None
        lender: Key | None = None
        if surrogate is not None and cell.surrogate is not None:
            for stage in self.models(surrogate, seed + cell.surrogate.seed_shift):
                lender = stage.key
                yield stage
        test = self._digest(cell.judged_data, "test")
        attacked: dict[ThreatNorm | None, Key] = {}
        for kind, norm, digest in self._audit(cell.audit):
            parents: tuple[Key, ...] = (model,)
            if kind in ("mechanism", "pictures"):
                parents = (model, attacked[norm])
            elif kind == "transferred" and lender is not None:
                parents = (model, lender)
            made = _hash(kind, parents, digest + test, seed if kind in _SEEDED else 0)
            if kind == "attack":
                attacked[norm] = (kind, made[:16])
            yield Stage(made, kind, parents, cell, seed, norm)

    def models(self, cell: Cell, seed: int) -> Iterator[Stage]:
        """The stages that make a cell's model: training, then what is done to it."""
        digest = "".join(self._digest(getattr(cell, section), section) for section in _RECIPE)
        parent: tuple[Key, ...] = ()
        for kind in MODELS:
            if kind != "train":
                if getattr(cell, kind) is None:
                    continue
                digest = self._digest(getattr(cell, kind), kind)
            stage = Stage(_hash(kind, parent, digest, seed), kind, parent, cell, seed)
            parent = (stage.key,)
            yield stage

    def _digest(self, section: object, name: str) -> str:
        if not isinstance(section, BaseModel):
            return f"{name}={section!r};"
        known = self._digests.get((id(section), name))
        if known is None:
            leave_out = _UNSEEN | _TEST if name == "data" else _UNSEEN
            if name == "transfer":
                content = section.model_dump(mode="json", exclude={"data": _UNSEEN | _TEST})
            elif name == "test":
                content = section.model_dump(mode="json", include={"limit_test"})
            else:
                content = section.model_dump(mode="json", exclude=leave_out)
            known = (section, f"{name}=" + hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
            self._digests[id(section), name] = known  # the section is kept, so its identity stays its own
        return known[1]

    def _audit(self, audit: AuditConfig) -> list[tuple[Kind, ThreatNorm | None, str]]:
        known = self._audits.get(id(audit))
        if known is None:
            wanted: list[tuple[Kind, ThreatNorm | None, str]] = [("profile", None, _fields("profile", audit))]
            for threat in audit.threats:
                for kind in KINDS:
                    if kind in audit.stages:
                        content = json.dumps(_threat(kind, threat), sort_keys=True)
                        wanted.append((kind, threat.norm, content + _fields(kind, audit)))
            known = (audit, wanted)
            self._audits[id(audit)] = known
        return known[1]


def _fields(kind: Kind, audit: AuditConfig) -> str:
    return json.dumps({field: _plain(getattr(audit, field)) for field in _AUDIT[kind]}, sort_keys=True)


def _threat(kind: Kind, threat: ThreatConfig) -> dict[str, Any]:
    """What of a threat a stage depends on."""
    if kind == "universal":
        eps = threat.eps if threat.universal_eps is None else threat.universal_eps
        return {"norm": threat.norm, "universal_eps": eps}
    seen: dict[str, Any] = {"norm": threat.norm, "eps": threat.eps}
    if kind == "attack":
        seen["curve"] = sorted({*threat.curve, threat.eps})
    return seen


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _hash(kind: Kind, parents: tuple[Key, ...], digest: str, seed: int) -> str:
    content = f"{STAGE_SCHEMA}|{kind}|{parents}|{seed}|{digest}"
    return hashlib.sha256(content.encode()).hexdigest()


def run_id(stages: Iterable[Stage]) -> str:
    """The id of a run: a hash of those of its stages."""
    return hashlib.sha256("".join(stage.digest for stage in stages).encode()).hexdigest()[:16]
