"""One stage of a study, as it is kept: what it depended on, how it went, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from pydantic import SerializeAsAny, model_validator

from pinchpoint.records.audited import Mechanism
from pinchpoint.records.base import Record
from pinchpoint.records.decisions import Pictures
from pinchpoint.records.models import Compressed, Training
from pinchpoint.records.steps import Bounded, Carried, Fooled, Judged, Measured, Queried, Retrieved

STORE_SCHEMA = 1
"""Raised when the columns of a stage's record change."""


@dataclass(frozen=True)
class StageKind:
    """One kind of stage: what the plan, the store, the cost and the tables of a study have to know of it.

    What it does is a function in ``study.stages``, what it costs one in ``study.cost.probe``.

    Attributes:
        result: the record of what it found.
        makes_model: leaves a checkpoint; the last one of a run is judged.
        per_norm: done for each threat.
        seeded: draws random numbers, so that the seed is part of its id.
        may_be_skipped: can be impossible for a model without anything being wrong.
        looks_at_attack: needs the points that the attack under its norm found.
        needs_surrogate: needs a second model.
        depends_on: fields of the audit that are part of its id.
        threat_fields: what of the threat is part of its id, beside the norm.
        scaled_by: fields that only scale its time.
        revision: raised where this kind alone comes to mean something else; part of its id where it is not 0.
    """

    result: type[Record]
    makes_model: bool = False
    per_norm: bool = True
    seeded: bool = False
    may_be_skipped: bool = False
    looks_at_attack: bool = False
    needs_surrogate: bool = False
    depends_on: tuple[str, ...] = ()
    threat_fields: tuple[str, ...] = ("eps",)
    scaled_by: tuple[str, ...] = ()
    revision: int = 0


STAGE_KINDS = MappingProxyType(
    {
        "train": StageKind(Training, makes_model=True, per_norm=False, seeded=True),
        "transfer": StageKind(Training, makes_model=True, per_norm=False, seeded=True),
        "compress": StageKind(Compressed, makes_model=True, per_norm=False, seeded=True),
        "profile": StageKind(Measured, per_norm=False, depends_on=("samples", "k_share", "target")),
        "bound": StageKind(
            Bounded, may_be_skipped=True, depends_on=("samples", "jacobian_samples", "bound_seconds", "bound_steps")
        ),
        "attack": StageKind(
            Judged,
            seeded=True,
            depends_on=("samples", "traced_samples", "steps", "curve_steps"),
            threat_fields=("eps", "curve"),
            scaled_by=("traced_samples", "steps", "curve_steps"),
        ),
        "universal": StageKind(
            Fooled, seeded=True, depends_on=("samples", "universal_steps"), threat_fields=("universal_eps",)
        ),
        "mechanism": StageKind(
            Mechanism,
            may_be_skipped=True,
            looks_at_attack=True,
            depends_on=("k_share",),
            revision=1,  # 0 followed the fully connected layers alone
        ),
        "query": StageKind(Queried, seeded=True, depends_on=("samples", "queries"), scaled_by=("queries",)),
        "transferred": StageKind(
            Carried, seeded=True, needs_surrogate=True, depends_on=("samples", "steps"), scaled_by=("steps",)
        ),
        "pictures": StageKind(Pictures, may_be_skipped=True, looks_at_attack=True),
        "retrieval": StageKind(Retrieved, per_norm=False, seeded=True, depends_on=("captions",)),
    }
)
"""By name, models before what looks at them, in the order in which they are done."""

MODEL_STAGES = tuple(name for name, kind in STAGE_KINDS.items() if kind.makes_model)
AUDIT_STAGES = tuple(name for name, kind in STAGE_KINDS.items() if not kind.makes_model and name != "profile")
"""What an audit may be asked for beside the profile, which always is."""


class StageRecord(Record):
    """A stage that ended. ``skipped``: it cannot be done for this model, which is no failure (a norm that cannot be
    bounded); ``failed``: it ended badly in a way that it would again (a loss that is no number). ``reason`` says why, and
    ``result`` is None then. ``parents`` are KIND/ID.
    """

    store_schema: int = STORE_SCHEMA
    id: str
    digest: str
    kind: str
    parents: list[str]
    seed: int
    config: dict[str, Any]
    status: Literal["done", "skipped", "failed"]
    reason: str | None
    versions: dict[str, str]
    machine: str
    seconds: float
    result: SerializeAsAny[Record] | None = None

    @model_validator(mode="before")
    @classmethod
    def _typed(cls, content: Any) -> Any:
        """The result's type follows from the kind."""
        if isinstance(content, dict) and isinstance(content.get("result"), dict) and content.get("kind") in STAGE_KINDS:
            return {**content, "result": STAGE_KINDS[content["kind"]].result.model_validate(content["result"])}
        return content
