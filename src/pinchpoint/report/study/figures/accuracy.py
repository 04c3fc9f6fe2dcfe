"""Accuracies against compressibility, one panel a family."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pinchpoint.records import Family
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.charts.palette import INK
from pinchpoint.report.charts.plotly import Key, Panel, Row, Trace, axis_names, number, plain, shown, stack
from pinchpoint.report.study.data import Material


@dataclass(frozen=True)
class _Measure:
    """One row: which recorded number, what it is called, its axis title."""

    key: str
    title: str
    y: str


def _points(material: Material, family: Family, measure: _Measure, row: int) -> list[Trace]:
    """The models, one trace a seed."""
    traces: list[Trace] = []
    for seed in material.seeds:
        placed = [item for item in material.placed[family.name] if item.member.seed == seed]
        if not placed:
            continue
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [number(item.value("compressibility")) for item in placed],
                "y": [number(item.value(measure.key)) for item in placed],
                "text": [plain(f"{item.member.label}, seed {seed}") for item in placed],
                "marker": {
                    "color": material.family_color(family),
                    "symbol": material.symbol(seed),
                    "size": 8,
                    "opacity": 0.5,
                },
                "hovertemplate": f"%{{text}}<br>compressibility %{{x:.3f}}<br>{measure.title}: %{{y:.3f}}<extra></extra>",
                "meta": {"groups": [f"seed:{seed}"]},
                **axis_names(row),
            }
        )
    return traces


def _means(material: Material, family: Family, measure: _Measure, row: int) -> Trace:
    """The recorded means over seeds, level by level, with the recorded standard deviations as bars."""
    levels = sorted(family.levels, key=lambda level: level.level)
    ends = {levels[0].level, levels[-1].level} if levels else set()
    spread = [number(level.std.get(measure.key)) for level in levels]
    trace: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines+markers+text" if row == 0 else "lines+markers",
        "x": [number(level.mean.get("compressibility")) for level in levels],
        "y": [number(level.mean.get(measure.key)) for level in levels],
        "text": ["<br>" + plain(level.label) if level.level in ends else "" for level in levels],
        "textposition": "bottom center",
        "textfont": {"color": INK, "size": 11},
        "cliponaxis": False,
        "customdata": [[plain(level.label), level.seeds] for level in levels],
        "line": {"color": material.family_color(family), "width": 2.5},
        "marker": {"color": material.family_color(family), "size": 5, "symbol": "circle"},
        "hovertemplate": (
            "%{customdata[0]}: mean of %{customdata[1]} seeds<br>compressibility %{x:.3f}<br>"
            f"{measure.title}: %{{y:.3f}}<extra></extra>"
        ),
        "meta": {"groups": ["mean"]},
        **axis_names(row),
    }
    if any(value is not None for value in spread):
        trace["error_y"] = {
            "type": "data",
            "array": spread,
            "color": material.family_color(family),
            "thickness": 1.5,
            "width": 5,
        }
    return trace


def _panel(material: Material, family: Family, measures: Sequence[_Measure], row_height: int) -> Panel:
    rows, traces = [], []
    for index, measure in enumerate(measures):
        rows.append(
            Row(
                title=measure.title,
                x=f"{family.view} compressibility (1 − residual, 0 to 1)",
                y=measure.y,
                height=row_height,
                x_axis={"nticks": 7},
                y_axis={"range": [0, 1.06], "nticks": 6},
            )
        )
        traces += [*_points(material, family, measure, index), _means(material, family, measure, index)]
    color = material.family_color(family)
    keys = [
        Key(f"seed {seed}", f"seed:{seed}", color, symbol=material.symbol(seed))
        for seed in material.seeds
        if any(item.member.seed == seed for item in material.placed[family.name])
    ]
    keys.append(Key("mean ± std", "mean", color, line="solid"))
    levels = sorted(family.levels, key=lambda level: level.level)
    told = []
    for measure in measures:
        steps = "; ".join(f"{level.label} {shown(level.mean.get(measure.key))}" for level in levels)
        told.append(f"{measure.title}, mean by level: {steps}.")
    return Panel(
        title=family.title,
        label=f"{family.title}: accuracies against {family.view} compressibility. " + " ".join(told),
        figure=stack(rows, traces),
        color=color,
        keys=keys,
    )


def accuracy(material: Material, family: Family) -> Panel:
    """Clean accuracy, and robust accuracy at the main budget of each norm, against the family's compressibility."""
    measures = [_Measure("clean_accuracy", "Clean accuracy (SA)", "accuracy (0 to 1)")]
    measures += [
        _Measure(f"robust_accuracy_{norm}", f"Robust accuracy (RA), {material.threat(norm)}", "accuracy (0 to 1)")
        for norm in material.norms
    ]
    return _panel(material, family, measures, 165)


def ratio(material: Material, family: Family) -> Panel:
    """Robust over clean accuracy at the main budget of each norm: the share of what is right that stays right."""
    measures = [
        _Measure(f"robust_over_clean_{norm}", f"RA / SA, {material.threat(norm)}", f"RA / SA, {NORM_NAMES[norm]}")
        for norm in material.norms
    ]
    return _panel(material, family, measures, 165)
