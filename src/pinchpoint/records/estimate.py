"""How long the rest of a study will take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Estimate:
    """What is left of a study.

    Attributes:
        seconds: of one process, by kind of stage.
        recorded: stages whose seconds come from records of like ones.
        probed: stages whose seconds come from a probe.
        unknown: stages whose seconds nobody knows; they are not in the sums.
        workers: processes that share the work.
        reason: why a probe could not be made, where one could not.
    """

    seconds: Mapping[str, float]
    recorded: int
    probed: int
    unknown: int
    workers: int
    reason: str | None = None

    @property
    def wall(self) -> float:
        """Seconds that it will take."""
        return sum(self.seconds.values()) / self.workers

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {"wall_seconds": self.wall, **dataclasses.asdict(self)}
