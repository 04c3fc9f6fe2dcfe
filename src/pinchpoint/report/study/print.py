"""Still figures of a study, one a family: accuracy against compressibility, and against the budget level by level."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pinchpoint.records import Family, Summary
from pinchpoint.report.charts import palette, svg
from pinchpoint.report.charts.svg import Axis, Series
from pinchpoint.report.formatting import finite
from pinchpoint.utils.numbers import budget

SIGNS = {"linf": "l∞", "l2": "l₂", "l1": "l₁"}
"""How a norm is written in a figure."""

_WIDE, _TALL, _GAP = 300.0, 200.0, 74.0

Row = Mapping[str, Any]


def plates(summary: Summary) -> dict[str, str]:
    """A figure for every family, by its name, from the rows alone; strokes span the seeds."""
    return {
        family.name: plate(family, [row for row in summary.models if row["family"] == family.name])
        for family in summary.families
    }


def plate(family: Family, rows: Sequence[Row]) -> str:
    """One family: accuracies, and robust over clean accuracy, against compressibility; then each norm's whole curve."""
    norms = [norm for norm in SIGNS if any(f"curve_{norm}" in row for row in rows)]
    levels = sorted({row["level"] for row in rows})
    names = [next(row["label"] for row in rows if row["level"] == level) for level in levels]
    tones = {f"level{place}": _colours(place, len(levels)) for place in range(len(levels))}
    named = {norm: f"{SIGNS[norm]} {budget(norm, _budget(rows, norm))}" for norm in norms}
    accuracies = [Series("clean", "a", _along(rows, levels, "clean_accuracy"))]
    accuracies += _judged(rows, levels, named, "robust_accuracy")
    ratios = _judged(rows, levels, named, "robust_over_clean")
    attacks, below = svg.legend(54, [(one.tone, one.name) for one in accuracies], "attack")
    strengths, below = svg.legend(below, list(zip(tones, names, strict=True)), "level")
    parts = [svg.text(20, 30, family.title, "title"), *attacks, *strengths]
    panels = [
        _against_compressibility(f"{what} (%) against {family.view} compressibility", known)
        for what, series in (("accuracy", accuracies), ("robust / clean", ratios))
        if (known := [one for one in series if one.points])
    ]
    panels += [_against_budget(rows, levels, norm, list(tones)) for norm in norms]
    top = below + 24
    for place, (title, across, series) in enumerate(panels):
        left = 60 + (place % 2) * (_WIDE + 70)
        y = top + place // 2 * (_TALL + _GAP)
        parts += svg.panel((left, y, _WIDE, _TALL), title, across, _PER_CENT, series)
    height = top + (len(panels) + 1) // 2 * (_TALL + _GAP)
    dashed = any(one.dashed for _, _, series in panels for one in series)
    said = "Means over seeds; upright strokes from the smallest to the largest." + (" Dashed: certified." * dashed)
    parts.append(svg.text(20, height - 14, said, "soft"))
    told = "; ".join(f"{name} {_told(rows, level)}" for name, level in zip(names, levels, strict=True))
    label = f"Accuracy of {family.title} against {family.view} compressibility and against the budget. Clean: {told}."
    return svg.picture(family.title, label, height, parts, tones)


_PER_CENT = Axis(0.0, 1.0, [(share / 100, str(share)) for share in range(0, 101, 20)])
_Panel = tuple[str, Axis, Sequence[Series]]


def _judged(rows: Sequence[Row], levels: Sequence[int], named: Mapping[str, str], metric: str) -> list[Series]:
    """A line a norm, at its judged budget."""
    tones = zip(named.items(), svg.SERIES[1:], strict=False)
    return [Series(name, tone, _along(rows, levels, f"{metric}_{norm}")) for (norm, name), tone in tones]


def _against_compressibility(title: str, series: Sequence[Series]) -> _Panel:
    places = [x for one in series for x, *_ in one.points]
    return title, svg.linear(min(places), max(places)), series


def _against_budget(rows: Sequence[Row], levels: Sequence[int], norm: str, tones: Sequence[str]) -> _Panel:
    series = []
    for level, tone in zip(levels, tones, strict=True):
        here = [row for row in rows if row["level"] == level]
        certified = _over_budgets(here, norm, "certified_accuracy")
        if any(eps > 0 and mean > 0 for eps, mean, *_ in certified):
            series.append(Series("", tone, certified, dashed=True))
        series.append(Series("", tone, _over_budgets(here, norm, "robust_accuracy")))
    budgets = sorted({x for one in series for x, *_ in one.points})
    most = budgets[-1] if budgets and budgets[-1] > 0 else 1.0
    across = Axis(0.0, most, [(eps, budget(norm, eps)) for eps in (0.0, *budgets)])
    return f"robust accuracy (%) against the {SIGNS[norm]} budget", across, series


def _over_budgets(rows: Sequence[Row], norm: str, key: str) -> list[tuple[float, float, float, float]]:
    """Mean, smallest and largest over seeds at every budget of the curve, from the accuracy without attack on."""
    found: dict[float, list[float]] = {}
    for row in rows:
        curve = [(point["eps"], point.get(key)) for point in row.get(f"curve_{norm}") or []]
        points = [(0.0, row.get("clean_accuracy")), *(pair for pair in curve if pair[0] > 0)]
        for eps, value in points:
            if (known := finite(value)) is not None:
                found.setdefault(eps, []).append(known)
    return [(eps, fmean(values), min(values), max(values)) for eps, values in sorted(found.items())]


def _along(rows: Sequence[Row], levels: Sequence[int], key: str) -> list[tuple[float, float, float, float]]:
    """The same at every level, at its mean compressibility."""
    found = []
    for level in levels:
        here = [row for row in rows if row["level"] == level]
        pairs = [(finite(row.get("compressibility")), finite(row.get(key))) for row in here]
        known = [(x, value) for x, value in pairs if x is not None and value is not None]
        if known:
            values = [value for _, value in known]
            found.append((fmean(x for x, _ in known), fmean(values), min(values), max(values)))
    return found


def _budget(rows: Sequence[Row], norm: str) -> float | None:
    return next((row[f"eps_{norm}"] for row in rows if row.get(f"eps_{norm}") is not None), None)


def _told(rows: Sequence[Row], level: int) -> str:
    known = [
        value for row in rows if row["level"] == level and (value := finite(row.get("clean_accuracy"))) is not None
    ]
    return f"{fmean(known):.2f}" if known else "not known"


def _colours(place: int, levels: int) -> tuple[str, str]:
    light = palette.level_color(place, levels)
    return light, palette.dark_of(levels)[light]
