"""What is certified beside what was measured: the loss gap, and the Lipschitz constant from both sides."""

from __future__ import annotations

from collections.abc import Sequence

from pinchpoint.records import Family, ThreatNorm
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.charts.palette import FAINT, MUTED
from pinchpoint.report.charts.plotly import (
    Key,
    Panel,
    Row,
    Trace,
    axis_names,
    dodge,
    plain,
    positive,
    short,
    shown,
    stack,
)
from pinchpoint.report.charts.ticks import log_axis
from pinchpoint.report.study.data import Material, Placed

_ROOM = 1.6
"""Factor by which the diagonal reaches beyond the measured gaps, and so beyond the axis."""


def _diagonal(low: float, high: float) -> list[Trace]:
    """The line y = x, and the forbidden side of it filled."""
    line = {"type": "scatter", "mode": "lines", "x": [low, high], "hoverinfo": "skip", "meta": {"groups": []}}
    return [
        {**line, "y": [low, low], "line": {"width": 0, "color": FAINT}},
        {
            **line,
            "y": [low, high],
            "fill": "tonexty",
            "fillcolor": FAINT,
            "line": {"color": MUTED, "width": 1.5, "dash": "dash"},
            "meta": {"groups": ["diagonal"]},
        },
    ]


def bound_against_gap(material: Material, norm: ThreatNorm) -> Panel:
    """The bound of Corollary 3.3 against the measured loss gap, one point a model, both axes logarithmic."""
    traces: list[Trace] = []
    keys: list[Key] = []
    gaps: list[float] = []
    bounds: list[float] = []
    left_out = 0
    for family in material.summary.families:
        pairs: list[tuple[Placed, float, float]] = []
        for item in material.placed[family.name]:
            gap, bound = positive(item.value(f"gap_{norm}")), positive(item.value(f"gap_bound_{norm}"))
            if gap is None or bound is None:
                left_out += 1
            else:
                pairs.append((item, gap, bound))
        if not pairs:
            continue
        gaps += [gap for _, gap, _ in pairs]
        bounds += [bound for _, _, bound in pairs]
        color = material.family_color(family)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [gap for _, gap, _ in pairs],
                "y": [bound for _, _, bound in pairs],
                "text": [plain(f"{item.member.label}, seed {item.member.seed}") for item, _, _ in pairs],
                "name": plain(family.title),
                "marker": {
                    "color": color,
                    "size": 9,
                    "opacity": 0.75,
                    "symbol": [material.symbol(item.member.seed) for item, _, _ in pairs],
                },
                "hovertemplate": (
                    "%{fullData.name}<br>%{text}<br>measured %{x:.4g} nats<br>bound %{y:.4g} nats<extra></extra>"
                ),
                "meta": {"groups": [f"family:{family.name}"]},
            }
        )
        keys.append(Key(family.title, f"family:{family.name}", color, symbol="circle"))
    x_axis, y_axis = log_axis(gaps), log_axis([*gaps, *bounds])
    if gaps:
        traces = _diagonal(min(gaps) / _ROOM, max(gaps) * _ROOM) + traces
        keys.append(Key("bound = gap", "diagonal", MUTED, line="dash"))
    row = Row(
        title=material.threat(norm),
        x="measured loss gap (nats)",
        y="bound on the gap (nats)",
        height=300,
        x_axis=x_axis,
        y_axis=y_axis,
    )
    missing = f" {left_out} models have no positive gap or no bound and are not drawn." if left_out else ""
    return Panel(
        title=f"{NORM_NAMES[norm]} attack" + (f" ({left_out} models not drawn: no positive gap)" if left_out else ""),
        label=f"Bound on the loss gap against the measured loss gap, {material.threat(norm)}, {len(gaps)} models. Smallest "
        f"gap {shown(min(gaps, default=None))}, largest {shown(max(gaps, default=None))}; smallest bound "
        f"{shown(min(bounds, default=None))}, largest {shown(max(bounds, default=None))}.{missing}",
        figure=stack([row], traces),
        keys=keys,
    )


