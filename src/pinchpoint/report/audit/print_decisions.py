"""Still figures of a model's decisions for papers: planes through samples, and representations."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence

from pinchpoint.records import DecisionPlane, Pictures
from pinchpoint.report.audit import text
from pinchpoint.report.charts import svg
from pinchpoint.report.class_names import called

_SIDE = 290.0
_STEPS = 8
"""Strengths of colour by confidence."""
_ROOM = 28
"""Characters of a class's name."""
_SPACES = {"input": "pixels", "representation": "representation"}


def planes(item: Pictures, sample: int, names: Sequence[str] | None) -> str:
    """The planes through one sample, side by side: a tone a class, stronger where it is more confident."""
    drawn = [plane for plane in item.planes if plane.sample == sample][:2]
    area = Counter(label for plane in drawn for row in plane.labels for label in row)
    first = dict.fromkeys(label for plane in drawn for label in (plane.clean_label, plane.adversarial_label))
    order = [*first, *sorted(area.keys() - first, key=lambda label: -area[label])]
    tones = {label: svg.SERIES[min(place, len(svg.SERIES) - 1)] for place, label in enumerate(order)}
    entries = [(tones[label], called(label, names)[:_ROOM]) for label in order[: len(svg.SERIES)]]
    legend, below = svg.legend(54, entries)
    title = f"Decisions around sample {sample}, {text.threat(item.norm, item.eps)}"
    parts = [svg.text(20, 30, title, "title"), *legend]
    for place, plane in enumerate(drawn):
        parts += _plane(plane, 60 + place * (_SIDE + 70), below + 24, tones)
    height = below + 24 + _SIDE + 54
    said = "● sample, ✕ attacked; dashed: the dominant direction; stronger is more confident."
    parts.append(svg.text(20, height - 12, said, "soft"))
    told = f"True class {called(drawn[0].label, names)}, attacked {called(drawn[0].adversarial_label, names)}."
    return svg.picture(title, told, height, parts, printed=True)


def _plane(plane: DecisionPlane, left: float, top: float, tones: dict[int, str]) -> list[str]:
    axis = svg.Axis(plane.coordinates[0], plane.coordinates[-1], [])
    step = _SIDE / len(plane.coordinates)
    parts = [svg.text(left, top - 12, f"in {_SPACES[plane.space]}, ℓ₂ distances", "soft")]
    for row, (labels, sure) in enumerate(zip(plane.labels, plane.confidence, strict=True)):
        y = top + _SIDE - (row + 1) * step
        kinds = [(label, round(_STEPS * value)) for label, value in zip(labels, sure, strict=True)]
        column = 0
        for (label, strength), run in itertools.groupby(kinds):
            wide = len(list(run))
            parts.append(
                f'<rect class="mark {tones[label]}" fill-opacity="{0.15 + 0.65 * strength / _STEPS:.2f}" '
                f'x="{left + column * step:.2f}" y="{y:.2f}" width="{wide * step:.2f}" height="{step:.2f}"/>'
            )
            column += wide
    for tick, written in svg.linear(axis.low, axis.high, 5).ticks:
        if axis.low <= tick <= axis.high:
            parts.append(svg.text(axis.at(tick, left, left + _SIDE), top + _SIDE + 16, written, "soft", "middle"))
            parts.append(svg.text(left - 6, axis.at(tick, top + _SIDE, top) + 4, written, "soft", "end"))
    reach = axis.high / max(abs(plane.along), abs(plane.across), 1e-12)
    ends = [
        (
            axis.at(sign * reach * plane.along, left, left + _SIDE),
            axis.at(sign * reach * plane.across, top + _SIDE, top),
        )
        for sign in (-1, 1)
    ]
    parts.append(svg.path(ends, "dashed ink"))
    x, y = axis.at(0.0, left, left + _SIDE), axis.at(0.0, top + _SIDE, top)
    moved = axis.at(plane.length, left, left + _SIDE)
    cross = f"M {moved - 5:.1f} {y - 5:.1f} l 10 10 m 0 -10 l -10 10"
    return [*parts, svg.mark(x, y, "ink", 5), f'<path class="line ink" d="{cross}"/>']


def representations(item: Pictures, names: Sequence[str] | None) -> str:
    """Clean (filled) and attacked (open) representations along the clean ones' axes; tone and shape a class."""
    pca = item.pca
    classes = sorted(set(pca.labels))
    place = {label: index for index, label in enumerate(classes)}
    tones = {label: svg.SERIES[index % len(svg.SERIES)] for label, index in place.items()}
    shown = classes[: 2 * len(svg.SERIES)]
    legend, below = svg.legend(54, [(tones[label], called(label, names)[:_ROOM]) for label in shown])
    points = [point[:2] for point in (*pca.clean, *pca.adversarial)]
    across, up = (svg.linear(min(p[axis] for p in points), max(p[axis] for p in points)) for axis in (0, 1))
    left, top, width, tall = 70.0, below + 24, svg.WIDTH - 100.0, 400.0
    title = f"Representations, {text.threat(item.norm, item.eps)}"
    axes = [f"axis {place + 1}: {share:.0%} of the clean variance" for place, share in enumerate(pca.explained[:2])]
    parts = [svg.text(20, 30, title, "title"), *legend]
    parts += svg.panel((left, top, width, tall), f"upwards: {axes[-1]}", across, up, [])
    for kind, rows in (("clean", pca.clean), ("attacked", pca.adversarial)):
        for label, (first, second, *_) in zip(pca.labels, rows, strict=True):
            x, y = across.at(first, left, left + width), up.at(second, top + tall, top)
            if kind == "clean":
                parts.append(svg.mark(x, y, tones[label]))
            else:
                parts.append(
                    f'<circle class="line {tones[label]}" stroke-width="1.4" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
                )
    height = top + tall + 54
    more = " Squares: from the 7th class on." * (len(classes) > len(svg.SERIES))
    parts.append(svg.text(20, height - 12, f"To the right: {axes[0]}. Filled: clean. Open: attacked.{more}", "soft"))
    return svg.picture(title, f"{len(pca.labels)} samples, clean and attacked.", height, parts, printed=True)


def _mark(x: float, y: float, kind: str, square: bool) -> str:
    if square:
        return f'<rect class="{kind}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
