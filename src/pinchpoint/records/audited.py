"""One model, measured, bounded, attacked and explained."""

from __future__ import annotations

from pydantic import Field

from pinchpoint.records.attacks import Robustness
from pinchpoint.records.base import Record, ThreatNorm
from pinchpoint.records.bounds import Bounds
from pinchpoint.records.decisions import Pictures
from pinchpoint.records.profile import Profile
from pinchpoint.records.steps import Retrieved


class LayerMechanism(Record):
    """Where perturbations point in one layer's input, and how large they have become there.

    ``alignment`` is the share of the perturbation's l2 norm that lies in the span of the layer's first ``k`` right
    singular vectors, averaged over samples; ``baseline`` is sqrt(k / d), what a random direction has. ``amplification``
    is the mean of ||z_adv - z||_2 / ||z||_2 at the layer's output.
    """

    name: str
    k: int
    alignment: float
    baseline: float
    amplification: float


class Mechanism(Record):
    """Mechanism under one norm. ``amplification`` is that of the encoder's output, the head's input."""

    norm: ThreatNorm
    eps: float
    amplification: float
    layers: list[LayerMechanism]


class Audit(Record):
    """Everything known about one model on one data set."""

    clean_accuracy: float
    samples: int
    parameters: int | None = None
    profile: Profile
    bounds: list[Bounds]
    robustness: list[Robustness]
    mechanism: list[Mechanism]
    pictures: list[Pictures] = Field(default_factory=list)
    retrieval: Retrieved | None = None
    seconds: dict[str, float]
    warnings: list[str]
