"""Claims judged over the rows of a study: supported, opposite or undecided, and a sentence computed from the numbers.

A claim is supported, or its opposite is, only where two seeds or more all show the same sign and p < 0.05 after the
correction for all tests of the study; p-values are two-sided, for a claim may fail either way. Everything else is
undecided, and the reason is said.

Which test decides was chosen before any result, by what it can show from three seeds:

* Trends: within each seed, the order of the levels' values (Page's test, exact; ``statistics.associate``). Each level
  adds to what a seed can say: three levels and three seeds reach p = .009, four reach .00014. It assumes nothing but that,
  without an effect, the levels of a seed are exchangeable and seeds independent.
* A trend claimed for several families must hold in each. Its p is the largest of theirs (an intersection-union test,
  Berger 1982, Technometrics 24: 295), which needs no correction of its own, and stays valid though families share models.
* Contrasts: paired t over seeds (``statistics.paired``); no test without a distribution reaches .05 from fewer than six.
"""

from __future__ import annotations

from collections.abc import Sequence

from pinchpoint.records import Ruling, Verdict
from pinchpoint.records.metrics import METRICS
from pinchpoint.study.analysis.evidence import (
    LEVEL,
    Reading,
    Row,
    correction_text,
    p_text,
    read,
    sign,
    verdict_sentence,
)
from pinchpoint.study.analysis.statistics import Correction, corrected
from pinchpoint.study.config.claims import ClaimConfig, ContrastConfig, TrendConfig


def judge(claims: Sequence[ClaimConfig], rows: Sequence[Row], correction: Correction = "holm") -> list[Verdict]:
    """A verdict for every claim, and for every budget of a claim with ``eps: each``, in the order of the claims.

    Args:
        claims: of the study.
        rows: one a model and family, as in ``Summary.models``; values that are not known are None or missing.
        correction: over all verdicts for which a test can be made.

    >>> rows = [
    ...     {"family": "rank", "level": l, "label": str(l), "seed": s, "run": f"{l}{s}", "compressibility": 0.2 * l,
    ...      "clean_accuracy": 0.9 - 0.1 * l} for l in range(4) for s in range(3)]
    >>> claim = ClaimConfig.model_validate(
    ...     {"id": "clean", "says": "It falls", "trend": {"metric": "clean_accuracy", "expected": "falls"}})
    >>> judge([claim], rows)[0].sentence
    'Supported: clean accuracy falls with compressibility in rank (Spearman -1.00 over 3 seeds, -1.00 in each; p = \
0.00014), from 0.90 (0) to 0.60 (3).'
    """
    questions = [(claim, eps) for claim in claims for eps in _budgets(claim.how, rows)]
    readings = [read(claim.how, eps, rows) for claim, eps in questions]
    p_values = corrected([reading.p_value if reading.testable else None for reading in readings], correction)
    tests = sum(p is not None for p in p_values)
    return [
        _verdict(claim, _shown_budget(claim.how, eps, rows), reading, p, tests, correction)
        for (claim, eps), reading, p in zip(questions, readings, p_values, strict=True)
    ]


def _verdict(
    claim: ClaimConfig, eps: float | None, reading: Reading, p: float | None, tests: int, correction: Correction
) -> Verdict:
    how = claim.how
    ruling: Ruling = "undecided"
    reason = reading.reason or _too_uncertain(reading, p, tests, correction)
    if reason is not None and reading.shape:
        reason = f"{reason}; {reading.shape}"
    if reason is None:
        wanted = 1 if how.expected in ("rises", "higher") else -1
        ruling = "supported" if sign(reading.effect) == wanted else "opposite"
    trend = isinstance(how, TrendConfig)
    return Verdict(
        claim=claim.id,
        says=claim.says,
        paper=claim.paper,
        kind="trend" if trend else "contrast",
        metric=how.metric,
        norm=how.norm,
        eps=eps,
        where=reading.where,
        expected=how.expected,
        ruling=ruling,
        sentence=verdict_sentence(how, eps, ruling, reason, reading, p, tests, correction),
        reason=reason,
        effect=reading.effect,
        unit="rho" if trend else "share" if METRICS[how.metric].is_share else "value",
        interval=reading.interval,
        seeds=reading.seeds,
        by_seed=reading.by_seed,
        p_value=reading.p_value,
        p_corrected=p,
        floor=reading.floor,
        tests=tests,
        correction=correction,
        test=reading.test,
        parts=reading.parts,
    )


def _too_uncertain(reading: Reading, p: float | None, tests: int, correction: Correction) -> str | None:
    if reading.floor is not None and reading.floor >= LEVEL:
        return f"so few seeds and levels give {p_text(reading.floor)} at best"
    if p is None or p >= LEVEL:
        return f"p is not below 0.05{correction_text(tests, correction)}"
    return None


def _budgets(how: TrendConfig | ContrastConfig, rows: Sequence[Row]) -> list[float | None]:
    """The budgets a claim is judged at: one (None: the judged one), or those that all its models share."""
    if how.eps != "each":
        return [how.eps]
    named = (how.of.family, how.than.family) if isinstance(how, ContrastConfig) else how.families
    curves = [row.get(f"curve_{how.norm}") or [] for row in rows if named is None or row["family"] in named]
    shared = set.intersection(*({point["eps"] for point in curve} for curve in curves)) if curves else set()
    return sorted(shared) or [None]


def _shown_budget(how: TrendConfig | ContrastConfig, eps: float | None, rows: Sequence[Row]) -> float | None:
    """The budget in numbers, the judged one too; None where what is measured has none."""
    if eps is not None or how.norm is None or not METRICS[how.metric].has_budget:
        return eps
    key = f"{'universal_eps' if how.metric == 'universal_accuracy' else 'eps'}_{how.norm}"
    return next((row[key] for row in rows if row.get(key) is not None), None)
