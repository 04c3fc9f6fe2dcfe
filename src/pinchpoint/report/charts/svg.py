"""Still figures: plain SVG, text as text, with colours for light and dark pages. Drawing only.

Marks and lines take their colour from a class, a *tone*: ``a`` to ``f`` are categories, others are given to ``picture``.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

WIDTH = 760
SERIES = ("a", "b", "c", "d", "e", "f")
_LETTER = 7.2
"""Pixels a letter takes on average, generously."""
LIGHT = {
    "page": "#fff", "ink": "#2b313a", "soft": "#626b78", "grid": "#dfe3e9", "blue": "#0072b2", "orange": "#c04e00",
    "green": "#00795a", "pink": "#a8477f", "brown": "#7a6000", "violet": "#5b5fc7",
}  # fmt: skip
DARK = {
    "page": "#14181f", "ink": "#d7dde5", "soft": "#98a3b3", "grid": "#333c49", "blue": "#56b4f5", "orange": "#ff8f45",
    "green": "#34cfa0", "pink": "#f0a0cd", "brown": "#e3c04a", "violet": "#a5a8ff",
}  # fmt: skip
TONES = {
    "upper": "blue", "a": "blue", "lower": "orange", "b": "orange", "c": "green", "d": "pink", "e": "brown", "f": "violet",
    "ink": "ink", "soft": "soft",
}  # fmt: skip


def _variables(colors: Mapping[str, str]) -> str:
    return " ".join(f"--{name}: {color};" for name, color in colors.items())


STYLE = f"""
  text {{ font: 13px system-ui, sans-serif; fill: var(--ink); }}
  .title {{ font-weight: 600; font-size: 15px; }} .soft {{ fill: var(--soft); font-size: 12px; }}
  .grid {{ stroke: var(--grid); stroke-width: 1; }} .span {{ fill: var(--grid); }}
  {" ".join(f".{name} {{ --tone: var(--{color}); }}" for name, color in TONES.items())}
  .mark, text.name {{ fill: var(--tone); }} .line {{ fill: none; stroke: var(--tone); stroke-width: 2; }}
  .dashed {{ stroke-width: 1.3; stroke-dasharray: 5 4; }}
  svg {{ {_variables(LIGHT)} }}
  @media (prefers-color-scheme: dark) {{ svg {{ {_variables(DARK)} }} }}
"""


def _printed(tones: Mapping[str, tuple[str, str]]) -> str:
    """The same with the light colours written out, for programs that know no CSS variables."""
    colors = {name: LIGHT[color] for name, color in TONES.items()} | {name: light for name, (light, _) in tones.items()}
    return (
        f"text {{ font: 13px 'DejaVu Sans', Verdana, sans-serif; fill: {LIGHT['ink']}; }} "
        f".title {{ font-weight: 600; font-size: 15px; }} .soft {{ fill: {LIGHT['soft']}; font-size: 12px; }} "
        f".grid {{ stroke: {LIGHT['grid']}; stroke-width: 1; }} .span {{ fill: {LIGHT['grid']}; }} "
        ".line { fill: none; stroke-width: 2; } .dashed { stroke-width: 1.3; stroke-dasharray: 5 4; } "
        + " ".join(
            f".mark.{name}, text.name.{name} {{ fill: {color}; }} .line.{name} {{ stroke: {color}; }}"
            for name, color in colors.items()
        )
    )


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text.

    >>> text(1, 2, "a < b")
    '<text x="1.0" y="2.0" class="" text-anchor="start">a &lt; b</text>'
    """
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{html.escape(words)}</text>'


def line(x: float, y: float, to_x: float, to_y: float) -> str:
    """A line of a grid."""
    return f'<line class="grid" x1="{x:.1f}" y1="{y:.1f}" x2="{to_x:.1f}" y2="{to_y:.1f}"/>'


def mark(x: float, y: float, tone: str, radius: float = 3.5) -> str:
    """A point."""
    return f'<circle class="mark {tone}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>'


def path(points: Sequence[tuple[float, float]], tone: str) -> str:
    """A line through points."""
    return f'<polyline class="line {tone}" points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}"/>'


