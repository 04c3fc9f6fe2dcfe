"""What all records share: plain typed values, no torch, no computing."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 2
"""Raised when a field changes its meaning; part of every run's id."""


Norm = Literal["linf", "l2"]
"""The two norms of the paper. One spelling everywhere."""


ThreatNorm = Literal["linf", "l2", "l1"]
"""The norms an attack can be held to; bounds and audits know the paper's two."""

NORMS: tuple[ThreatNorm, ...] = get_args(ThreatNorm)

NORM_NAMES: dict[ThreatNorm, str] = {"linf": "ℓ∞", "l2": "ℓ₂", "l1": "ℓ₁"}
"""For people."""


Portion = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]
"""A share, from 0 to 1."""


Count = Annotated[int, Field(ge=0, lt=2**63)]
"""A number of things."""


Budget = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
"""A size of perturbations, or a time."""


class Record(BaseModel):
    """Base of all records: unknown keys are refused, instances do not change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
