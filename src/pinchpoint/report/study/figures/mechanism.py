"""Where perturbations point, and how much the layers amplify them, one panel a family."""

from __future__ import annotations

from pinchpoint.records import Family, LayerMechanism, ThreatNorm
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.charts.palette import INK
from pinchpoint.report.charts.plotly import Key, Panel, Row, Trace, axis_names, dodge, number, plain, stack
from pinchpoint.report.study.data import Material, Placed
from pinchpoint.report.study.figures.curves import level_keys
from pinchpoint.report.study.figures.layers import layer_names, layer_ticks, layer_titles


def _names(material: Material, family: Family) -> list[str]:
    """Layers that have a mechanism on record, in the order of the network."""
    found = {
        layer.name: None
        for item in material.placed[family.name]
        for record in item.run.audit.mechanism
        for layer in record.layers
    }
    known = [name for name in layer_names(material, family) if name in found]
    return known + [name for name in found if name not in known]


def _layers(item: Placed, norm: ThreatNorm) -> dict[str, LayerMechanism]:
    record = item.mechanism(norm)
    return {layer.name: layer for layer in record.layers} if record else {}


def _row(ticks: list[str], title: str, y: str, y_axis: dict[str, object]) -> Row:
    return Row(
        title=title,
        x="layer, from input to output",
        y=y,
        x_axis={
            "tickvals": list(range(len(ticks))),
            "ticktext": ticks,
            "range": [-0.5, len(ticks) - 0.5],
            "zeroline": False,
        },
        y_axis=y_axis,
    )


def _trace(material: Material, family: Family, item: Placed, row: int, layers: dict[str, LayerMechanism]) -> Trace:
    """What a model's traces have in common: its place at every layer, colour, name and group."""
    names, titles = _names(material, family), layer_titles(material, family)
    order = sorted({level.level for level in family.levels})
    shift = dodge(order.index(item.member.level) if item.member.level in order else 0, len(order), 0.36)
    return {
        "type": "scatter",
        "x": [names.index(name) + shift for name in layers],
        "text": [plain(titles.get(name, name)) for name in layers],
        "customdata": [[layer.k, number(layer.baseline)] for layer in layers.values()],
        "name": plain(f"{item.member.label}, seed {item.member.seed}"),
        "meta": {"groups": [f"level:{item.member.level}"]},
        **axis_names(row),
    }


def alignment(material: Material, family: Family) -> Panel:
    """Share of the perturbation in the layer's dominant directions, beside what a random direction has."""
    names = _names(material, family)
    ticks = layer_ticks(material, family, names)
    rows, traces = [], []
    for index, norm in enumerate(material.norms):
        rows.append(_row(ticks, f"Alignment, {material.threat(norm)}", "share (0 to 1)", {"range": [0, 1.06]}))
        for item in material.placed[family.name]:
            layers = _layers(item, norm)
            if not layers:
                continue
            color = material.level_color(family, item.member.level)
            base = _trace(material, family, item, index, layers)
            traces.append(
                {
                    **base,
                    "mode": "markers",
                    "y": [number(layer.baseline) for layer in layers.values()],
                    "marker": {"color": color, "symbol": "line-ew-open", "size": 11, "line": {"width": 2}},
                    "hovertemplate": "%{fullData.name}<br>%{text}: random direction %{y:.3f}<extra></extra>",
                    "meta": {"groups": [*base["meta"]["groups"], "baseline"]},
                }
            )
            traces.append(
                {
                    **base,
                    "mode": "markers",
                    "y": [number(layer.alignment) for layer in layers.values()],
                    "marker": {
                        "color": color,
                        "symbol": material.symbol(item.member.seed),
                        "size": 8,
                        "opacity": 0.8,
                    },
                    "hovertemplate": (
                        "%{fullData.name}<br>%{text}, k = %{customdata[0]}<br>alignment %{y:.3f}<br>"
                        "random direction %{customdata[1]:.3f}<extra></extra>"
                    ),
                }
            )
    keys = [Key(key.name, key.group, key.color, symbol="circle") for key in level_keys(material, family)]
    keys.append(Key("random direction", "baseline", INK, line="solid"))
    return Panel(
        title=family.title,
        label=f"{family.title}: alignment of the perturbations with the dominant singular directions in layers "
        f"{', '.join(names)}, by level, beside that of a random direction.",
        figure=stack(rows, traces),
        color=material.family_color(family),
        keys=keys,
    )


def amplification(material: Material, family: Family) -> Panel:
    """Relative change of the representation after each layer, one line a model, coloured by level."""
    names = _names(material, family)
    ticks = layer_ticks(material, family, names)
    rows, traces = [], []
    for index, norm in enumerate(material.norms):
        title = f"Amplification, {material.threat(norm)}"
        rows.append(_row(ticks, title, f"relative change, {NORM_NAMES['l2']}", {"rangemode": "tozero", "nticks": 6}))
        for item in material.placed[family.name]:
            layers = _layers(item, norm)
            if not layers:
                continue
            color = material.level_color(family, item.member.level)
            traces.append(
                {
                    **_trace(material, family, item, index, layers),
                    "mode": "lines+markers",
                    "y": [number(layer.amplification) for layer in layers.values()],
                    "line": {"color": color, "width": 1.2},
                    "marker": {"color": color, "symbol": material.symbol(item.member.seed), "size": 7, "opacity": 0.8},
                    "hovertemplate": "%{fullData.name}<br>%{text}<br>relative change %{y:.3f}<extra></extra>",
                }
            )
    return Panel(
        title=family.title,
        label=f"{family.title}: relative change of the representation after layers {', '.join(names)}, by level.",
        figure=stack(rows, traces),
        color=material.family_color(family),
        keys=level_keys(material, family),
    )
