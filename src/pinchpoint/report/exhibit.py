"""A figure on a page: its panels, its title, what the script draws."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pinchpoint.report.charts.plotly import Figure, Key, Panel


@dataclass(frozen=True)
class Choice:
    """The panels shown when a family and one of its options, a layer or an attack, are chosen."""

    family: str
    option: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Exhibit:
    """A numbered figure of one or more panels; with ``choices`` selectors decide which panels are shown."""

    id: str
    number: int
    title: str
    panels: Sequence[Panel]
    choices: Sequence[Choice] = ()

    @property
    def families(self) -> list[str]:
        """The families that can be chosen."""
        return list(dict.fromkeys(choice.family for choice in self.choices))

    def legends(self, place: int) -> list[Sequence[Key]]:
        """The different legends of the panel at this place, in order."""
        found: list[Sequence[Key]] = []
        for choice in self.choices:
            found += [panel.keys for panel in choice.panels[place : place + 1] if panel.keys not in found]
        return found


def contents(shown: Mapping[str, Exhibit], dark: Mapping[str, str]) -> dict[str, Any]:
    """What the script draws: figures by panel id, the selectors' choices, and the colours of a dark page."""
    panels: dict[str, Figure] = {}
    for exhibit in shown.values():
        if not exhibit.choices:
            panels |= {f"{exhibit.id}-{index}": panel.figure for index, panel in enumerate(exhibit.panels)}
    chosen = [
        {
            "exhibit": exhibit.id,
            "family": choice.family,
            "option": choice.option,
            "panels": [
                {
                    "figure": panel.figure,
                    "title": panel.title,
                    "label": panel.label,
                    "legend": exhibit.legends(place).index(panel.keys),
                }
                for place, panel in enumerate(choice.panels)
            ],
        }
        for exhibit in shown.values()
        for choice in exhibit.choices
    ]
    return {"panels": panels, "choices": chosen, "dark": dict(dark)}


def script_json(value: Any) -> Markup:
    """JSON that may stand inside a script element: no text in it can end the element or open a comment.

    >>> script_json({"title": "</script>"})
    Markup('{"title":"\\\\u003c/script\\\\u003e"}')
    """
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def packed(text: str) -> Markup:
    """The same, compressed (zlib) and in base64, for large studies."""
    return Markup(base64.b64encode(zlib.compress(text.encode(), 9)).decode())
