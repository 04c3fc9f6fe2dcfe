"""Still figures of an audit for papers: accuracy against the budget, layers ranked, and the mechanism by layer."""

from __future__ import annotations

from collections.abc import Sequence

from pinchpoint.records import AuditReport, Mechanism, PinchPoint, ThreatNorm, ThreatReport
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.audit import text as words
from pinchpoint.report.audit.figures import named
from pinchpoint.report.charts import svg
from pinchpoint.report.charts.svg import Axis, Series
from pinchpoint.utils.numbers import budget

_WIDE, _TALL, _GAP = 300.0, 200.0, 74.0
_PER_CENT = Axis(0.0, 1.0, [(share / 100, str(share)) for share in range(0, 101, 20)])
_MOST_BARS, _BAR = 20, 20.0
_NAME, _LETTER = 24, 7.2
"""Characters of a layer's name, and pixels of one."""


def _short(name: str) -> str:
    return name if len(name) <= _NAME else "…" + name[-(_NAME - 1) :]


def curves(report: AuditReport) -> str:
    """Robust accuracy against the budget, a panel a norm and a tone a model; strokes: 95 % intervals; dashed: certified."""
    models = named(report)
    legend, below = svg.legend(54, [(tone, name) for tone, (name, _) in zip(svg.SERIES, models, strict=False)])
    parts, top = [svg.text(20, 30, report.title, "title"), *legend], below + 24
    norms = [item.norm for item in report.threats if item.curve]
    for place, norm in enumerate(norms):
        left, y = 60 + (place % 2) * (_WIDE + 70), top + place // 2 * (_TALL + _GAP)
        known = [
            (tone, item)
            for tone, (_, one) in zip(svg.SERIES, models, strict=False)
            for item in one.threats
            if item.norm == norm
        ]
        series = [made for tone, item in known for made in _series(tone, item)]
        most = max(point.eps for _, item in known for point in item.curve) or 1.0
        ticks = sorted({point.eps for _, item in known for point in item.curve})
        across = Axis(0.0, most, [(eps, budget(norm, eps) if eps else "0") for eps in ticks])
        title = f"accuracy (%) against the {NORM_NAMES[norm]} budget"
        parts += svg.panel((left, y, _WIDE, _TALL), title, across, _PER_CENT, series)
    height = top + (len(norms) + 1) // 2 * (_TALL + _GAP)
    parts.append(svg.text(20, height - 14, "Upright strokes: 95 % intervals. Dashed: certified.", "soft"))
    told = "; ".join(
        f"{words.threat(item.norm, item.eps)} {words.percent(item.robust.value)}" for item in report.threats
    )
    return svg.picture(report.title, f"Robust accuracy against the budget. {told}.", height, parts, printed=True)


def _series(tone: str, item: ThreatReport) -> list[Series]:
    points = sorted(item.curve, key=lambda point: point.eps)
    sure = [(point.eps, *3 * (point.certified,)) for point in points if point.certified is not None]
    left = Series("", tone, [(point.eps, point.robust.value, point.robust.low, point.robust.high) for point in points])
    return [Series("", tone, sure, dashed=True), left] if sure else [left]


