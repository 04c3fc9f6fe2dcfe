"""What the steps of an audit found, put together as one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pinchpoint.auditing.sentences import not_done, not_measured
from pinchpoint.records import (
    Audit,
    Bounded,
    Carried,
    CurvePoint,
    Fooled,
    Judged,
    Measured,
    Mechanism,
    Pictures,
    Queried,
    Retrieved,
    Robustness,
)


@dataclass
class Found:
    """What was found under one norm; None where a step was not asked for or could not be done (``reasons`` says why)."""

    norm: str
    bounded: Bounded | None = None
    judged: Judged | None = None
    fooled: Fooled | None = None
    mechanism: Mechanism | None = None
    queried: Queried | None = None
    carried: Carried | None = None
    pictures: Pictures | None = None
    reasons: dict[str, str] = field(default_factory=dict)


def assemble(
    measured: Measured, found: Sequence[Found], seconds: Mapping[str, float], retrieved: Retrieved | None = None
) -> Audit:
    """One record of a model from those of its steps.

    Args:
        measured: of the weights.
        found: one for each norm.
        seconds: by step.
        retrieved: recall on captions, of a CLIP model.
    """
    warnings = [not_measured(one.kind, one.name, one.reason) for one in measured.profile.skipped]
    for one in found:
        warnings += [not_done(step, one.norm, reason) for step, reason in one.reasons.items()]
    return Audit(
        clean_accuracy=measured.clean_accuracy,
        samples=measured.samples,
        parameters=measured.parameters,
        profile=measured.profile,
        bounds=[one.bounded.bounds for one in found if one.bounded is not None],
        robustness=[_robustness(one, one.judged, measured) for one in found if one.judged is not None],
        mechanism=[one.mechanism for one in found if one.mechanism is not None],
        pictures=[one.pictures for one in found if one.pictures is not None],
        retrieval=retrieved,
        seconds=dict(seconds),
        warnings=warnings,
    )


def _robustness(found: Found, judged: Judged, measured: Measured) -> Robustness:
    clean, bounded, fooled = measured.clean_accuracy, found.bounded, found.fooled
    return Robustness(
        norm=judged.norm,
        eps=judged.eps,
        robust_accuracy=judged.robust_accuracy,
        robust_over_clean=judged.robust_accuracy / clean if clean > 0 else None,
        clean_loss=judged.clean_loss,
        adversarial_loss=judged.adversarial_loss,
        gap=judged.adversarial_loss - judged.clean_loss,
        gap_bound=None if bounded is None else bounded.gap_bound,
        universal_accuracy=None if fooled is None else fooled.accuracy,
        universal_eps=None if fooled is None else fooled.eps,
        query_accuracy=None if found.queried is None else found.queried.robust_accuracy,
        queries=None if found.queried is None else found.queried.queries,
        transferred_accuracy=None if found.carried is None else found.carried.robust_accuracy,
        settled=judged.settled,
        curve=[
            CurvePoint(
                eps=point.eps,
                robust_accuracy=point.robust_accuracy,
                certified_accuracy=None if bounded is None else _certified(bounded.radii, point.eps),
            )
            for point in judged.curve
        ],
    )


def _certified(radii: Sequence[float], eps: float) -> float:
    """The share of samples whose class no perturbation within eps changes; a wrong one has the radius 0."""
    return sum(radius > 0 and radius >= eps for radius in radii) / len(radii)
