"""A study's records summarised: one row a model, means over seeds, rank correlations with compressibility."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from pinchpoint.errors import StoreError
from pinchpoint.records import Correlation, Family, Level, Member, Peak, Run, Summary, ThreatNorm
from pinchpoint.study.config import FamilyConfig, StudyConfig
from pinchpoint.study.findings import bound_finding, findings, headline
from pinchpoint.study.judge import judge
from pinchpoint.study.plan import Plan

_METRICS = (
    "robust_accuracy",
    "robust_over_clean",
    "universal_accuracy",
    "query_accuracy",
    "transferred_accuracy",
    "gap",
    "gap_bound",
    "lipschitz",
    "amplification",
    "alignment",
)


class Failed(Protocol):
    """A run that failed, and why."""

    @property
    def label(self) -> str:
        """Its name."""

    @property
    def reason(self) -> str:
        """Why."""


def summarise(config: StudyConfig, planned: Plan, runs: Mapping[str, Run], failures: Sequence[Failed] = ()) -> Summary:
    """Summarise the runs that are there.

    Args:
        config: the study.
        planned: its runs.
        runs: those that are finished, by id.
        failures: runs that failed.

    Raises:
        StoreError: where none is.
    """
    members = [member for task in planned.tasks for member in task.members if member.run in runs]
    if not members:
        raise StoreError(
            "a report needs at least one finished run",
            "an empty store",
            "run the study first: pinchpoint study run FILE",
        )
    families = {family.name: family for family in config.families}
    order = list(families)
    members.sort(key=lambda member: (order.index(member.family), member.level, member.seed))
    rows = [_row(families[member.family], member, runs[member.run]) for member in members]
    summaries = [
        _family(family, [row for row in rows if row["family"] == family.name], runs)
        for family in config.families
        if any(row["family"] == family.name for row in rows)
    ]
    first = runs[members[0].run]
    bound_vs_gap = _bound_vs_gap(rows, {item.norm: item.eps for item in first.audit.robustness})
    return Summary(
        study=config.study,
        title=config.title or config.study,
        headline=headline(summaries, len({row["run"] for row in rows}), len(config.seeds)),
        families=summaries,
        bound_vs_gap=bound_vs_gap,
        verdicts=judge(config.claims, rows),
        models=rows,
        members=members,
        notes=[*map(bound_finding, bound_vs_gap), *_notes(config, planned, runs, failures)],
        versions=first.versions,
        machine=first.machine,
    )


def _row(family: FamilyConfig, member: Member, run: Run) -> dict[str, Any]:
    """One model as a flat row; layers and curves nested."""
    audit = run.audit
    row: dict[str, Any] = {
        "run": run.id,
        "family": family.name,
        "family_title": family.title or family.name,
        "level": member.level,
        "label": member.label,
        "seed": member.seed,
        "compressibility": getattr(audit.profile, family.view),
        "neuron": audit.profile.neuron,
        "spectral": audit.profile.spectral,
        "clean_accuracy": audit.clean_accuracy,
        "parameters": audit.parameters,
    }
    for robustness in audit.robustness:
        norm = robustness.norm
        row |= {
            f"eps_{norm}": robustness.eps,
            f"robust_accuracy_{norm}": robustness.robust_accuracy,
            f"robust_over_clean_{norm}": robustness.robust_over_clean,
            f"certified_accuracy_{norm}": next(
                p.certified_accuracy for p in robustness.curve if p.eps == robustness.eps
            ),
            f"universal_accuracy_{norm}": robustness.universal_accuracy,
            f"universal_eps_{norm}": robustness.universal_eps,
            f"query_accuracy_{norm}": robustness.query_accuracy,
            f"transferred_accuracy_{norm}": robustness.transferred_accuracy,
            f"gap_{norm}": robustness.gap,
            f"gap_bound_{norm}": robustness.gap_bound,
            f"curve_{norm}": [point.model_dump() for point in robustness.curve],
        }
    for bound in audit.bounds:
        row |= {
            f"lipschitz_{bound.norm}": bound.lipschitz,
            f"lipschitz_structure_{bound.norm}": bound.lipschitz_structure,
            f"lipschitz_lower_{bound.norm}": bound.lipschitz_lower,
        }
    for mechanism in audit.mechanism:
        row |= {
            f"amplification_{mechanism.norm}": mechanism.amplification,
            f"alignment_{mechanism.norm}": mechanism.layers[0].alignment,
            f"alignment_baseline_{mechanism.norm}": mechanism.layers[0].baseline,
        }
    row["layers"] = [
        {
            "name": layer.name,
            "neuron_k": layer.neuron.k,
            "neuron_residual": layer.neuron.residual,
            "neuron_spread": layer.neuron.spread,
            "spectral_k": layer.spectral.k,
            "spectral_residual": layer.spectral.residual,
            "spectral_spread": layer.spectral.spread,
            "effective_rank": layer.effective_rank,
            "stable_rank": layer.stable_rank,
            "frobenius": layer.frobenius,
        }
        for layer in audit.profile.layers
    ]
    row["epochs"] = run.training.epochs
    row["seconds"] = sum(audit.seconds.values())
    return row


def _family(family: FamilyConfig, rows: list[dict[str, Any]], runs: Mapping[str, Run]) -> Family:
    correlations = [_correlation(rows, "clean_accuracy", None, None, [row["clean_accuracy"] for row in rows])]
    norms: dict[ThreatNorm, float] = {item.norm: item.eps for item in runs[rows[0]["run"]].audit.robustness}
    for norm, eps in norms.items():
        for metric in _METRICS:
            values = [row.get(f"{metric}_{norm}") for row in rows]
            if any(value is not None for value in values):
                correlations.append(_correlation(rows, metric, norm, eps, values))
        for other in _common_budgets(rows, norm):
            if other != eps:
                values = [_at(row[f"curve_{norm}"], other) for row in rows]
                correlations.append(_correlation(rows, "robust_accuracy", norm, other, values))
    levels = [_level(rows, level) for level in sorted({row["level"] for row in rows})]
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


def _peak(rows: list[dict[str, Any]], levels: Sequence[Level], norm: ThreatNorm) -> Peak | None:
    """Whether, in every seed (two or more), an inner level lies above both ends of the family."""
    key = f"robust_accuracy_{norm}"
    seeds = {row["seed"] for row in rows}
    for seed in seeds:
        values = [row[key] for row in rows if row["seed"] == seed]  # rows stand in the order of levels
        if len(values) != len(levels) or max(values[1:-1], default=0.0) <= max(values[0], values[-1]):
            return None
    best = max(levels, key=lambda level: level.mean.get(key) or 0.0)
    inside = best.level not in (levels[0].level, levels[-1].level)
    return Peak(norm=norm, label=best.label) if len(seeds) > 1 and inside else None


def _level(rows: list[dict[str, Any]], level: int) -> Level:
    here = [row for row in rows if row["level"] == level]
    keys = dict.fromkeys(key for row in here for key, value in row.items() if isinstance(value, float))
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for key in keys:
        values = [row[key] for row in here if row.get(key) is not None]
        mean[key] = statistics.fmean(values) if values else None
        std[key] = statistics.stdev(values) if len(values) > 1 else None
    return Level(label=here[0]["label"], level=level, seeds=len(here), mean=mean, std=std)


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
    rho, p_value = _spearman(x, values)
    by_seed = []
    for seed in sorted({row["seed"] for row in rows}):
        index = [i for i, row in enumerate(rows) if row["seed"] == seed]
        by_seed.append(_spearman([x[i] for i in index], [values[i] for i in index])[0])
    return Correlation(
        metric=metric,
        against=against,
        norm=norm,
        eps=eps,
        rho=rho,
        p_value=p_value,
        models=len(rows),
        rho_by_seed=by_seed,
    )


def _bound_vs_gap(rows: list[dict[str, Any]], norms: Mapping[ThreatNorm, float]) -> list[Correlation]:
    """Does the gap bound rank all models of the study, each counted once, as the attacks do?"""
    once = list({row["run"]: row for row in rows}.values())
    return [
        _correlation(once, "gap_bound", norm, eps, [row[f"gap_bound_{norm}"] for row in once], against="gap")
        for norm, eps in norms.items()
        if any(row[f"gap_bound_{norm}"] is not None for row in once)
    ]


def _spearman(x: Sequence[float | None], y: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Spearman's rho and its p-value; None where fewer than three pairs or no variation leave it undefined.

    The p-value is the usual one from Student's t with n - 2 degrees of freedom (scipy.stats.spearmanr gives the same, but
    takes a second to import).
    """
    import numpy
    import polars
    from scipy.special import stdtr

    pairs = [
        (a, b)
        for a, b in zip(x, y, strict=True)
        if a is not None and b is not None and math.isfinite(a) and math.isfinite(b)
    ]
    if len(pairs) < 3 or len({a for a, _ in pairs}) < 2 or len({b for _, b in pairs}) < 2:
        return None, None
    ranks = [polars.Series(values).rank().to_numpy() for values in zip(*pairs, strict=True)]
    rho = max(-1.0, min(1.0, float(numpy.corrcoef(ranks)[0, 1])))
    freedom = len(pairs) - 2
    if 1.0 - abs(rho) < 1e-12:
        return rho, 0.0
    return rho, float(2.0 * stdtr(freedom, -abs(rho) * math.sqrt(freedom / (1.0 - rho * rho))))


