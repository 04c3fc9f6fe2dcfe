"""The records in the order the page needs them: who stands where, which norms and seeds there are. No computing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pinchpoint.records import Bounds, Family, Mechanism, Member, Robustness, Run, Summary, ThreatNorm
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.charts import palette
from pinchpoint.report.formatting import finite


@dataclass(frozen=True)
class Placed:
    """One model at its place in a family: its member entry, its row of scalars, and its full record."""

    member: Member
    row: Mapping[str, Any]
    run: Run

    def value(self, key: str) -> float | None:
        """A recorded scalar, or None where it is missing, not a number, or not finite."""
        return finite(self.row.get(key))

    def robustness(self, norm: ThreatNorm) -> Robustness | None:
        """The record under this norm, if there is one."""
        return next((item for item in self.run.audit.robustness if item.norm == norm), None)

    def bounds(self, norm: ThreatNorm) -> Bounds | None:
        """The certified numbers for this norm, if there are any."""
        return next((item for item in self.run.audit.bounds if item.norm == norm), None)

    def mechanism(self, norm: ThreatNorm) -> Mechanism | None:
        """The mechanism under this norm, if there is one."""
        return next((item for item in self.run.audit.mechanism if item.norm == norm), None)


@dataclass(frozen=True)
class Material:
    """What all figures read. Made by ``gather``; ``placed`` is ordered by level, then seed."""

    summary: Summary
    runs: Sequence[Run]
    placed: Mapping[str, Sequence[Placed]]
    norms: Sequence[ThreatNorm]
    eps: Mapping[ThreatNorm, float]
    seeds: Sequence[int]
    missing: int

    def family_color(self, family: Family) -> str:
        """The colour this family has everywhere on the page."""
        return palette.family_color([item.name for item in self.summary.families].index(family.name))

    def level_color(self, family: Family, level: int) -> str:
        """The colour of a level of this family, by its place among the family's levels."""
        order = [item.level for item in family.levels]
        return palette.level_color(order.index(level) if level in order else 0, len(order))

    def symbol(self, seed: int) -> str:
        """The marker shape this seed has everywhere on the page."""
        return palette.seed_symbol(list(self.seeds).index(seed))

    def threat(self, norm: ThreatNorm) -> str:
        """A norm with its main budget, for example ``ℓ∞, ε = 0.05``."""
        return f"{NORM_NAMES[norm]}, ε = {self.eps[norm]:.4g}" if norm in self.eps else NORM_NAMES[norm]


def _row(rows: Mapping[tuple[str, str], Mapping[str, Any]], family: Family, run: str) -> Mapping[str, Any]:
    """The model's row in this family; a run listed under another family only is seen through this family's view."""
    if (family.name, run) in rows:
        return rows[family.name, run]
    other = next((row for (_, name), row in rows.items() if name == run), {})
    return {**other, "compressibility": other.get(family.view)}


def gather(summary: Summary, runs: Sequence[Run]) -> Material:
    """Sort the records once: members to their rows and runs, norms, budgets and seeds in order."""
    by_id = {run.id: run for run in runs}
    rows = {(str(row.get("family")), str(row.get("run"))): row for row in summary.models}
    placed: dict[str, Sequence[Placed]] = {}
    for family in summary.families:
        members = [item for item in summary.members if item.family == family.name and item.run in by_id]
        members.sort(key=lambda item: (item.level, item.seed))
        placed[family.name] = [Placed(item, _row(rows, family, item.run), by_id[item.run]) for item in members]
    eps: dict[ThreatNorm, float] = {}
    for run in runs:
        for item in run.audit.robustness:
            eps.setdefault(item.norm, item.eps)
    present = set(eps) | {item.norm for run in runs for item in run.audit.bounds}
    return Material(
        summary=summary,
        runs=runs,
        placed=placed,
        norms=[norm for norm in NORM_NAMES if norm in present],
        eps=eps,
        seeds=sorted({item.seed for item in summary.members} | {run.seed for run in runs}),
        missing=sum(item.run not in by_id for item in summary.members),
    )
