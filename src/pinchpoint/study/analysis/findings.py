"""What a study found, in sentences computed from its correlations and means.

The direction of an effect is measured, never assumed. It counts as found only where every seed shows the same sign and
the pooled Spearman correlation has p < 0.05. Failing that, a rise and fall that every seed shows is said to be one;
everything else shows no clear direction, and one seed leaves it open.
"""

from __future__ import annotations

from collections.abc import Sequence

from pinchpoint.records import Correlation, Family, Level, Peak, ThreatNorm

_LEVEL = 0.05


def direction(correlation: Correlation) -> int:
    """-1 fell, +1 rose, 0 undecided: all seeds agree in sign, and p < 0.05 over all models. One seed decides nothing."""
    if correlation.rho is None or correlation.p_value is None or correlation.p_value >= _LEVEL:
        return 0
    signs = {0 if rho is None else (rho > 0) - (rho < 0) for rho in correlation.rho_by_seed}
    return signs.pop() if len(signs) == 1 and len(correlation.rho_by_seed) > 1 else 0


def findings(
    norm: ThreatNorm,
    eps: float,
    correlations: Sequence[Correlation],
    levels: Sequence[Level],
    peaks: Sequence[Peak] = (),
) -> list[str]:
    """What happened to robust accuracy as compressibility rose, at the judged budget and over the curve."""
    found = _find(correlations, "robust_accuracy", norm, eps)
    relative = next((c for c in correlations if (c.metric, c.norm) == ("robust_over_clean", norm)), None)
    key = f"robust_accuracy_{norm}"
    first, best, last = levels[0], max(levels, key=lambda level: level.mean.get(key) or 0.0), levels[-1]
    said = {
        "fell": "fell as compressibility rose, the paper's direction",
        "rose": "rose as compressibility rose, opposite to the paper",
        "peaked": "rose with compressibility at first, opposite to the paper, and then fell, in every seed",
        "open": "shows no clear direction",
        "one seed": "is left open, since one seed decides nothing",
    }[_verdict(found, peaks)]
    way = f"From {_mean(first, key)} ({first.label}) to {_mean(last, key)} ({last.label})."
    if best.level not in (first.level, last.level):
        way = (
            f"From {_mean(first, key)} ({first.label}) over {_mean(best, key)} ({best.label}) to {_mean(last, key)} "
            f"({last.label})."
        )
    sentences = [
        f"{_name(norm, eps)}: robust accuracy {said} (Spearman {_rho(found)}; robust over clean accuracy "
        f"{_rho(relative)}). {way}{_clean(first, last)}"
    ]
    curve = sorted(
        (c for c in correlations if c.metric == "robust_accuracy" and c.norm == norm and c.eps is not None),
        key=lambda c: c.eps or 0.0,
    )
    signs = [(c.eps or 0.0, direction(c)) for c in curve]
    fell, rose = ([f"{at:g}" for at, sign in signs if sign == which] for which in (-1, 1))
    if fell and rose:
        sentences.append(
            f"{norm}: the sign depends on the budget: robust accuracy falls with compressibility at eps {', '.join(fell)}, "
            f"and rises at {', '.join(rose)}."
        )
    elif len(curve) > 1:
        parts = [f"falls at eps {', '.join(fell)}"] if fell else []
        parts += [f"rises at eps {', '.join(rose)}"] if rose else []
        rest = len(curve) - len(fell) - len(rose)
        parts += [f"is undecided at {rest} of {len(curve)} budgets"] if rest else []
        sentences.append(f"{norm}: over the curve robust accuracy {' and '.join(parts)}.")
    return sentences


