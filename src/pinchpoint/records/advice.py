"""Which layers pinch, what to do about them, and what that would do."""

from __future__ import annotations

from typing import Any

from pinchpoint.records.base import Record, ThreatNorm


class PinchPoint(Record):
    """A layer and its share of the risk.

    ``gain`` is the mean log of how much the layer raises the relative size of an adversarial perturbation,
    ||dz|| / ||z|| at its output over that at its input; ``random_gain`` the same of random perturbations as long. ``share``
    is its part of all layers' excess, max(0, gain - random_gain). ``alignment`` is the share of the perturbation's length in
    the layer's dominant right singular directions, ``alignment_baseline`` that of a random direction. ``scale`` is
    ||W||_F / sqrt(min(h, d)) of its matrix and ``structure`` ||W||_2 over that: what concentration alone adds, from 1 to
    sqrt(min(h, d)). ``operator_norm`` is that of the operator in l2, which a convolution's matrix is not. ``neighbour`` is
    the factor min(1, A) with the layer before it. ``why`` is one sentence; ``advice`` names what to do. Numbers that are
    None could not be had for this layer.
    """

    rank: int
    layer: str
    kind: str
    share: float
    gain: float
    random_gain: float
    amplification: float
    alignment: float | None
    alignment_baseline: float | None
    neuron: float
    spectral: float
    stable_rank: float
    effective_rank: float
    operator_norm: float | None
    structure: float | None
    scale: float | None
    neighbour: float | None
    why: str
    advice: list[str]


class Prediction(Record):
    """What a metric is expected to become, ``how`` says by which rule; the rule fails outside low ... high."""

    metric: str
    norm: ThreatNorm | None
    eps: float | None
    before: float
    after: float
    low: float
    high: float
    how: str


class Advice(Record):
    """Something to do: ``action`` for a program, ``command`` for a person, ``because`` why, and what it should bring."""

    id: str
    title: str
    layers: list[str]
    action: dict[str, Any]
    command: str
    because: str
    predicted: list[Prediction]
