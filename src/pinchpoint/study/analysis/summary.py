"""A study's records summarised: one row a model, means over seeds, rank correlations with compressibility."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pinchpoint.records import Correlation, Family, Level, Peak, Summary, ThreatNorm
from pinchpoint.records.base import NORMS
from pinchpoint.records.metrics import METRICS, metric_keys
from pinchpoint.study.analysis.findings import bound_finding, findings, headline
from pinchpoint.study.analysis.rows import Rows
from pinchpoint.study.analysis.statistics import associate, spearman
from pinchpoint.study.analysis.verdicts import judge
from pinchpoint.study.config.study import FamilyConfig, StudyConfig, no_collecting
from pinchpoint.study.graph.plan import Plan

_MOST_PERMUTED = 2000
"""Models above which p-values are Student's: permutations would take minutes."""


class Failed(Protocol):
    """A run that failed, and why."""

    @property
    def label(self) -> str:
        """Its name."""

    @property
    def reason(self) -> str:
        """Why."""


@no_collecting()
def summarise(config: StudyConfig, planned: Plan, found: Rows, failures: Sequence[Failed] = ()) -> Summary:
    """Summarise the models that are there.

    Args:
        config: the study.
        planned: its runs.
        found: the rows of those that are finished.
        failures: runs that failed.
    """
    rows = found.rows
    norms = _norms(rows)
    of: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        of.setdefault(row["family"], []).append(row)
    summaries = [_family(family, of[family.name], norms) for family in config.families if family.name in of]
    bound_vs_gap = _bound_vs_gap(rows, norms)
    return Summary(
        study=config.study,
        title=config.title or config.study,
        headline=headline(summaries, len({row["run"] for row in rows}), len(config.seeds)),
        families=summaries,
        bound_vs_gap=bound_vs_gap,
        verdicts=judge(config.claims, rows),
        models=rows,
        members=found.members,
        notes=[*map(bound_finding, bound_vs_gap), *_notes(config, planned, found, norms, failures)],
        versions=found.versions,
        machine=found.machine,
    )


def _norms(rows: Sequence[dict[str, Any]]) -> dict[ThreatNorm, float]:
    """Judged norms and their budgets."""
    found: dict[ThreatNorm, float] = {}
    for norm in NORMS:
        budget = next((eps for row in rows if (eps := row.get(f"eps_{norm}")) is not None), None)
        if budget is not None:
            found[norm] = budget
    return found


def _family(family: FamilyConfig, rows: list[dict[str, Any]], norms: Mapping[ThreatNorm, float]) -> Family:
    correlations = [_correlation(rows, "clean_accuracy", None, None, [row["clean_accuracy"] for row in rows])]
    for metric in metric_keys(stage="retrieval"):
        values = [row.get(metric) for row in rows]
        if any(value is not None for value in values):
            correlations.append(_correlation(rows, metric, None, None, values))
    for norm, eps in norms.items():
        for metric in (key for key, metric in METRICS.items() if metric.correlated and metric.per_norm):
            values = [row.get(f"{metric}_{norm}") for row in rows]
            if any(value is not None for value in values):
                correlations.append(_correlation(rows, metric, norm, eps, values))
        for other in _common_budgets(rows, norm):
            if other != eps:
                values = [_at(row[f"curve_{norm}"], other) for row in rows]
                correlations.append(_correlation(rows, "robust_accuracy", norm, other, values))
    levels = _levels(rows)
    peaks = [peak for norm in norms if (peak := _peak(rows, levels, norm)) is not None]
    return Family(
        name=family.name,
        title=family.title or family.name,
        view=family.view,
        levels=levels,
        correlations=correlations,
        peaks=peaks,
        findings=[
            finding for norm, eps in norms.items() for finding in findings(norm, eps, correlations, levels, peaks)
        ],
    )


