"""What happens as the budget grows: accuracies of every model, and the correlation with compressibility."""

from __future__ import annotations

from pinchpoint.records import Family, ThreatNorm
from pinchpoint.report.draw import Key, Panel, Row, Trace, axis_names, number, plain, shown, stack, upright
from pinchpoint.report.material import NORM_NAMES, Material
from pinchpoint.report.palette import INK, MUTED


def level_keys(material: Material, family: Family) -> list[Key]:
    """A legend of the family's levels, from none to strong."""
    levels = sorted(family.levels, key=lambda level: level.level)
    return [
        Key(level.label, f"level:{level.level}", material.level_color(family, level.level), line="solid")
        for level in levels
    ]


def _lines(material: Material, family: Family, norm: ThreatNorm, row: int) -> list[Trace]:
    """Two lines a model: what the attacks left, and under it, dashed, what is certified."""
    traces: list[Trace] = []
    for item in material.placed[family.name]:
        record = item.robustness(norm)
        if record is None or not record.curve:
            continue
        curve = sorted(record.curve, key=lambda point: point.eps)
        base = {
            "type": "scatter",
            "mode": "lines",
            "x": [number(point.eps) for point in curve],
            "name": plain(f"{item.member.label}, seed {item.member.seed}"),
            **axis_names(row),
        }
        color = material.level_color(family, item.member.level)
        level = f"level:{item.member.level}"
        if any(point.certified_accuracy is not None for point in curve):
            traces.append(
                {
                    **base,
                    "y": [number(point.certified_accuracy) for point in curve],
                    "line": {"color": color, "width": 1.3, "dash": "dash"},
                    "hovertemplate": "%{fullData.name}<br>ε = %{x:.4g}<br>certified %{y:.3f}<extra></extra>",
                    "meta": {"groups": [level, "certified"]},
                }
            )
        traces.append(
            {
                **base,
                "mode": "lines+markers",
                "y": [number(point.robust_accuracy) for point in curve],
                "line": {"color": color, "width": 1.5},
                "marker": {"color": color, "size": 4, "symbol": material.symbol(item.member.seed)},
                "hovertemplate": "%{fullData.name}<br>ε = %{x:.4g}<br>robust accuracy %{y:.3f}<extra></extra>",
                "meta": {"groups": [level, "attacked"]},
            }
        )
    return traces


def robustness_curves(material: Material, family: Family) -> Panel:
    """Robust and certified accuracy against eps, one line a model, coloured by level, one row a norm."""
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
    keys.append(Key("left by attacks", "attacked", INK, line="solid"))
    if any("certified" in trace["meta"]["groups"] for trace in traces):
        keys.append(Key("certified", "certified", INK, line="dash"))
    models = len(material.placed[family.name])
    return Panel(
        title=family.title,
        label=f"{family.title}: robust accuracy against the attack budget for {models} models, coloured by level from "
        "none to strong; certified accuracy dashed below. The numbers at the main budget are in the table of models.",
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
