"""Small building blocks of plotly figures as plain dictionaries: text, numbers, axes stacked in rows, keys."""

from __future__ import annotations

import html
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pinchpoint.report.charts.palette import INK, MUTED
from pinchpoint.report.formatting import finite

Trace = dict[str, Any]
Figure = dict[str, Any]

_TOP, _BOTTOM, _TITLE = 30, 50, 34
"""Pixels: above the first row, under the last one (ticks and title), and between rows for the next row's title."""


@dataclass(frozen=True)
class Key:
    """One entry of a legend that is a button: it hides and shows the traces whose ``meta.groups`` names ``group``."""

    name: str
    group: str
    color: str
    symbol: str | None = None
    line: str | None = None


@dataclass(frozen=True)
class Panel:
    """One drawn figure: its title, what a screen reader says, the plotly figure and its legend."""

    title: str
    label: str
    figure: Figure
    color: str | None = None
    keys: Sequence[Key] = ()


@dataclass(frozen=True)
class Row:
    """One row of a panel: its own axes, with titles and units, and a line of text above."""

    title: str
    x: str
    y: str
    height: int = 180
    x_axis: Mapping[str, Any] = field(default_factory=dict)
    y_axis: Mapping[str, Any] = field(default_factory=dict)


def plain(text: object) -> str:
    """Text that plotly shows as it is: its pseudo-HTML is switched off.

    >>> plain("<b>a</b>")
    '&lt;b&gt;a&lt;/b&gt;'
    """
    return html.escape(str(text), quote=False)


def short(text: object, most: int = 14) -> str:
    """A tick label: the end of a long name, which is what tells layers apart."""
    name = str(text)
    return plain(name if len(name) <= most else "…" + name[-(most - 1) :])


def begun(text: object, most: int = 22) -> str:
    """The beginning of a long name, which is what tells classes apart.

    >>> begun("great white shark, white shark", 18)
    'great white shark…'
    """
    name = str(text)
    return plain(name if len(name) <= most else name[: most - 1].rstrip(" ,;") + "…")


def number(value: Any, digits: int = 4) -> float | None:
    """A number with that many significant digits, None where there is none: keeps the page small and valid JSON.

    >>> number(0.123456789), number(float("inf"))
    (0.1235, None)
    """
    known = finite(value)
    return None if known is None else float(f"{known:.{digits}g}")


def positive(value: Any, digits: int = 4) -> float | None:
    """The same for a logarithmic axis: zero and less have no place there."""
    known = number(value, digits)
    return known if known is not None and known > 0 else None


def shown(value: Any) -> str:
    """A number in a sentence.

    >>> shown(0.51234), shown(None)
    ('0.512', 'not known')
    """
    known = finite(value)
    return "not known" if known is None else f"{known:.3g}"


def axis_names(row: int) -> dict[str, str]:
    """The axes of a row, counted from 0, as a trace refers to them."""
    suffix = "" if row == 0 else str(row + 1)
    return {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}


def stack(rows: Sequence[Row], traces: Sequence[Trace], shapes: Sequence[dict[str, Any]] = ()) -> Figure:
    """Rows of axes one above the other. Rows that share an x title share the axis, and only the last one shows it."""
    tall = [row.height for row in rows]
    gaps = [_TITLE if row.x == below.x else _TITLE + _BOTTOM for row, below in itertools.pairwise(rows)]
    inside = sum(tall) + sum(gaps)
    layout: dict[str, Any] = {
        "height": inside + _TOP + _BOTTOM,
        "margin": {"l": 58, "r": 14, "t": _TOP, "b": _BOTTOM},
        "showlegend": False,
        "hovermode": "closest",
        "annotations": [],
        "shapes": list(shapes),
    }
    top = float(inside)
    for index, row in enumerate(rows):
        suffix = "" if index == 0 else str(index + 1)
        bottom = top - row.height
        shared = any(row.x == other.x for other in rows[index + 1 :])
        x_axis: dict[str, Any] = {"anchor": f"y{suffix}", "showticklabels": not shared, **row.x_axis}
        if not shared:
            x_axis["title"] = {"text": row.x, "standoff": 8}
        else:
            x_axis["matches"] = f"x{len(rows)}"
        layout[f"xaxis{suffix}"] = x_axis
        layout[f"yaxis{suffix}"] = {
            "anchor": f"x{suffix}",
            "domain": [max(bottom / inside, 0.0), min(top / inside, 1.0)],
            "title": {"text": row.y, "standoff": 6},
            **row.y_axis,
        }
        layout["annotations"].append(
            {
                "text": f"<b>{row.title}</b>",
                "x": 0,
                "xref": "paper",
                "xanchor": "left",
                "y": top / inside,
                "yref": "paper",
                "yanchor": "bottom",
                "yshift": 5,
                "showarrow": False,
                "font": {"size": 12, "color": INK},
            }
        )
        top = bottom - (gaps[index] if index < len(gaps) else 0)
    return {"data": list(traces), "layout": layout}


def upright(row: int, x: float) -> dict[str, Any]:
    """A dotted vertical line through one row, at the main budget."""
    names = axis_names(row)
    return {
        "type": "line",
        "xref": names["xaxis"],
        "yref": f"{names['yaxis']} domain",
        "x0": x,
        "x1": x,
        "y0": 0,
        "y1": 1,
        "line": {"color": MUTED, "width": 1, "dash": "dot"},
        "layer": "below",
    }


def dodge(index: int, count: int, width: float = 0.5) -> float:
    """Where the index-th of ``count`` marks that share a tick is drawn, so that they do not hide one another."""
    return 0.0 if count < 2 else round((index / (count - 1) - 0.5) * width, 4)
