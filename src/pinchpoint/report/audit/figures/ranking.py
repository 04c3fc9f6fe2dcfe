"""Layers ranked by their share of the risk, and what the share comes from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pinchpoint.records import PinchPoint
from pinchpoint.report.audit import text
from pinchpoint.report.audit.figures.common import ADVERSARIAL, RANDOM, TICK, roomy, written_length
from pinchpoint.report.charts.palette import MUTED
from pinchpoint.report.charts.plotly import Key, Panel, Row, Trace, number, plain, short, stack

MOST_BARS = 15
"""Layers that the ranking draws; the table has them all."""

_LEFT = 34
"""Pixels of names that fit beside an axis as it is."""


def _ranked(names: Sequence[str]) -> dict[str, Any]:
    """A vertical axis of names, the first on top."""
    return {
        "tickvals": list(range(len(names))),
        "ticktext": [short(name, TICK) for name in names],
        "range": [len(names) - 0.5, -0.5],
        "zeroline": False,
        "showgrid": False,
        "title": None,
    }


def shares(points: Sequence[PinchPoint]) -> Panel:
    """Layers ranked by their share of the risk."""
    drawn = points[:MOST_BARS]
    names = [point.layer for point in drawn]
    trace: Trace = {
        "type": "bar",
        "orientation": "h",
        "x": [number(point.share) for point in drawn],
        "y": list(range(len(drawn))),
        "text": [text.percent(point.share) for point in drawn],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": [[plain(point.layer), plain(point.kind)] for point in drawn],
        "marker": {"color": ADVERSARIAL},
        "hovertemplate": "%{customdata[0]}, %{customdata[1]}<br>%{x:.1%} of the risk<extra></extra>",
        "meta": {"groups": ["share"]},
    }
    most = max((point.share for point in drawn), default=1.0) or 1.0
    row = Row(
        title="Share of the risk",
        x="share of the excess gain",
        y="",
        height=max(24 * len(drawn), 60),
        x_axis={"range": [0, 1.18 * most], "tickformat": ".0%", "nticks": 5},
        y_axis=_ranked(names),
    )
    rest = f" The other {len(points) - len(drawn)} layers are in the table." if len(points) > len(drawn) else ""
    return Panel(
        title="Which layers pinch",
        label="Layers ranked by their share of the risk: "
        + ", ".join(f"{point.layer} {text.percent(point.share)}" for point in drawn)
        + f".{rest}",
        figure=roomy(stack([row], [trace]), left=max(0.0, written_length(names) - _LEFT)),
    )


def gains(points: Sequence[PinchPoint]) -> Panel:
    """The gain of adversarial perturbations beside that of random ones, the same layers in the same order."""
    drawn = points[:MOST_BARS]
    names = [point.layer for point in drawn]
    strokes: Trace = {
        "type": "scatter",
        "mode": "lines",
        "x": [value for point in drawn for value in (number(point.random_gain), number(point.gain), None)],
        "y": [value for place in range(len(drawn)) for value in (place, place, None)],
        "line": {"color": MUTED, "width": 2},
        "hoverinfo": "skip",
        "meta": {"groups": ["adversarial", "random"]},
    }
    marks = [
        {
            "type": "scatter",
            "mode": "markers",
            "x": [number(value) for value in values],
            "y": list(range(len(drawn))),
            "text": [plain(name) for name in names],
            "marker": {"color": color, "symbol": symbol, "size": 9, "line": {"width": 2 * symbol.endswith("open")}},
            "hovertemplate": f"%{{text}}<br>{group} gain %{{x:.3f}}<extra></extra>",
            "meta": {"groups": [group]},
        }
        for group, color, symbol, values in (
            ("random", RANDOM, "circle-open", [point.random_gain for point in drawn]),
            ("adversarial", ADVERSARIAL, "circle", [point.gain for point in drawn]),
        )
    ]
    row = Row(
        title="Gain: attack against noise",
        x="gain (logarithm)",
        y="",
        height=max(24 * len(drawn), 60),
        x_axis={"nticks": 6, "zeroline": True},
        y_axis=_ranked(names),
    )
    return Panel(
        title="Where the attack gains on noise",
        label="Gain of adversarial and of random perturbations by layer: "
        + ", ".join(f"{point.layer} {point.gain:.2f} against {point.random_gain:.2f}" for point in drawn)
        + ".",
        figure=roomy(stack([row], [strokes, *marks]), left=max(0.0, written_length(names) - _LEFT)),
        keys=[
            Key("adversarial", "adversarial", ADVERSARIAL, symbol="circle"),
            Key("random", "random", RANDOM, symbol="circle-open"),
        ],
    )
