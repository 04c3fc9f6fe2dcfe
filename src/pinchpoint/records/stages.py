"""One stage of a study, as it is kept: what it depended on, how it went, and what came out."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SerializeAsAny, model_validator

from pinchpoint.records.audited import Mechanism
from pinchpoint.records.base import Record
from pinchpoint.records.decisions import Pictures
from pinchpoint.records.models import Compressed, Training
from pinchpoint.records.steps import Bounded, Carried, Fooled, Judged, Measured, Queried, Retrieved

STORE_SCHEMA = 1
"""Raised when the columns of a stage's record change."""

RESULTS: dict[str, type[Record]] = {
    "train": Training,
    "transfer": Training,
    "compress": Compressed,
    "profile": Measured,
    "bound": Bounded,
    "attack": Judged,
    "universal": Fooled,
    "mechanism": Mechanism,
    "query": Queried,
    "transferred": Carried,
    "pictures": Pictures,
    "retrieval": Retrieved,
}
"""What each kind of stage gives."""


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
        if isinstance(content, dict) and isinstance(content.get("result"), dict) and content.get("kind") in RESULTS:
            return {**content, "result": RESULTS[content["kind"]].model_validate(content["result"])}
        return content