def ranking(points: Sequence[PinchPoint]) -> str:
    """Layers by their share of the risk, beside the gain of adversarial (filled) and of random perturbations (open)."""
    drawn = points[:_MOST_BARS]
    names = [_short(point.layer) for point in drawn]
    left = 30 + _LETTER * max(len(name) for name in names)
    middle, right, top = left + 0.42 * (svg.WIDTH - left), svg.WIDTH - 20.0, 84.0
    most = max(point.share for point in drawn) or 1.0
    span = [value for point in drawn for value in (point.gain, point.random_gain)]
    across = svg.linear(min(*span, 0.0), max(*span, 0.0))
    bottom = top + _BAR * len(drawn)
    parts = [svg.text(20, 30, "Pinch points", "title"), svg.text(left, top - 14, "share of the risk (%)", "soft")]
    parts.append(svg.text(middle + 40, top - 14, "gain (log): attack ●, random ○", "soft"))
    for tick, label in across.ticks:
        x = across.at(tick, middle + 40, right)
        parts += [svg.line(x, top, x, bottom), svg.text(x, bottom + 16, label, "soft", "middle")]
    for place, (point, name) in enumerate(zip(drawn, names, strict=True)):
        y = top + _BAR * (place + 0.5)
        long = point.share / most * (middle - left - 44)
        parts += [
            svg.text(left - 8, y + 4, name, "soft", "end"),
            f'<rect class="mark b" x="{left:.1f}" y="{y - 7:.1f}" width="{max(long, 0.5):.1f}" height="14"/>',
            svg.text(left + long + 5, y + 4, f"{100 * point.share:.1f}", "soft"),
        ]
        ends = [across.at(value, middle + 40, right) for value in (point.random_gain, point.gain)]
        parts += [
            f'<path class="line soft" d="M {ends[0]:.1f} {y:.1f} H {ends[1]:.1f}"/>',
            f'<circle cx="{ends[0]:.1f}" cy="{y:.1f}" r="4" class="line soft" style="fill: #fff"/>',
            svg.mark(ends[1], y, "b", 4.5),
        ]
    told = ", ".join(f"{point.layer} {words.percent(point.share)}" for point in drawn)
    return svg.picture("Pinch points", f"Share of the risk by layer: {told}.", bottom + 34, parts, printed=True)


def layers(norm: ThreatNorm, models: Sequence[tuple[str, Sequence[Mechanism]]]) -> str:
    """Alignment (strokes: a random direction) and amplification by layer, a tone a model, one panel above the other."""
    found = [
        (tone, name, item)
        for tone, (name, known) in zip(svg.SERIES, models, strict=False)
        for item in known
        if item.norm == norm
    ]
    names = list(dict.fromkeys(layer.name for _, _, item in found for layer in item.layers))
    legend, below = svg.legend(54, [(tone, name) for tone, name, _ in found])
    across = Axis(-0.5, len(names) - 0.5, [])
    place = {name: float(index) for index, name in enumerate(names)}
    aligned, grown = [], []
    for tone, _, item in found:
        aligned.append(Series("", tone, [(place[one.name], *3 * (one.alignment,)) for one in item.layers]))
        grown.append(Series("", tone, [(place[one.name], *3 * (one.amplification,)) for one in item.layers]))
    width, top, tall = svg.WIDTH - 100.0, below + 24, 150.0
    title = f"Mechanism, {words.threat(norm, found[0][2].eps)}"
    parts = [svg.text(20, 30, title, "title"), *legend]
    shares = Axis(0.0, 1.0, [(tick / 5, f"{tick / 5:g}") for tick in range(6)])
    parts += svg.panel((70, top, width, tall), "alignment; strokes: a random direction", across, shares, aligned)
    for one in found[0][2].layers:
        x, y = across.at(place[one.name], 70, 70 + width), shares.at(one.baseline, top + tall, top)
        parts.append(f'<path class="line soft" d="M {x - 6:.1f} {y:.1f} H {x + 6:.1f}"/>')
    sizes = svg.linear(0.0, max(value for one in grown for _, value, *_ in one.points) or 1.0)
    second = top + tall + 44
    parts += svg.panel((70, second, width, tall), "amplification (relative change, ℓ₂)", across, sizes, grown)
    parts += [
        _tilted(across.at(at, 70, 70 + width) + 4, second + tall + 14, _short(name)) for name, at in place.items()
    ]
    height = second + tall + 30 + 0.87 * _LETTER * max(len(_short(name)) for name in names)
    label = f"Alignment and amplification in the layers {', '.join(names)}."
    return svg.picture(title, label, height, parts, printed=True)


def _tilted(x: float, y: float, words: str) -> str:
    """A line of text that ends here, coming from below."""
    written = svg.text(0, 0, words, "soft", "end")
    return f'<g transform="translate({x:.1f} {y:.1f}) rotate(-60)">{written}</g>'
