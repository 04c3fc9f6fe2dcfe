"""What the steps of an audit found, put together as one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

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
    Record,
    Retrieved,
    Robustness,
)

_Result = TypeVar("_Result", bound=Record)


@dataclass
class NormResults:
    """What the stages under one norm found, and why those that could not be done were not (``reasons``, by kind)."""

    norm: str
    results: list[Record] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def of(self, kind: type[_Result]) -> _Result | None:
        """The record of that type, where its stage was asked for and could be done."""
        return next((result for result in self.results if isinstance(result, kind)), None)


def assemble(
    measured: Measured, by_norm: Sequence[NormResults], seconds: Mapping[str, float], retrieved: Retrieved | None = None
) -> Audit:
    """One record of a model from those of its steps.

    Args:
        measured: of the weights.
        by_norm: one for each norm.
        seconds: by step.
        retrieved: recall on captions, of a CLIP model.
    """
    warnings = [not_measured(skipped.kind, skipped.name, skipped.reason) for skipped in measured.profile.skipped]
    for results in by_norm:
        warnings += [not_done(step, results.norm, reason) for step, reason in results.reasons.items()]
    return Audit(
        clean_accuracy=measured.clean_accuracy,
        samples=measured.samples,
        parameters=measured.parameters,
        profile=measured.profile,
        bounds=[bounded.bounds for results in by_norm if (bounded := results.of(Bounded))],
        robustness=[_robustness(results, judged, measured) for results in by_norm if (judged := results.of(Judged))],
        mechanism=[mechanism for results in by_norm if (mechanism := results.of(Mechanism))],
        pictures=[pictures for results in by_norm if (pictures := results.of(Pictures))],
        retrieval=retrieved,
        seconds=dict(seconds),
        warnings=warnings,
    )


def _robustness(results: NormResults, judged: Judged, measured: Measured) -> Robustness:
    clean, bounded, fooled = measured.clean_accuracy, results.of(Bounded), results.of(Fooled)
    queried, carried = results.of(Queried), results.of(Carried)
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
        query_accuracy=None if queried is None else queried.robust_accuracy,
        queries=None if queried is None else queried.queries,
        transferred_accuracy=None if carried is None else carried.robust_accuracy,
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
