"""What happens as the budget grows: accuracies of every model, and the correlation with compressibility."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from pinchpoint.records import Family, ThreatNorm
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.charts.palette import INK, MUTED
from pinchpoint.report.charts.plotly import Key, Panel, Row, Trace, axis_names, number, plain, shown, stack, upright
from pinchpoint.report.formatting import finite
from pinchpoint.report.study.data import Material, Placed

_FAINT = 0.45
"""How strong a single model's line is beside the mean of its level."""


def level_keys(material: Material, family: Family) -> list[Key]:
    """A legend of the family's levels, from none to strong."""
    levels = sorted(family.levels, key=lambda level: level.level)
    return [
        Key(level.label, f"level:{level.level}", material.level_color(family, level.level), line="solid")
        for level in levels
    ]


_Points = dict[float, float]
"""Accuracy at every budget."""

_KINDS = (
    ("certified_accuracy", "certified", "certified", "dash"),
    ("robust_accuracy", "attacked", "robust accuracy", "solid"),
)
"""What is drawn: the recorded number, the group and the words for it, and the dash."""


def _curve(item: Placed, norm: ThreatNorm, key: str) -> _Points:
    """One model's accuracies by budget, from the clean accuracy on where the curve begins later."""
    record = item.robustness(norm)
    points = sorted(record.curve, key=lambda point: point.eps) if record else []
    found = {point.eps: known for point in points if (known := finite(getattr(point, key))) is not None}
    clean = item.value("clean_accuracy")
    return found if not found or min(found) <= 0 or clean is None else {0.0: clean, **found}


def _means(curves: Sequence[_Points]) -> _Points:
    """The mean at every budget that all curves have."""
    shared = sorted(set.intersection(*(set(curve) for curve in curves)))
    return {eps: fmean(curve[eps] for curve in curves) for eps in shared}


def _line(points: _Points, name: str, told: str, line: Trace, groups: list[str], row: int) -> Trace:
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [number(eps) for eps in points],
        "y": [number(value) for value in points.values()],
        "name": plain(name),
        "line": line,
        "hovertemplate": f"%{{fullData.name}}<br>ε = %{{x:.4g}}<br>{told} %{{y:.3f}}<extra></extra>",
        "meta": {"groups": groups},
        **axis_names(row),
    }


def _lines(material: Material, family: Family, norm: ThreatNorm, row: int) -> list[Trace]:
    """What the attacks left and, dashed, what is certified: a thin line a model, a thick one for the mean of a level."""
    thin: list[Trace] = []
    thick: list[Trace] = []
    for level in sorted(family.levels, key=lambda level: level.level):
        color = material.level_color(family, level.level)
        placed = [item for item in material.placed[family.name] if item.member.level == level.level]
        for key, group, told, dash in _KINDS:
            curves = [(item, curve) for item in placed if (curve := _curve(item, norm, key))]
            alone = len(curves) == 1
            groups = [f"level:{level.level}", group]
            for item, curve in curves:
                line = {"color": color, "width": 1.5 if alone else 1, "dash": dash}
                trace = _line(curve, f"{level.label}, seed {item.member.seed}", told, line, [*groups, "seeds"], row)
                symbol = {"color": color, "size": 4, "symbol": material.symbol(item.member.seed)}
                dots = {"mode": "lines+markers", "marker": symbol} if group == "attacked" else {}
                thin.append({**trace, **dots, "opacity": 1.0 if alone else _FAINT})
            if len(curves) > 1:
                name = f"{level.label}, mean of {len(curves)} seeds"
                line = {"color": color, "width": 3 if group == "attacked" else 2, "dash": dash}
                thick.append(_line(_means([curve for _, curve in curves]), name, told, line, [*groups, "means"], row))
    return thin + thick