def picture(
    title: str,
    label: str,
    height: float,
    parts: Sequence[str],
    tones: Mapping[str, tuple[str, str]] | None = None,
    *,
    printed: bool = False,
) -> str:
    """A whole SVG file.

    Args:
        title: what it is.
        label: what a screen reader says.
        height: pixels; the width is always the same.
        parts: what is drawn.
        tones: further tones, a light and a dark colour each.
        printed: for paper, and for programs that know no CSS variables: light colours only, written out.
    """
    page = LIGHT["page"] if printed else "var(--page)"
    own = "".join(f" .{name} {{ --tone: {light}; }}" for name, (light, _) in (tones or {}).items())
    dark = "".join(f" .{name} {{ --tone: {dark}; }}" for name, (_, dark) in (tones or {}).items())
    style = f"{STYLE} {own}\n  @media (prefers-color-scheme: dark) {{{dark} }}\n" if tones else STYLE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img">',
            f"<title>{html.escape(title)}</title><desc>{html.escape(label)}</desc>"
            f"<style>{_printed(tones or {}) if printed else style}</style>",
            f'<rect width="{WIDTH}" height="{height:.0f}" style="fill: {page}"/>',
            *parts,
            "</svg>\n",
        ]
    )


@dataclass(frozen=True)
class Series:
    """A line of means with upright strokes from the smallest to the largest: (x, mean, low, high) a point."""

    name: str
    tone: str
    points: Sequence[tuple[float, float, float, float]]
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """From ``low`` to ``high``, with labels at some values."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]

    def at(self, value: float, start: float, end: float) -> float:
        """Where a value lies between two places."""
        return start + (value - self.low) / (self.high - self.low) * (end - start)


def linear(low: float, high: float, most: int = 6) -> Axis:
    """An axis with round labels, a little wider than its values.

    >>> [label for _, label in linear(0.13, 0.52).ticks]
    ['0.2', '0.3', '0.4', '0.5']
    """
    room = 0.04 * (high - low) or 0.05 * max(abs(low), 1.0)
    low, high = low - room, high + room
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first = math.ceil(low / step - 1e-9)
    ticks = [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
    return Axis(low, high, [(tick, f"{round(tick, 12):g}") for tick in ticks])


def panel(
    place: tuple[float, float, float, float], title: str, across: Axis, up: Axis, series: Sequence[Series]
) -> list[str]:
    """One pair of axes with its lines.

    Args:
        place: left, top, width and height of what the axes span.
        title: above it.
        across: horizontal axis.
        up: vertical axis.
        series: drawn in order.
    """
    left, top, width, height = place
    parts = [text(left, top - 12, title, "soft")]
    for tick, label in up.ticks:
        y = up.at(tick, top + height, top)
        parts += [line(left, y, left + width, y), text(left - 8, y + 4, label, "soft", "end")]
    edge = -math.inf
    for tick, label in across.ticks:
        x = across.at(tick, left, left + width)
        if x - _LETTER * len(label) / 2 > edge:  # labels that would touch are left out
            parts.append(text(x, top + height + 18, label, "soft", "middle"))
            edge = x + _LETTER * len(label) / 2 + 4
    for one in series:
        points = [
            (across.at(x, left, left + width), *(up.at(value, top + height, top) for value in values))
            for x, *values in one.points
        ]
        if one.dashed:
            parts.append(path([(x, mean) for x, mean, *_ in points], f"dashed {one.tone}"))
            continue
        for x, mean, low, high in points:
            parts.append(f'<path class="line {one.tone}" d="M {x:.1f} {low:.1f} V {high:.1f}"/>')
            parts.append(mark(x, mean, one.tone))
        parts.append(path([(x, mean) for x, mean, *_ in points], one.tone))
    return parts


def legend(
    top: float, entries: Sequence[tuple[str, str]], lead: str = "", left: float = 20.0
) -> tuple[list[str], float]:
    """Tones and their names in as many rows as they need, and where the next row would begin.

    Args:
        top: of the first row's letters.
        entries: tone and name.
        lead: said before the first.
        left: where rows begin.
    """
    parts = [text(left, top, lead, "soft")] if lead else []
    x = start = left + (_LETTER * len(lead) + 14 if lead else 0)
    for tone, name in entries:
        wide = 16 + _LETTER * len(name)
        if x > start and x + wide > WIDTH - 20:
            x, top = start, top + 20
        parts += [mark(x + 5, top - 4, tone, 5), text(x + 16, top, name)]
        x += wide + 14
    return parts, top + 20
