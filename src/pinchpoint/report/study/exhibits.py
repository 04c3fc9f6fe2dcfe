"""The numbered figures of the page, in its order, and what its script needs to draw them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from pinchpoint.report.charts import palette
from pinchpoint.report.charts.plotly import Panel
from pinchpoint.report.exhibit import Exhibit, contents
from pinchpoint.report.study import figures, selectors
from pinchpoint.report.study.data import Material

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
        "spectra": selectors.spectra(material),
        "decisions": selectors.decisions(material),
        "representations": selectors.representations(material),
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
