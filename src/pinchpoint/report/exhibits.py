"""The numbered figures of the page, in its order, and what its script needs to draw them."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from pinchpoint.report import figures, palette
from pinchpoint.report.draw import Figure, Panel
from pinchpoint.report.material import Material


@dataclass(frozen=True)
class Choice:
    """The panels shown when a family and one of its layers are chosen."""

    family: str
    layer: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Exhibit:
    """A numbered figure of one or more panels; with ``choices`` a selector decides which panels are shown."""

    id: str
    number: int
    title: str
    panels: Sequence[Panel]
    choices: Sequence[Choice] = ()

    @property
    def families(self) -> list[tuple[int, Choice]]:
        """The first choice of each family, with its place among the choices."""
        found: dict[str, tuple[int, Choice]] = {}
        for index, choice in enumerate(self.choices):
            found.setdefault(choice.family, (index, choice))
        return list(found.values())


def _drawn(panels: Iterable[Panel]) -> list[Panel]:
    """Panels that have something to draw."""
    return [panel for panel in panels if any(trace.get("meta", {}).get("groups") for trace in panel.figure["data"])]


def _spectra(material: Material) -> list[Choice]:
    most = figures.points_a_line(material)
    choices = []
    for family in material.summary.families:
        for layer in figures.layer_names(material, family):
            panels = [
                figures.spectrum(material, family, layer, "neuron", most),
                figures.spectrum(material, family, layer, "spectral", most),
            ]
            choices.append(Choice(family.name, layer, panels))
    return choices


def exhibits(material: Material) -> dict[str, Exhibit]:
    """All figures by name, numbered in the order in which the page shows them."""
    families = material.summary.families
    choices = _spectra(material)
    made: list[tuple[str, str, list[Panel]]] = [
        ("accuracy", "Accuracy against compressibility", [figures.accuracy(material, item) for item in families]),
        ("ratio", "Robust over clean accuracy", [figures.ratio(material, item) for item in families]),
        ("curves", "Accuracy against budget", [figures.robustness_curves(material, item) for item in families]),
        ("rho", "Correlation against budget", [figures.correlation_curve(material, norm) for norm in material.norms]),
        ("gap", "Bound and measured gap", [figures.bound_against_gap(material, norm) for norm in material.norms]),
        ("lipschitz", "Lipschitz constant from both sides", [figures.brackets(material, item) for item in families]),
        ("spectra", "Row norms and singular values", list(choices[0].panels) if choices else []),
        ("alignment", "Where perturbations point", [figures.alignment(material, item) for item in families]),
        ("amplification", "Amplification", [figures.amplification(material, item) for item in families]),
    ]
    return {
        name: Exhibit(name, number, title, _drawn(panels), choices if name == "spectra" else ())
        for number, (name, title, panels) in enumerate(made, start=1)
    }


def payload(material: Material, shown: dict[str, Exhibit]) -> dict[str, Any]:
    """What the script draws: figures by panel id, the selector's choices, and the colours of a dark page."""
    panels: dict[str, Figure] = {}
    for exhibit in shown.values():
        if not exhibit.choices:
            panels |= {f"{exhibit.id}-{index}": panel.figure for index, panel in enumerate(exhibit.panels)}
    chosen = [
        {
            "exhibit": exhibit.id,
            "family": choice.family,
            "layer": choice.layer,
            "panels": [{"figure": panel.figure, "label": panel.label} for panel in choice.panels],
        }
        for exhibit in shown.values()
        for choice in exhibit.choices
    ]
    most_levels = max((len(family.levels) for family in material.summary.families), default=1)
    return {"panels": panels, "choices": chosen, "dark": palette.dark_of(most_levels)}


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
