"""Many models: runs, families, and what was found over them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from pinchpoint.records.audited import Audit
from pinchpoint.records.base import Record, ThreatNorm
from pinchpoint.records.models import Compressed, Training
from pinchpoint.records.verdicts import Verdict


class Run(Record):
    """One trained and audited model: the whole configuration, seed, versions and numbers. ``id`` hashes the config.

    ``model`` is the stage (KIND/ID) whose checkpoint was judged; ``transferred`` and ``compressed`` say what was done to
    the trained model before, where something was.
    """

    id: str
    schema_version: int
    config: dict[str, Any]
    seed: int
    versions: dict[str, str]
    machine: str
    model: str
    training: Training
    transferred: Training | None = None
    compressed: Compressed | None = None
    audit: Audit


class Member(Record):
    """A run's place in a study: in which family, at which level of that family's grid."""

    family: str
    level: int
    label: str
    seed: int
    run: str


class Correlation(Record):
    """Spearman's rho of a metric with ``against`` (by default the family's compressibility), over models and by seed."""

    metric: str
    against: str = "compressibility"
    norm: ThreatNorm | None
    eps: float | None
    rho: float | None
    p_value: float | None
    models: int
    rho_by_seed: list[float | None]


class Level(Record):
    """One level of a family: means over seeds and the standard deviation between them (None for one seed)."""

    label: str
    level: int
    seeds: int
    mean: dict[str, float | None]
    std: dict[str, float | None]


class Peak(Record):
    """Robust accuracy at the judged budget rises and then falls along a family's levels, in every one of its seeds.

    ``label`` is the level with the highest mean; in each seed some inner level lies above both ends.
    """

    norm: ThreatNorm
    label: str


class Family(Record):
    """A family of models of rising compressibility, summarised."""

    name: str
    title: str
    view: Literal["neuron", "spectral"]
    levels: list[Level]
    correlations: list[Correlation]
    peaks: list[Peak] = Field(default_factory=list)
    findings: list[str]


class Summary(Record):
    """A study summarised: what was found, in sentences computed from the records, families, and one row a model."""

    study: str
    title: str
    headline: str
    families: list[Family]
    bound_vs_gap: list[Correlation] = Field(default_factory=list)
    verdicts: list[Verdict] = Field(default_factory=list)
    models: list[dict[str, Any]]
    members: list[Member]
    notes: list[str]
    versions: dict[str, str]
    machine: str
