"""The table of claims: one row a verdict, those of a claim that is judged at several budgets under one head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pinchpoint.records import Ruling, Summary, Verdict
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.formatting import finite
from pinchpoint.report.glossary import TERMS, Term
from pinchpoint.report.study import verdicts as told
from pinchpoint.report.study.tables import Cell
from pinchpoint.utils.numbers import budget

_NONE = "–"


@dataclass(frozen=True)
class ClaimRow:
    """One verdict as the table shows it. ``order`` of the rulings is what sorting compares."""

    budget: str
    ruling: Ruling
    order: int
    effect: Cell
    interval: str
    method: str
    p: Cell
    corrected: Cell
    test: str
    term: Term | None
    sentence: str


@dataclass(frozen=True)
class ClaimGroup:
    """One claim: its words, where the paper says it, what is compared, how it was ruled, and its verdicts."""

    says: str
    paper: str
    about: str
    ruled: str
    rows: Sequence[ClaimRow]


def claim_groups(summary: Summary) -> list[ClaimGroup]:
    """The claims of a study in their order; none where there are no verdicts."""
    return [_group(verdicts) for verdicts in told.by_claim(summary.verdicts)]


def _group(verdicts: Sequence[Verdict]) -> ClaimGroup:
    first = verdicts[0]
    ruled = "; ".join(f"{ruling} at {at}" for ruling, at in told.budgets(verdicts).items())
    return ClaimGroup(first.says, first.paper, first.where, ruled, [_row(verdict) for verdict in verdicts])


def _row(verdict: Verdict) -> ClaimRow:
    known = verdict.interval
    norm = "" if verdict.norm is None else NORM_NAMES[verdict.norm]
    at = budget(verdict.norm or "", verdict.eps)
    return ClaimRow(
        budget=f"{norm}, ε = {at}" if at else norm,
        ruling=verdict.ruling,
        order=list(told.RULINGS).index(verdict.ruling),
        effect=Cell(told.effect(verdict) or _NONE, finite(verdict.effect)),
        interval=told.interval(verdict) or "",
        method="" if known is None else known.method,
        p=_chance(verdict.p_value),
        corrected=_chance(verdict.p_corrected),
        test=verdict.test or _NONE,
        term=next((term for words, term in _TESTS.items() if verdict.test.startswith(words)), None),
        sentence=verdict.sentence,
    )


def _chance(p: float | None) -> Cell:
    return Cell(told.chance(p) or _NONE, finite(p))


_TESTS = {"Page’s trend test": TERMS["page"], "paired t": TERMS["paired_t"]}
"""What a test's name begins with, and where it is explained."""
