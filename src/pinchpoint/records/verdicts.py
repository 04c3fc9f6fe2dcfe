"""What became of a claim: supported, opposite or undecided, with the size of the effect and what the test was."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pinchpoint.records.base import Record, ThreatNorm

Ruling = Literal["supported", "opposite", "undecided"]
"""Undecided is an answer: the reason says what is missing."""


class Interval(Record):
    """From ``low`` to ``high``. ``level`` is the confidence that ``method`` can claim with as many seeds as there are."""

    low: float
    high: float
    level: float
    method: str


class Part(Record):
    """One family's share in a trend: Spearman's rho within each seed (None: no variation), their mean, the exact p."""

    family: str
    rho: float | None
    by_seed: list[float | None]
    p_value: float | None


class Verdict(Record):
    """One claim, judged at one budget.

    ``effect`` is Spearman's rho for a trend (the mean over seeds, and over families where there are several) and the
    mean paired difference for a contrast, in the metric's own unit; ``unit`` names it. ``p_value`` is two-sided,
    ``p_corrected`` takes all ``tests`` of the study into account, ``floor`` is the smallest p_value that this many seeds
    and levels could have given (None: no limit). ``reason`` says why a claim is undecided.
    """

    claim: str
    says: str
    paper: str
    kind: Literal["trend", "contrast"]
    metric: str
    norm: ThreatNorm | None
    eps: float | None
    where: str
    expected: str
    ruling: Ruling
    sentence: str
    reason: str | None
    effect: float | None
    unit: Literal["rho", "share", "value"]
    interval: Interval | None
    seeds: list[int]
    by_seed: list[float | None]
    p_value: float | None
    p_corrected: float | None
    floor: float | None
    tests: int
    correction: str
    test: str
    parts: list[Part] = Field(default_factory=list)
