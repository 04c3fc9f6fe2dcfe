"""The mechanism layer by layer: where perturbations point, and how they grow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pinchpoint.records import LayerMechanism, Mechanism, ThreatNorm
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.audit import text
from pinchpoint.report.audit.figures.common import ADVERSARIAL, RANDOM, TICK, model_color, roomy, written_length
from pinchpoint.report.charts.palette import MUTED
from pinchpoint.report.charts.plotly import Figure, Key, Panel, Row, Trace, axis_names, number, plain, short, stack

_MOST_TICKS, _UPRIGHT = 30, 4
"""Layers that are named, and layers up to which their names need not be tilted."""


def _across(names: Sequence[str]) -> dict[str, Any]:
    """A horizontal axis of layers, thinned where there are too many to be read."""
    step = -(-len(names) // _MOST_TICKS)
    kept = range(0, len(names), step)
    return {
        "tickvals": list(kept),
        "ticktext": [short(names[place], TICK) for place in kept],
        "tickangle": -60 if len(names) > _UPRIGHT else 0,
        "range": [-0.5, len(names) - 0.5],
        "zeroline": False,
    }


def _by_layer(title: str, y: str, names: Sequence[str], traces: Sequence[Trace], y_axis: dict[str, Any]) -> Figure:
    row = Row(title=title, x="layer, from input to output", y=y, height=230, x_axis=_across(names), y_axis=y_axis)
    tall = 0.87 * written_length(names) if len(names) > _UPRIGHT else 0.0
    return roomy(stack([row], traces), bottom=tall)


def _layer_trace(names: Sequence[str], layers: Sequence[LayerMechanism]) -> Trace:
    return {
        "type": "scatter",
        "x": [names.index(layer.name) for layer in layers],
        "text": [plain(layer.name) for layer in layers],
        **axis_names(0),
    }


def alignment(found: Mechanism) -> Panel:
    """Share of the perturbation in the layers' dominant directions, beside what a random direction has."""
    names = [layer.name for layer in found.layers]
    base = _layer_trace(names, found.layers)
    traces = [
        {
            **base,
            "mode": "lines",
            "x": [value for place in base["x"] for value in (place, place, None)],
            "y": [value for layer in found.layers for value in (number(layer.baseline), number(layer.alignment), None)],
            "text": None,
            "line": {"color": MUTED, "width": 1},
            "hoverinfo": "skip",
            "meta": {"groups": ["adversarial", "random"]},
        },
        {
            **base,
            "mode": "markers",
            "y": [number(layer.baseline) for layer in found.layers],
            "marker": {"color": RANDOM, "symbol": "line-ew-open", "size": 11, "line": {"width": 2}},
            "hovertemplate": "%{text}<br>random direction %{y:.3f}<extra></extra>",
            "meta": {"groups": ["random"]},
        },
        {
            **base,
            "mode": "markers",
            "y": [number(layer.alignment) for layer in found.layers],
            "customdata": [layer.k for layer in found.layers],
            "marker": {"color": ADVERSARIAL, "size": 8},
            "hovertemplate": "%{text}, k = %{customdata}<br>alignment %{y:.3f}<extra></extra>",
            "meta": {"groups": ["adversarial"]},
        },
    ]
    where = text.threat(found.norm, found.eps)
    return Panel(
        title=where,
        label=f"Alignment of the perturbation with each layer’s dominant directions, and of a random direction, {where}: "
        + ", ".join(f"{layer.name} {layer.alignment:.2f} against {layer.baseline:.2f}" for layer in found.layers)
        + ".",
        figure=_by_layer("Alignment", "share (0 to 1)", names, traces, {"range": [0, 1.06]}),
        keys=[
            Key("perturbation", "adversarial", ADVERSARIAL, symbol="circle"),
            Key("random direction", "random", RANDOM, line="solid"),
        ],
    )


def amplification(norm: ThreatNorm, models: Sequence[tuple[str, Sequence[Mechanism]]]) -> Panel:
    """Relative change of the representation after each layer; a colour a model."""
    drawn = [(place, name, item) for place, (name, known) in enumerate(models) for item in known if item.norm == norm]
    names = list(dict.fromkeys(layer.name for _, _, item in drawn for layer in item.layers))
    traces = [
        {
            **_layer_trace(names, item.layers),
            "mode": "lines+markers",
            "y": [number(layer.amplification) for layer in item.layers],
            "name": plain(name),
            "line": {"color": model_color(place), "width": 2},
            "marker": {"color": model_color(place), "size": 6},
            "hovertemplate": "%{fullData.name}<br>%{text}<br>relative change %{y:.3f}<extra></extra>",
            "meta": {"groups": [f"model:{place}"]},
        }
        for place, name, item in drawn
    ]
    where = text.threat(norm, drawn[0][2].eps) if drawn else NORM_NAMES[norm]
    told = "; ".join(
        f"{name}: " + ", ".join(f"{layer.name} {layer.amplification:.2f}" for layer in item.layers)
        for _, name, item in drawn
    )
    return Panel(
        title=where,
        label=f"Relative change of the representation after each layer, {where}. {told}.",
        figure=_by_layer("Amplification", "relative change, ℓ₂", names, traces, {"rangemode": "tozero", "nticks": 6}),
        keys=[Key(name, f"model:{place}", model_color(place), line="solid") for place, name, _ in drawn]
        if len(drawn) > 1
        else [],
    )
