"""Decisions drawn: planes through a sample, and representations along their principal axes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain

from pinchpoint.records import DecisionPlane, RepresentationPCA
from pinchpoint.report.charts.palette import FAINT, INK, MUTED, SYMBOLS, family_color
from pinchpoint.report.charts.plotly import Key, Panel, Row, Trace, begun, number, plain, stack
from pinchpoint.report.class_names import called

_COLORS = 6
_VISIBLE = 0.5 / 255
"""Half a grey level: a pixel less far outside the box looks as one inside."""
_MOST_KEYS, _MOST_ARROWS = 12, 15

_SPACES = {"input": "pixels", "representation": "representation"}


def decision_plane(plane: DecisionPlane, names: Sequence[str] | None = None) -> Panel:
    """The class answered at each point in its colour, the stronger the more confident; dots where no image is.

    Args:
        plane: what is drawn.
        names: of the classes; numbers where None.
    """
    area = Counter(chain.from_iterable(plane.labels))
    first = dict.fromkeys([plane.clean_label, plane.adversarial_label])
    order = [*first, *sorted(area.keys() - first, key=lambda label: -area[label])]
    traces = [_region(plane, label, _color(place), called(label, names)) for place, label in enumerate(order)]
    outside = _outside(plane)
    if outside is not None:
        traces.append(outside)
    reach = 10 * plane.coordinates[-1]
    traces.append(
        {
            "type": "scatter",
            "mode": "lines",
            "x": [number(-reach * plane.along), number(reach * plane.along)],
            "y": [number(-reach * plane.across), number(reach * plane.across)],
            "line": {"color": INK, "width": 1.3, "dash": "dash"},
            "hovertemplate": "dominant direction<extra></extra>",
            "meta": {"groups": ["direction"]},
        }
    )
    ends = ((0.0, "circle", "sample", plane.clean_label), (plane.length, "x", "perturbed", plane.adversarial_label))
    for x, symbol, word, answer in ends:
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "x": [number(x)],
                "y": [0.0],
                "marker": {"color": INK, "symbol": symbol, "size": 11, "line": {"color": FAINT, "width": 2}},
                "hovertemplate": f"{word}: {plain(called(answer, names))}<extra></extra>",
                "meta": {"groups": [word]},
            }
        )
    space, true = _SPACES[plane.space], called(plane.label, names)
    span = {"range": [plane.coordinates[0], plane.coordinates[-1]], "zeroline": False, "nticks": 6, "showgrid": False}
    row = Row(
        title=f"sample {plane.sample}: {begun(true)} seen as {begun(called(plane.adversarial_label, names))}",
        x="ℓ₂ along the perturbation",
        y="ℓ₂ across it, to the dominant direction",
        height=300,
        x_axis={**span, "constrain": "domain"},
        y_axis={**span, "scaleanchor": "x", "constrain": "domain"},
    )
    keys = [
        Key(called(label, names), f"class:{label}", _color(place), symbol="square") for place, label in enumerate(order)
    ]
    keys += [Key("sample", "sample", INK, symbol="circle"), Key("perturbed", "perturbed", INK, symbol="x")]
    keys.append(Key("dominant direction", "direction", INK, line="dash"))
    if outside is not None:
        keys.append(Key("outside the box", "outside", INK, line="dot"))
    return Panel(
        title=f"Decisions in {space}",
        label=f"Decisions on a plane in {space} through sample {plane.sample}, {true}, along its perturbation (the "
        f"answer there is {called(plane.adversarial_label, names)}) and across it: "
        + ", ".join(f"{called(label, names)} on {area[label] / area.total():.0%}" for label in order)
        + ".",
        figure=stack([row], traces),
        keys=keys,
    )


def representation_pca(pca: RepresentationPCA, names: Sequence[str] | None = None) -> Panel:
    """Clean (filled) and adversarial (open) representations by class, and for some of them the way between.

    Args:
        pca: what is drawn; its first two axes.
        names: of the classes; numbers where None.
    """
    classes = sorted(set(pca.labels))
    traces: list[Trace] = []
    for place, label in enumerate(classes):
        rows = [row for row, own in enumerate(pca.labels) if own == label]
        symbol = SYMBOLS[place // _COLORS % len(SYMBOLS)]
        for kind, points, shape, opacity in (
            ("clean", pca.clean, symbol, 0.75),
            ("adversarial", pca.adversarial, f"{symbol}-open", 0.9),
        ):
            traces.append(
                {
                    "type": "scatter",
                    "mode": "markers",
                    "x": [points[row][0] for row in rows],
                    "y": [points[row][1] for row in rows],
                    "text": [plain(called(pca.answers[row], names)) for row in rows],
                    "marker": {"color": _color(place, muted=False), "symbol": shape, "size": 6, "opacity": opacity},
                    "hovertemplate": f"{plain(called(label, names))}, {kind}"
                    + ("" if kind == "clean" else "<br>answer %{text}")
                    + "<extra></extra>",
                    "meta": {"groups": [f"class:{label}", kind]},
                }
            )
    traces.append(_arrows(pca))
    axes = [f"axis {place + 1}: {share:.0%} of the clean variance" for place, share in enumerate(pca.explained[:2])]
    seen = sum(pca.moved[:2])
    row = Row(
        title=f"{len(pca.labels)} samples; {seen:.0%} of the movement is seen",
        x=axes[0],
        y=axes[1],
        height=340,
        x_axis={"zeroline": False, "nticks": 6},
        y_axis={"zeroline": False, "nticks": 6},
    )
    keys = [
        Key(
            called(label, names),
            f"class:{label}",
            _color(place, muted=False),
            symbol=SYMBOLS[place // _COLORS % len(SYMBOLS)],
        )
        for place, label in enumerate(classes)
    ]
    keys = keys if len(keys) <= _MOST_KEYS else []
    keys += [
        Key("clean", "clean", INK, symbol="circle"),
        Key("adversarial", "adversarial", MUTED, symbol="circle-open"),
    ]
    keys.append(Key("movement", "movement", INK, line="solid"))
    return Panel(
        title="Representations",
        label=f"Representations of {len(pca.labels)} samples of {len(classes)} classes, clean and under attack, along the "
        f"principal axes of the clean ones ({', '.join(axes)}). {seen:.0%} of the movement's squared length lies in them.",
        figure=stack([row], traces),
        keys=keys,
    )


def _region(plane: DecisionPlane, label: int, color: str, name: str) -> Trace:
    """Where this class is answered, by confidence."""
    return {
        "type": "heatmap",
        "x": [number(value) for value in plane.coordinates],
        "y": [number(value) for value in plane.coordinates],
        "z": [
            [number(sure, 3) if own == label else None for own, sure in zip(*rows, strict=True)]
            for rows in zip(plane.labels, plane.confidence, strict=True)
        ],
        "zmin": 0,
        "zmax": 1.25,
        "colorscale": [[0, FAINT], [1, color]],
        "showscale": False,
        "hoverongaps": False,
        "hovertemplate": plain(name) + "<br>confidence %{z:.3f}<extra></extra>",
        "meta": {"groups": [f"class:{label}"]},
    }


def _outside(plane: DecisionPlane) -> Trace | None:
    """A dot at every other point that is no image."""
    points = [
        (x, y)
        for y, row in list(zip(plane.coordinates, plane.excess or (), strict=False))[::2]
        for x, beyond in list(zip(plane.coordinates, row, strict=True))[::2]
        if beyond > _VISIBLE
    ]
    if not points:
        return None
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [number(x) for x, _ in points],
        "y": [number(y) for _, y in points],
        "marker": {"color": INK, "size": 2, "opacity": 0.55},
        "hoverinfo": "skip",
        "meta": {"groups": ["outside"]},
    }


def _arrows(pca: RepresentationPCA) -> Trace:
    """From clean to adversarial, for the first samples of which the answer is wrong."""
    rows = [row for row, (label, answer) in enumerate(zip(pca.labels, pca.answers, strict=True)) if label != answer]
    rows = rows[:_MOST_ARROWS]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "x": [value for row in rows for value in (pca.clean[row][0], pca.adversarial[row][0], None)],
        "y": [value for row in rows for value in (pca.clean[row][1], pca.adversarial[row][1], None)],
        "line": {"color": INK, "width": 1},
        "marker": {
            "color": INK,
            "symbol": "arrow",
            "angleref": "previous",
            "size": [0, 9, 0] * len(rows),
            "opacity": 1,
        },
        "hoverinfo": "skip",
        "meta": {"groups": ["movement"]},
    }


def _color(place: int, *, muted: bool = True) -> str:
    """Of a class by its place; with ``muted`` those after the sixth share a colour."""
    return MUTED if muted and place >= _COLORS else family_color(place)
