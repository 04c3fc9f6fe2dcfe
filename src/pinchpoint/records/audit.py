"""What ``pinchpoint audit`` says about one model: everything a report shows, and nothing that needs the model again."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pinchpoint.records.advice import Advice, PinchPoint
from pinchpoint.records.audited import Mechanism
from pinchpoint.records.base import Budget, Count, Portion, Record, ThreatNorm
from pinchpoint.records.bounds import Bounds
from pinchpoint.records.decisions import Pictures
from pinchpoint.records.profile import Profile

REPORT_SCHEMA = 1
"""Raised when a field of ``AuditReport`` changes its meaning."""


class Share(Record):
    """``count`` of ``of`` samples, as a share, with Wilson's 95 % interval."""

    value: Portion
    low: Portion
    high: Portion
    count: Count
    of: Count


class Subject(Record):
    """The model: how it was asked for, what was assumed about it, and what it is. ``normalisation`` says what is done to
    pixels before the network sees them."""

    name: str
    notes: list[str]
    normalisation: str
    parameters: Count
    classes: Count
    input_shape: list[Count]


class Samples(Record):
    """The data: the first ``count`` of ``of`` test samples; ``class_names`` where the data have them."""

    name: str
    count: Count
    of: Count
    class_names: list[str] | None = None


class BudgetPoint(Record):
    """Robust accuracy at one budget with its interval, and what is certified there."""

    eps: Budget
    robust: Share
    certified: Portion | None


class ThreatReport(Record):
    """What became of every sample under one threat.

    ``attack`` names the ensemble, ``stage`` what settled each sample and ``settled`` counts them. ``curve`` rises in eps and
    holds the judged budget. ``gap`` is the mean adversarial loss minus the clean loss in nats, ``gap_bound`` what
    Corollary 3.3 allows. ``universal`` is what one perturbation for all samples leaves, at the same budget. ``warnings``
    name signs of masked gradients and what was left out. ``certified_attacked`` counts certified samples that were attacked
    all the same, to put the certificates to the test; none fell.
    """

    norm: ThreatNorm
    eps: Budget
    attack: str
    robust: Share
    universal: Share | None
    certified: Share | None
    certified_attacked: int | None = None
    median_radius: float | None
    gap: float | None
    gap_bound: float | None
    settled: dict[str, Count]
    stage: list[str]
    curve: list[BudgetPoint]
    warnings: list[str]


class Example(Record):
    """One image as a PNG in base64: a sample, an attacked one, or a perturbation (scaled to be seen, grey is no change).

    ``answer`` is the class the model gives, None for a perturbation on its own.
    """

    kind: Literal["clean", "adversarial", "difference", "universal"]
    norm: ThreatNorm | None
    sample: int | None
    label: int | None
    answer: int | None
    png: str


class Outcome(Record):
    """One prediction of an advice, and what was measured when it was followed. ``held``: measured within low ... high.
    ``alone`` is what the same fine-tuning leads to without the change."""

    metric: str
    norm: ThreatNorm | None
    eps: float | None
    before: float
    predicted: float
    low: float
    high: float
    measured: float
    held: bool
    alone: float | None = None


class Trial(Record):
    """The top suggestion tried on a copy: fine-tuned for ``epochs`` on ``samples`` training samples, judged anew."""

    advice: str
    title: str
    epochs: Count
    samples: Count
    outcomes: list[Outcome]
    said: str


class Paired(Record):
    """Two models on the same samples. ``both`` ... ``neither`` count samples that are right under this threat;
    ``difference`` is second minus first with its 95 % interval (paired), ``p_value`` of McNemar's exact test. ``attacks``
    are those that both models faced on them, and the only ones that count here; empty where there is no threat."""

    metric: str
    norm: ThreatNorm | None
    eps: float | None
    first: Share
    second: Share
    both: Count
    only_first: Count
    only_second: Count
    neither: Count
    difference: float
    low: float
    high: float
    p_value: Portion
    attacks: str = ""


class Comparison(Record):
    """What changed from the first model to the second, and whether it is more than chance."""

    first: str
    second: str
    rows: list[Paired]
    said: list[str]


class Phase(Record):
    """A part of the audit: done, or left out with the reason."""

    name: str
    done: bool
    said: str


class Timing(Record):
    """Seconds in all and by phase: the one part of a report that differs when it is repeated."""

    seconds: Budget
    phases: dict[str, Budget]


class AuditReport(Record):
    """One model audited.

    ``verdict`` has three sentences: how compressible, how robust, which layers pinch. ``pinch_points`` are ranked by
    ``share``; their ``advice`` names entries of ``advice``, best first. ``other`` is the report of the model it is
    compared with. Everything but ``timing`` repeats to the last digit with the same ``seed`` on the same machine, where no
    time budget cuts it short.
    """

    report_schema: int = REPORT_SCHEMA
    title: str
    command: str
    seed: Count
    budget: Budget | None
    subject: Subject
    data: Samples
    verdict: list[str]
    clean: Share
    threats: list[ThreatReport]
    pinch_points: list[PinchPoint]
    advice: list[Advice]
    trial: Trial | None = None
    comparison: Comparison | None = None
    other: AuditReport | None = None
    profile: Profile
    bounds: list[Bounds]
    mechanism: list[Mechanism]
    pictures: list[Pictures] = Field(default_factory=list)
    examples: list[Example] = Field(default_factory=list)
    phases: list[Phase]
    warnings: list[str]
    versions: dict[str, str]
    machine: str
    timing: Timing