def _marks(
    material: Material, family: Family, norm: ThreatNorm, row: int, places: Sequence[tuple[Placed, float]]
) -> list[Trace]:
    """A bracket a model: lower bound, upper bound, and the structure-times-scale bound above it."""
    color = material.family_color(family)
    found = [(item, x, record) for item, x in places if (record := item.bounds(norm)) is not None]
    text = [plain(f"{item.member.label}, seed {item.member.seed}") for item, _, _ in found]
    spine_x: list[float | None] = []
    spine_y: list[float | None] = []
    for _, x, record in found:
        spine_x += [x, x, None]
        spine_y += [positive(record.lipschitz_lower), positive(record.lipschitz), None]
    base = {"type": "scatter", "x": [x for _, x, _ in found], "text": text, "mode": "markers", **axis_names(row)}
    told = "%{{text}}<br>{}: %{{y:.4g}}<extra></extra>"
    return [
        {
            **base,
            "mode": "lines",
            "x": spine_x,
            "y": spine_y,
            "text": None,
            "line": {"color": color, "width": 2},
            "hoverinfo": "skip",
            "meta": {"groups": ["lower", "upper"]},
        },
        {
            **base,
            "y": [positive(record.lipschitz_lower) for _, _, record in found],
            "marker": {"color": color, "size": 7, "symbol": "circle-open", "line": {"width": 2}},
            "hovertemplate": told.format("lower bound"),
            "meta": {"groups": ["lower"]},
        },
        {
            **base,
            "y": [positive(record.lipschitz) for _, _, record in found],
            "marker": {"color": color, "size": 8, "symbol": "circle"},
            "hovertemplate": told.format("upper bound"),
            "meta": {"groups": ["upper"]},
        },
        {
            **base,
            "y": [
                None if record.lipschitz_structure is None else positive(record.lipschitz_structure)
                for _, _, record in found
            ],
            "marker": {"color": color, "size": 8, "symbol": "x-thin-open", "line": {"width": 2}},
            "hovertemplate": told.format("structure × scale bound"),
            "meta": {"groups": ["structure"]},
        },
    ]


def _values(material: Material, family: Family, norm: ThreatNorm) -> list[float]:
    """All that one row of brackets shows."""
    found = [record for item in material.placed[family.name] if (record := item.bounds(norm)) is not None]
    values = [value for item in found for value in (item.lipschitz_lower, item.lipschitz, item.lipschitz_structure)]
    return [value for value in values if value is not None]


def brackets(material: Material, family: Family) -> Panel:
    """The encoder's Lipschitz constant from below and above, model by model, one row a norm."""
    levels = sorted(family.levels, key=lambda level: level.level)
    order = {level.level: index for index, level in enumerate(levels)}
    seeds = list(material.seeds)
    places = [
        (item, order.get(item.member.level, 0) + dodge(seeds.index(item.member.seed), len(seeds)))
        for item in material.placed[family.name]
    ]
    rows: list[Row] = []
    traces: list[Trace] = []
    for norm in material.norms:
        values = _values(material, family, norm)
        if not values:
            continue
        traces += _marks(material, family, norm, len(rows), places)
        rows.append(
            Row(
                title=f"Encoder’s Lipschitz constant, {NORM_NAMES[norm]}",
                x="level, models side by side",
                y="L (no unit)",
                x_axis={
                    "tickvals": list(range(len(levels))),
                    "ticktext": [short(level.label) for level in levels],
                    "range": [-0.6, len(levels) - 0.4],
                    "zeroline": False,
                },
                y_axis=log_axis(values),
            )
        )
    color = material.family_color(family)
    keys = [
        Key("lower", "lower", color, symbol="circle-open"),
        Key("upper", "upper", color, symbol="circle"),
        Key("structure × scale", "structure", color, symbol="x-thin"),
    ]
    return Panel(
        title=family.title,
        label=f"{family.title}: lower and upper bounds on the encoder's Lipschitz constant for {len(places)} models, "
        "ordered by level. The upper bounds are in the table of models.",
        figure=stack(rows, traces),
        color=color,
        keys=keys,
    )
