"""The numbered figures of the page, in its order, and what its script needs to draw them."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pinchpoint.report import choices, figures, palette
from pinchpoint.report.choices import Choice
from pinchpoint.report.draw import Figure, Key, Panel
from pinchpoint.report.material import Material


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


_OPTIONAL = ("decisions", "representations")
"""Figures that are left out, without a number, where there is nothing to choose from."""


def _drawn(panels: Iterable[Panel]) -> list[Panel]:
    """Panels that have something to draw."""
    return [panel for panel in panels if any(trace.get("meta", {}).get("groups") for trace in panel.figure["data"])]


def exhibits(material: Material) -> dict[str, Exhibit]:
    """All figures by name, numbered in the order in which the page shows them; pictures where there are some."""
    families = material.summary.families
    made: list[tuple[str, str, list[Panel]]] = [
        ("accuracy", "Accuracy against compressibility", [figures.accuracy(material, item) for item in families]),
        ("ratio", "Robust over clean accuracy", [figures.ratio(material, item) for item in families]),
        ("curves", "Accuracy against budget", [figures.robustness_curves(material, item) for item in families]),
        ("rho", "Correlation against budget", [figures.correlation_curve(material, norm) for norm in material.norms]),
        ("gap", "Bound and measured gap", [figures.bound_against_gap(material, norm) for norm in material.norms]),
        ("lipschitz", "Lipschitz constant from both sides", [figures.brackets(material, item) for item in families]),
        ("spectra", "Row norms and singular values", []),
        ("alignment", "Where perturbations point", [figures.alignment(material, item) for item in families]),
        ("amplification", "Amplification", [figures.amplification(material, item) for item in families]),
        ("decisions", "Decisions around a sample", []),
        ("representations", "Representations, clean and attacked", []),
    ]
    chosen = {
        "spectra": choices.spectra(material),
        "decisions": choices.decisions(material),
        "representations": choices.representations(material),
    }
    shown: dict[str, Exhibit] = {}
    for name, title, panels in made:
        options = chosen.get(name, [])
        if options or name not in _OPTIONAL:
            most = max((choice.panels for choice in options), key=len, default=_drawn(panels))
            shown[name] = Exhibit(name, len(shown) + 1, title, most, options)
    return shown


def payload(material: Material, shown: dict[str, Exhibit]) -> dict[str, Any]:
    """What the script of a study's page draws."""
    most_levels = max((len(family.levels) for family in material.summary.families), default=1)
    return contents(shown, palette.dark_of(most_levels))


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