def headline(families: Sequence[Family], models: int, seeds: int) -> str:
    """One sentence: where robust accuracy fell, rose or did both at the judged budgets, with Spearman's rho."""
    verbs = {
        "fell": "fell as compressibility rose, the paper's direction, for ",
        "rose": "rose as compressibility rose, opposite to the paper, for ",
        "peaked": "rose with mild compression and fell with strong, in every seed, for ",
        "open": "shows no clear direction for ",
        "one seed": "is left open, since one seed decides nothing, for ",
    }
    said: dict[str, list[str]] = {verdict: [] for verdict in verbs}
    for family in families:
        norms = dict.fromkeys(c.norm for c in family.correlations if c.norm)
        judged = [c for c in (_judged(family, norm) for norm in norms) if c is not None]
        for verdict, names in said.items():
            here = [c for c in judged if _verdict(c, family.peaks) == verdict]
            if here:
                names.append(f"{family.title} ({'; '.join(_short(c, family.peaks) for c in here)})")
    parts = [verbs[verdict] + " and ".join(names) for verdict, names in said.items() if names]
    return (
        f"Over {models} models ({seeds} {'seed' if seeds == 1 else 'seeds'}), robust accuracy "
        + "; it ".join(parts)
        + "."
    )


def _verdict(correlation: Correlation, peaks: Sequence[Peak]) -> str:
    """Where no direction is found, a peak that every seed shows says what a rank correlation cannot see."""
    if len(correlation.rho_by_seed) < 2:
        return "one seed"
    peaked = any(peak.norm == correlation.norm for peak in peaks)
    return {-1: "fell", 0: "peaked" if peaked else "open", 1: "rose"}[direction(correlation)]


def _clean(first: Level, last: Level) -> str:
    """Said where clean accuracy went down along."""
    before, after = first.mean.get("clean_accuracy"), last.mean.get("clean_accuracy")
    if before is None or after is None or before - after < 0.05:
        return ""
    return f" Clean accuracy fell along, from {before:.2f} to {after:.2f}."


def bound_finding(correlation: Correlation) -> str:
    """Whether the bound ranks models as the attacks do."""
    return (
        f"{_name(correlation.norm, correlation.eps)}: the gap bound ranks the models against the measured loss gap with "
        f"Spearman {_rho(correlation)} (the paper reports rho = 0.947 in its setting)."
    )


def _short(correlation: Correlation, peaks: Sequence[Peak]) -> str:
    peaked = _verdict(correlation, peaks) == "peaked"
    at = next((f", highest at {peak.label}" for peak in peaks if peaked and peak.norm == correlation.norm), "")
    rho = "undefined" if correlation.rho is None else f"{correlation.rho:+.2f}{_by_seed(correlation)}"
    return f"{_name(correlation.norm, correlation.eps)}: Spearman {rho}{at}"


def _judged(family: Family, norm: ThreatNorm | None) -> Correlation | None:
    """The correlation at the judged budget: the one at which the loss gap was measured."""
    gap = next((c for c in family.correlations if c.metric == "gap" and c.norm == norm), None)
    return (
        None
        if gap is None or norm is None or gap.eps is None
        else _find(family.correlations, "robust_accuracy", norm, gap.eps)
    )


def _find(correlations: Sequence[Correlation], metric: str, norm: ThreatNorm, eps: float) -> Correlation:
    return next(c for c in correlations if (c.metric, c.norm, c.eps) == (metric, norm, eps))


def _name(norm: ThreatNorm | None, eps: float | None) -> str:
    return f"{norm} {eps:g}"


def _rho(correlation: Correlation | None) -> str:
    if correlation is None or correlation.rho is None:
        return "undefined"
    return f"{correlation.rho:+.2f} over {correlation.models} models{_by_seed(correlation)}"


def _by_seed(correlation: Correlation) -> str:
    """The spread over seeds, where there is more than one."""
    seeds = [rho for rho in correlation.rho_by_seed if rho is not None]
    if len(seeds) < 2:
        return ""
    low, high = f"{min(seeds):+.2f}", f"{max(seeds):+.2f}"
    return f", {low} in each seed" if low == high else f", {low} to {high} by seed"


def _mean(level: Level, key: str) -> str:
    mean, std = level.mean.get(key), level.std.get(key)
    return "none" if mean is None else f"{mean:.2f}" + (f" ± {std:.2f}" if std is not None else "")
