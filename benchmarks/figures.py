"""Draw the figures of the docs from what the benchmarks wrote: ``python -m benchmarks.figures --json FILE... --out FOLDER``.

Plain SVG, text as text, with colours for light and dark pages.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pinchpoint.report.charts import svg
from pinchpoint.report.charts.svg import SERIES, WIDTH, line, picture, text

LEFT, RIGHT = 180, 30
LOWER = ("sampled", "ascent")
NAMES = {
    "sampled": "sampled pairs",
    "ascent": "ascent",
    "first-order": "first-order",
    "fast": "fast",
    "alignment": "product with alignment",
    "equivalence": "equivalence, from l₂",
    "product": "product of norms",
    "structure": "structure × scale",
}
DATA = {"mnist": "MNIST"}


def number(value: float) -> str:
    """Three digits, as people write them.

    >>> number(32.9544), number(614.6), number(128512.3), number(0.01)
    ('33.0', '615', '129,000', '0.01')
    """
    if value == 0:
        return "0"
    digits = 2 - math.floor(math.log10(abs(value)))
    shown = f"{round(value, digits):,.{max(digits, 0)}f}"
    return shown.rstrip("0").rstrip(".") if abs(value) < 1 else shown


def tick_label(value: float) -> str:
    """A round number.

    >>> tick_label(20.0), tick_label(1e6), tick_label(0.001)
    ('20', '1,000,000', '0.001')
    """
    return f"{value:,.0f}" if value >= 1 else f"{value:.6f}".rstrip("0")


class Log:
    """A logarithmic axis from ``low`` to ``high``, drawn between two places."""

    def __init__(self, values: Sequence[float], start: float, end: float, room: float = 0.08) -> None:
        self.low, self.high = math.log10(min(values)) - room, math.log10(max(values)) + room
        self.start, self.end = start, end

    def at(self, value: float) -> float:
        return self.start + (math.log10(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        factors = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        found = [factor * 10.0**power for power in range(-12, 20) for factor in factors]
        return [value for value in found if self.low <= math.log10(value) <= self.high]


def bracket(found: Mapping[str, Mapping[str, float]], subject: str) -> str:
    """Every bound on the constant of one network, a row each, l_2 above l_inf."""
    parts = [text(20, 30, f"A Lipschitz constant from both sides: {subject}", "title")]
    parts += [
        '<path class="mark lower" d="M 26 52 l 8 6 l -8 6 z"/>',
        text(42, 62, "reached by two inputs: the constant is at least this", "soft"),
        '<path class="mark upper" d="M 394 52 l -8 6 l 8 6 z"/>',
        text(402, 62, "certified for all inputs: it is at most this", "soft"),
    ]
    top = 104.0
    for norm, sign in (("l2", "l₂"), ("linf", "l∞")):
        values = {name: found[norm][name] for name in NAMES if found[norm].get(name, 0.0) > 0}  # log axis
        ordered = sorted(values, key=lambda name: (name not in LOWER, values[name]))
        axis = Log(list(values.values()), LEFT + 70, WIDTH - RIGHT - 70)
        bottom = top + 24 * len(ordered)
        parts.append(text(20, top - 8, f"{sign} to {sign}", "title"))
        for tick in axis.ticks():
            parts += [line(axis.at(tick), top, axis.at(tick), bottom)]
            parts += [text(axis.at(tick), bottom + 16, tick_label(tick), "soft", "middle")]
        low = max((values[name] for name in LOWER if name in values), default=min(values.values()))
        high = min(value for name, value in values.items() if name not in LOWER)
        parts.append(
            f'<rect class="span" x="{axis.at(low):.1f}" y="{top:.1f}" '
            f'width="{max(axis.at(high) - axis.at(low), 1):.1f}" height="{bottom - top:.1f}"/>'
        )
        for row, name in enumerate(ordered):
            x, y = axis.at(values[name]), top + 24 * row + 12
            side, kind = (-1, "lower") if name in LOWER else (1, "upper")
            parts.append(text(LEFT, y + 4, NAMES[name], "", "end"))
            parts.append(f'<path class="mark {kind}" d="M {x:.1f} {y:.1f} l {8 * side} -6 v 12 z"/>')
            parts.append(text(x + 12 * side, y + 4, number(values[name]), "", "end" if side < 0 else "start"))
        top = bottom + 62
    parts.append(text(20, top - 24, "The shaded strip is what stays open: the constant lies inside it.", "soft"))
    return picture("Bracket of a Lipschitz constant", "Lower and upper bounds by method", top - 8, parts)


def growth(rows: Sequence[Mapping[str, float]], title: str) -> str:
    """Seconds against width, both axes logarithmic, a line for each cost with its name at its end."""
    names = [name for name in rows[0] if name != "width"]
    height, left, right = 400.0, 70, WIDTH - 190
    across = Log([row["width"] for row in rows], left, right, room=0.04)
    up = Log([row[name] for row in rows for name in names], height - 50, 60)
    parts = [text(20, 30, title, "title")]
    for tick in up.ticks():
        parts += [
            line(left, up.at(tick), right, up.at(tick)),
            text(left - 8, up.at(tick) + 4, tick_label(tick), "soft", "end"),
        ]
    for row in rows:
        parts.append(text(across.at(row["width"]), height - 30, f"{row['width']:.0f}", "soft", "middle"))
    parts += [
        text(left, 52, "seconds", "soft"),
        text((left + right) / 2, height - 10, "width of the layers", "soft", "middle"),
    ]
    ends = sorted(names, key=lambda name: rows[-1][name], reverse=True)
    place = -math.inf
    for name in ends:
        tone = SERIES[names.index(name) % len(SERIES)]
        points = [(across.at(row["width"]), up.at(row[name])) for row in rows]
        parts.append(f'<polyline class="line {tone}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>')
        parts += [f'<circle class="mark {tone}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y in points]
        place = max(place + 17, points[-1][1] + 4)
        parts.append(
            text(right + 12, place, name.replace("_", " ").replace("linf", "l∞").replace("l2", "l₂"), f"name {tone}")
        )
    return picture(title, "Seconds against width", height, parts)


def curves(found: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], title: str) -> str:
    """Accuracy against the budget, a panel a norm, a line a model; upright strokes span the seeds.

    Args:
        found: by norm and model, rows of budget, mean, smallest and largest accuracy in per cent.
        title: above the panels.
    """
    top, tall = 96.0, 244.0
    tones = dict(zip(next(iter(found.values())), SERIES, strict=False))
    most = max(row[3] for lines in found.values() for rows in lines.values() for row in rows)
    up = svg.Axis(0.0, math.ceil(most / 10) * 10.0, [(tick, str(tick)) for tick in range(0, math.ceil(most) + 10, 10)])
    parts = [text(20, 30, title, "title"), *svg.legend(57, [(tone, model) for model, tone in tones.items()])[0]]
    width = (WIDTH - 60 - 40 * len(found)) / len(found)
    for place, (norm, lines) in enumerate(found.items()):
        budgets = [row[0] for row in next(iter(lines.values()))]
        sign = norm.replace("linf", "l∞").replace("l2", "l₂")
        shown = [f"{255 * budget:.0f}/255" if norm == "linf" and budget else f"{budget:g}" for budget in budgets]
        across = svg.Axis(0.0, budgets[-1], list(zip(budgets, shown, strict=True)))
        series = [svg.Series(model, tone, [tuple(row) for row in lines[model]]) for model, tone in tones.items()]
        left = 60 + place * (width + 50)
        parts += svg.panel((left, top, width, tall), f"accuracy (%) against the {sign} budget", across, up, series)
    parts.append(text(20, 388, "Means over seeds; upright strokes from the smallest to the largest.", "soft"))
    return picture(title, "Accuracy against the budget of the attack, by model", 400, parts)


def figures(results: Mapping[str, Any]) -> dict[str, str]:
    """The figures that one benchmark's results allow, by file name."""
    if "curves" in results:
        return {f"{results['study']}.svg": curves(results["curves"], results["title"])}
    if "bracket" in results:
        return {
            "bracket.svg": bracket(
                results["bracket"], f"784-256-128-10 trained on {DATA.get(results['data'], results['data'])}"
            ),
            "growth_bound.svg": growth(results["growth"], "What bounds cost as layers grow"),
        }
    return {"growth_measure.svg": growth(results["growth"], "What measuring one layer costs as it grows")}


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw the docs' figures from the benchmarks' results.")
    parser.add_argument("--json", type=Path, nargs="+", required=True, metavar="FILE", help="what the benchmarks wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the SVG files go")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for path in args.json:
        for name, drawn in figures(json.loads(path.read_text(encoding="utf-8"))).items():
            (args.out / name).write_text(drawn, encoding="utf-8")
            print(args.out / name)


if __name__ == "__main__":
    main()
