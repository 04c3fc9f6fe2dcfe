"""Verdicts as numbers and words of a page, the same in Markdown and in HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pinchpoint.records import Ruling, Verdict
from pinchpoint.utils.numbers import budget

RULINGS: dict[Ruling, str] = {
    "supported": "every seed shows the direction the paper states and p < 0.05, two-sided and corrected for all claims of "
    "the study",
    "opposite": "every seed shows the other direction, with the same certainty",
    "undecided": "everything else, and the reason is said",
}
"""What a ruling means."""


def by_claim(verdicts: Sequence[Verdict]) -> list[list[Verdict]]:
    """The verdicts on each claim: one, or one a budget."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        found.setdefault(verdict.claim, []).append(verdict)
    return list(found.values())


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many there are of each ruling."""
    counts = Counter(verdict.ruling for verdict in verdicts)
    told = ", ".join(f"{counts[ruling]} {ruling}" for ruling in RULINGS)
    many = "verdict" if len(verdicts) == 1 else "verdicts"
    return f"{len(verdicts)} {many} (a claim about a whole curve has one a budget): {told}."


def budgets(verdicts: Sequence[Verdict]) -> dict[Ruling, str]:
    """At which budgets a claim got which ruling."""
    found = {
        ruling: [budget(verdict.norm or "", verdict.eps) for verdict in verdicts if verdict.ruling == ruling]
        for ruling in RULINGS
    }
    return {ruling: ", ".join(at) for ruling, at in found.items() if at}


def effect(verdict: Verdict) -> str | None:
    """Its size: Spearman's rho, points of a hundred where shares are compared, or the metric's own unit."""
    if verdict.effect is None:
        return None
    said = _amount(verdict, verdict.effect)
    return f"ρ {said}" if verdict.unit == "rho" else f"{said} points" if verdict.unit == "share" else said


def interval(verdict: Verdict) -> str | None:
    """Where the effect lies, in the unit of ``effect``, and how sure that is."""
    known = verdict.interval
    if known is None:
        return None
    return f"{_amount(verdict, known.low)} to {_amount(verdict, known.high)} ({known.level:.0%})"


def _amount(verdict: Verdict, value: float) -> str:
    if verdict.unit == "share":
        return f"{100 * value:+.1f}"
    return f"{value:+.2f}" if verdict.unit == "rho" else f"{value:+.3g}"


def chance(p: float | None) -> str | None:
    """A p-value with two digits.

    >>> chance(0.0345), chance(1e-9), chance(None)
    ('0.035', '< 0.0001', None)
    """
    return None if p is None else f"{p:.2g}" if p >= 1e-4 else "< 0.0001"
