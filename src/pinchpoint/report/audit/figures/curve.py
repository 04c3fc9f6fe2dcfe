"""Robust accuracy against the budget, with its interval and what is certified."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pinchpoint.records import ThreatNorm, ThreatReport
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.audit import text
from pinchpoint.report.audit.figures.common import model_color
from pinchpoint.report.charts.palette import INK
from pinchpoint.report.charts.plotly import Key, Panel, Row, Trace, number, plain, stack, upright
from pinchpoint.utils.numbers import budget

_MOST_255THS = 128
_STEPS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4, 8, 16, 32)

Models = Sequence[tuple[str, Sequence[ThreatReport]]]
"""Names of models with what became of their samples."""


def _share_line(threat: ThreatReport, name: str, color: str, group: str, *, certified: bool) -> Trace:
    """Accuracies at all budgets: what the attacks left, or, dashed, what is certified."""
    pairs = [
        (point.eps, point.certified if certified else point.robust.value, point)
        for point in sorted(threat.curve, key=lambda point: point.eps)
    ]
    known = [(eps, value, point) for eps, value, point in pairs if value is not None]
    trace: Trace = {
        "type": "scatter",
        "mode": "lines" if certified else "lines+markers",
        "x": [number(eps) for eps, _, _ in known],
        "y": [number(value) for _, value, _ in known],
        "customdata": [[text.interval(point.robust), text.threat(threat.norm, eps)] for eps, _, point in known],
        "name": plain(name),
        "line": {"color": color, "width": 2.5, "dash": "dash" if certified else "solid"},
        "marker": {"color": color, "size": 6},
        "hovertemplate": "%{fullData.name}<br>%{customdata[1]}<br>certified %{y:.1%}<extra></extra>"
        if certified
        else "%{fullData.name}<br>%{customdata[1]}<br>robust accuracy %{y:.1%}<br>95 % interval %{customdata[0]}"
        "<extra></extra>",
        "meta": {"groups": [group, "certified" if certified else "attacked"]},
    }
    return trace


def _band(threat: ThreatReport, color: str, group: str) -> Trace:
    """The 95 % intervals as an area."""
    curve = sorted(threat.curve, key=lambda point: point.eps)
    return {
        "type": "scatter",
        "mode": "lines",
        "x": [number(point.eps) for point in [*curve, *reversed(curve)]],
        "y": [number(point.robust.high) for point in curve] + [number(point.robust.low) for point in reversed(curve)],
        "fill": "toself",
        "fillcolor": color,
        "opacity": 0.18,
        "line": {"width": 0, "color": color},
        "hoverinfo": "skip",
        "meta": {"groups": [group, "attacked"]},
    }


def _budgets(norm: ThreatNorm, models: Models) -> dict[str, Any]:
    """Ticks at 255ths, in which budgets are usually given, or at round parts of one where they are smaller."""
    most = max(
        (point.eps for _, known in models for item in known if item.norm == norm for point in item.curve), default=0.0
    )
    if norm != "linf" or not _STEPS[0] <= 255 * most <= _MOST_255THS:
        return {}
    step = next(step for step in _STEPS if 255 * most / step <= 4.5)
    ticks = [step * count for count in range(int(255 * most / step + 1e-6) + 1)]
    return {
        "tickvals": [number(tick / 255, 9) for tick in ticks],
        "ticktext": ["0", *(f"{tick:g}/255" for tick in ticks[1:])],
    }


def curve(norm: ThreatNorm, models: Models) -> Panel:
    """Robust accuracy against eps with its interval, the certified curve under it; a colour a model."""
    traces: list[Trace] = []
    keys: list[Key] = []
    told: list[str] = []
    main: float | None = None
    certified = False
    for place, (name, threats) in enumerate(models):
        item = next((threat for threat in threats if threat.norm == norm), None)
        if item is None:
            continue
        color, group = model_color(place), f"model:{place}"
        main = item.eps if main is None else main
        traces += [_band(item, color, group), _share_line(item, name, color, group, certified=False)]
        if any(point.certified is not None for point in item.curve):
            certified = True
            traces.append(_share_line(item, name, color, group, certified=True))
        if len(models) > 1:
            keys.append(Key(name, group, color, line="solid"))
        points = sorted(item.curve, key=lambda point: point.eps)
        told.append(
            f"{name}: "
            + ", ".join(f"{budget(norm, point.eps)}: {text.percent(point.robust.value)}" for point in points)
        )
    keys.append(Key("left by attacks, 95 % interval", "attacked", INK, line="solid", symbol="circle"))
    if certified:
        keys.append(Key("certified", "certified", INK, line="dash"))
    row = Row(
        title=f"Accuracy against the {NORM_NAMES[norm]} budget",
        x=f"budget ε in {NORM_NAMES[norm]} (pixels from 0 to 1)",
        y="accuracy",
        height=280,
        x_axis={"rangemode": "tozero", "nticks": 6, **_budgets(norm, models)},
        y_axis={"range": [0, 1.04], "nticks": 6, "tickformat": ".0%"},
    )
    return Panel(
        title=f"{NORM_NAMES[norm]} attacks",
        label=f"Robust accuracy against the {NORM_NAMES[norm]} budget. By budget, {'; '.join(told)}.",
        figure=stack([row], traces, [upright(0, main)] if main is not None else []),
        keys=keys,
    )