def robustness_curves(material: Material, family: Family) -> Panel:
    """Robust and certified accuracy against eps, models and means over seeds, coloured by level, one row a norm."""
    rows, traces, shapes = [], [], []
    for index, norm in enumerate(material.norms):
        rows.append(
            Row(
                title=f"{NORM_NAMES[norm]} attack",
                x=f"budget ε in {NORM_NAMES[norm]} (input units)",
                y="accuracy (0 to 1)",
                height=205,
                x_axis={"rangemode": "tozero", "nticks": 6},
                y_axis={"range": [0, 1.04], "nticks": 6},
            )
        )
        traces += _lines(material, family, norm, index)
        if norm in material.eps:
            shapes.append(upright(index, material.eps[norm]))
    keys = level_keys(material, family)
    drawn = {group for trace in traces for group in trace["meta"]["groups"]}
    if "means" in drawn:
        keys += [Key("mean", "means", INK, line="thick"), Key("each seed", "seeds", MUTED, line="thin")]
    keys.append(Key("left by attacks", "attacked", INK, line="solid"))
    if "certified" in drawn:
        keys.append(Key("certified", "certified", INK, line="dash"))
    models = len(material.placed[family.name])
    return Panel(
        title=family.title,
        label=f"{family.title}: robust accuracy against the attack budget for {models} models, coloured by level from "
        "none to strong, and the means over seeds of each level; certified accuracy dashed below. The numbers at the main "
        "budget are in the table of models.",
        figure=stack(rows, traces, shapes),
        color=material.family_color(family),
        keys=keys,
    )


def correlation_curve(material: Material, norm: ThreatNorm) -> Panel:
    """Spearman's rho of robust accuracy with compressibility against eps, one line a family."""
    traces: list[Trace] = []
    keys, told = [], []
    for family in material.summary.families:
        by_eps = {
            item.eps: item
            for item in family.correlations
            if item.metric == "robust_accuracy" and item.norm == norm and item.eps is not None
        }
        curve = [by_eps[eps] for eps in sorted(by_eps)]
        if not curve:
            continue
        color = material.family_color(family)
        groups = {"groups": [f"family:{family.name}"]}
        single = [(number(item.eps), number(rho)) for item in curve for rho in item.rho_by_seed if rho is not None]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [eps for eps, _ in single],
                "y": [rho for _, rho in single],
                "marker": {"color": color, "size": 6, "opacity": 0.4, "symbol": "line-ew-open", "line": {"width": 2}},
                "hovertemplate": "one seed<br>ε = %{x:.4g}<br>ρ = %{y:.3f}<extra></extra>",
                "meta": {"groups": [*groups["groups"], "seeds"]},
            }
        )
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "x": [number(item.eps) for item in curve],
                "y": [number(item.rho) for item in curve],
                "customdata": [[item.models, shown(item.p_value)] for item in curve],
                "name": plain(family.title),
                "line": {"color": color, "width": 2.5},
                "marker": {"color": color, "size": 7},
                "hovertemplate": (
                    "%{fullData.name}<br>ε = %{x:.4g}<br>ρ = %{y:.3f}<br>%{customdata[0]} models, "
                    "p = %{customdata[1]}<extra></extra>"
                ),
                "meta": groups,
            }
        )
        keys.append(Key(family.title, f"family:{family.name}", color, line="solid"))
        values = ", ".join(f"{shown(item.rho)} at {shown(item.eps)}" for item in curve)
        told.append(f"{family.title}: {values}.")
    row = Row(
        title=f"Robust accuracy, {NORM_NAMES[norm]}",
        x=f"budget ε in {NORM_NAMES[norm]} (input units)",
        y="Spearman’s ρ (−1 to 1)",
        height=270,
        x_axis={"rangemode": "tozero", "nticks": 6, "zeroline": False},
        y_axis={"range": [-1.08, 1.08], "dtick": 0.5, "zeroline": True},
    )
    shapes = [upright(0, material.eps[norm])] if norm in material.eps else []
    keys.append(Key("seed by seed", "seeds", MUTED, line="dot"))
    return Panel(
        title=f"{NORM_NAMES[norm]} budgets",
        label=f"Spearman's rho of robust accuracy with compressibility by budget, {NORM_NAMES[norm]}. "
        + " ".join(told),
        figure=stack([row], traces, shapes),
        keys=keys,
    )