def _levels(rows: Sequence[dict[str, Any]]) -> list[Level]:
    """Means and standard deviations over seeds of every number of each level; rows stand in the order of levels."""
    keys = list(dict.fromkeys(key for row in rows for key, value in row.items() if isinstance(value, float)))
    table = np.array([[_number(row.get(key)) for key in keys] for row in rows], dtype=float).reshape(len(rows), -1)
    places = [place for place, row in enumerate(rows) if not place or row["level"] != rows[place - 1]["level"]]
    lengths = np.diff([*places, len(rows)])
    known = ~np.isnan(table)
    counts = np.add.reduceat(known, places, axis=0, dtype=float)
    means = np.add.reduceat(np.where(known, table, 0.0), places, axis=0) / np.maximum(counts, 1.0)
    apart = np.where(known, table - np.repeat(means, lengths, axis=0), 0.0)
    deviations = np.sqrt(np.add.reduceat(apart**2, places, axis=0) / np.maximum(counts - 1.0, 1.0))
    return [
        Level(
            label=rows[place]["label"],
            level=rows[place]["level"],
            seeds=int(length),
            mean={key: value if of else None for key, value, of in zip(keys, mean, count, strict=True)},
            std={key: value if of > 1 else None for key, value, of in zip(keys, deviation, count, strict=True)},
        )
        for place, length, mean, deviation, count in zip(
            places, lengths, means.tolist(), deviations.tolist(), counts.tolist(), strict=True
        )
    ]


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _peak(rows: list[dict[str, Any]], levels: Sequence[Level], norm: ThreatNorm) -> Peak | None:
    """Whether, in every seed (two or more), an inner level lies above both ends of the family."""
    key = f"robust_accuracy_{norm}"
    seeds = _places(rows)
    for places in seeds.values():
        values = [rows[place][key] for place in places]  # rows stand in the order of levels
        if len(values) != len(levels) or max(values[1:-1], default=0.0) <= max(values[0], values[-1]):
            return None
    best = max(levels, key=lambda level: level.mean.get(key) or 0.0)
    inside = best.level not in (levels[0].level, levels[-1].level)
    return Peak(norm=norm, label=best.label) if len(seeds) > 1 and inside else None


def _correlation(
    rows: list[dict[str, Any]],
    metric: str,
    norm: ThreatNorm | None,
    eps: float | None,
    values: Sequence[float | None],
    against: str = "compressibility",
) -> Correlation:
    column = against if against in rows[0] else f"{against}_{norm}"
    x = [row.get(column) for row in rows]
    rho, p_value = spearman(x, values)
    if len(rows) <= _MOST_PERMUTED:
        found = associate(x, values, [row["seed"] for row in rows])
        p_value = None if rho is None or found is None else found.p_value
    return Correlation(
        metric=metric,
        against=against,
        norm=norm,
        eps=eps,
        rho=rho,
        p_value=p_value,
        models=len(rows),
        rho_by_seed=[
            spearman([x[place] for place in places], [values[place] for place in places])[0]
            for _, places in sorted(_places(rows).items())
        ],
    )


def _places(rows: Sequence[dict[str, Any]]) -> dict[int, list[int]]:
    """Where the rows of each seed stand."""
    found: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(row["seed"], []).append(place)
    return found


def _bound_vs_gap(rows: list[dict[str, Any]], norms: Mapping[ThreatNorm, float]) -> list[Correlation]:
    """Does the gap bound rank all models of the study, each counted once, as the attacks do?"""
    once = list({row["run"]: row for row in rows}.values())
    return [
        _correlation(once, "gap_bound", norm, eps, [row[f"gap_bound_{norm}"] for row in once], against="gap")
        for norm, eps in norms.items()
        if any(row[f"gap_bound_{norm}"] is not None for row in once)
    ]


def _notes(
    config: StudyConfig, planned: Plan, found: Rows, norms: Iterable[ThreatNorm], failures: Sequence[Failed]
) -> list[str]:
    notes = []
    finished = {row["run"] for row in found.rows}
    missing = [task.label for task in planned.tasks if task.id not in finished]
    if missing:
        notes.append(f"{len(missing)} runs of the study are not finished; the first is {missing[0]}.")
    notes += [f"Failed: {failure.label}: {failure.reason}" for failure in failures]
    if len(config.seeds) < 2:
        notes.append("One seed is no finding: nothing here is called a direction.")
    else:
        notes.append(
            "A direction counts as found where all seeds agree in sign and p < 0.05, the chance of such an order of the "
            "levels within seeds."
        )
    shared = len({member.run for task in planned.tasks for member in task.members if len(task.members) > 1})
    if shared:
        notes.append(f"{shared} models stand in more than one family (the same configuration and seed is run once).")
    above = {
        (row["run"], norm)
        for row in found.rows
        for norm in norms
        if (allowed := row.get(f"gap_bound_{norm}")) is not None and row[f"gap_{norm}"] > allowed
    }
    if above:
        notes.append(f"DEFECT: {len(above)} measured gaps exceed their bound; please report this.")
    return notes + found.warnings


def _common_budgets(rows: Sequence[dict[str, Any]], norm: ThreatNorm) -> list[float]:
    budgets = [{point["eps"] for point in row[f"curve_{norm}"]} for row in rows]
    return sorted(set.intersection(*budgets))


def _at(curve: Sequence[dict[str, Any]], eps: float) -> float:
    return float(next(point["robust_accuracy"] for point in curve if point["eps"] == eps))