def _notes(config: StudyConfig, planned: Plan, runs: Mapping[str, Run], failures: Sequence[Failed]) -> list[str]:
    notes = []
    missing = [task.label for task in planned.tasks if task.id not in runs]
    if missing:
        notes.append(f"{len(missing)} runs of the study are not finished; the first is {missing[0]}.")
    notes += [f"Failed: {failure.label}: {failure.reason}" for failure in failures]
    if len(config.seeds) < 2:
        notes.append("One seed is no finding: nothing here is called a direction.")
    else:
        notes.append(
            "A direction counts as found where all seeds agree in sign and p < 0.05 over all models of a family (p-values "
            "take models as independent, which the seeds of one level are not)."
        )
    shared = len({member.run for task in planned.tasks for member in task.members if len(task.members) > 1})
    if shared:
        notes.append(f"{shared} models stand in more than one family (the same configuration and seed is run once).")
    above = [
        run
        for run in runs.values()
        for item in run.audit.robustness
        if item.gap_bound is not None and item.gap > item.gap_bound
    ]
    if above:
        notes.append(f"DEFECT: {len(above)} measured gaps exceed their bound; please report this.")
    warned = sorted({warning for run in runs.values() for warning in run.audit.warnings})
    return notes + warned


def _common_budgets(rows: Sequence[dict[str, Any]], norm: ThreatNorm) -> list[float]:
    budgets = [{point["eps"] for point in row[f"curve_{norm}"]} for row in rows]
    return sorted(set.intersection(*budgets))


def _at(curve: Sequence[dict[str, Any]], eps: float) -> float:
    return float(next(point["robust_accuracy"] for point in curve if point["eps"] == eps))
