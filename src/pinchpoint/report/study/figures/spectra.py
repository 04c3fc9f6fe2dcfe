"""Sorted row norms and singular values of one layer, one line a model, coloured by level."""

from __future__ import annotations

from typing import Any, Literal

from pinchpoint.records import Family, View
from pinchpoint.report.charts.plotly import Panel, Row, Trace, number, plain, short, stack
from pinchpoint.report.charts.ticks import log_axis
from pinchpoint.report.study.data import Material
from pinchpoint.report.study.figures.curves import level_keys
from pinchpoint.report.study.figures.layers import layer_titles

_ALL_POINTS = 50_000
"""Points on all lines of all layers together: keeps the page under 6 MB whatever the study's size."""
_FEWEST, _DECADES = 12, 5
"""Points a line has at least, and how far down a logarithmic axis goes."""

WHAT: dict[Literal["neuron", "spectral"], tuple[str, str]] = {
    "neuron": ("Row norms (ℓ₁), sorted", "row norm / sum (no unit)"),
    "spectral": ("Singular values, sorted", "singular value / sum (no unit)"),
}


def points_a_line(material: Material) -> int:
    """How many points a line may have so that all spectra together stay small."""
    layers = (len(item.run.audit.profile.layers) for placed in material.placed.values() for item in placed)
    lines = 2 * sum(layers)
    return max(_FEWEST, min(256, _ALL_POINTS // max(lines, 1)))


def thin(view: View, most: int) -> list[int]:
    """At most ``most`` indices into a view's values, evenly spaced, both ends included."""
    count = len(view.values)
    if count <= most:
        return list(range(count))
    return sorted({round(index * (count - 1) / (most - 1)) for index in range(most)})


def _line(view: View, most: int) -> dict[str, Any]:
    """Coordinates of one line; ranks 1, 2, 3, ... need not be written out."""
    chosen = thin(view, most)
    ranks = [view.ranks[index] for index in chosen]
    across: dict[str, Any] = {"x0": 1, "dx": 1} if ranks == list(range(1, len(ranks) + 1)) else {"x": ranks}
    return across | {"y": [number(view.values[index]) for index in chosen]}


def spectrum(material: Material, family: Family, layer: str, view: Literal["neuron", "spectral"], most: int) -> Panel:
    """One view of one layer for all models of a family; ``most`` points a line."""
    traces: list[Trace] = []
    for item in material.placed[family.name]:
        profile = next((known for known in item.run.audit.profile.layers if known.name == layer), None)
        if profile is None:
            continue
        seen: View = getattr(profile, view)
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                **_line(seen, most),
                "name": plain(f"{item.member.label}, seed {item.member.seed}"),
                "line": {"color": material.level_color(family, item.member.level), "width": 1.6},
                "customdata": [[seen.k_for_target, seen.n]],
                "hovertemplate": "%{fullData.name}<br>rank %{x} of "
                + str(seen.n)
                + "<br>share %{y:.4g}<extra></extra>",
                "meta": {"groups": [f"level:{item.member.level}"]},
            }
        )
    title, y_title = WHAT[view]
    named = layer_titles(material, family).get(layer, layer)
    row = Row(
        title=f"layer {short(named, 40)}",
        x="rank (1 is the largest)",
        y=y_title,
        height=290,
        x_axis={"zeroline": False, "rangemode": "tozero"},
        y_axis=log_axis((value for trace in traces for value in trace["y"]), decades=_DECADES),
    )
    return Panel(
        title=title,
        label=f"{title}, layer {named}, {family.title}: {len(traces)} models, coloured by level from none to strong. "
        "A line that drops early is more compressible.",
        figure=stack([row], traces),
        keys=level_keys(material, family),
    )
