"""What the figures of an audit share: colours, and room for long names of layers."""

from __future__ import annotations

from collections.abc import Sequence

from pinchpoint.records import AuditReport
from pinchpoint.report.charts.palette import MUTED, family_color
from pinchpoint.report.charts.plotly import Figure

TICK = 18
"""Characters of a tick's label."""
_LETTER = 6.7
"""Pixels of one of them."""

ADVERSARIAL, RANDOM = family_color(1), MUTED
"""Colours of what an attack does, and of what chance does."""


def model_color(place: int) -> str:
    """The colour of a model where models are drawn over one another.

    >>> model_color(0)
    '#0072b2'
    """
    return family_color(place)


def written_length(names: Sequence[str]) -> float:
    """Pixels that the longest of the names takes as a tick's label.

    >>> written_length(["conv1"])
    33.5
    """
    return _LETTER * max((min(len(name), TICK) for name in names), default=0)


def roomy(figure: Figure, *, left: float = 0, bottom: float = 0) -> Figure:
    """The same with room for long tick labels; the axes keep their height."""
    layout = figure["layout"]
    margin = {**layout["margin"], "l": layout["margin"]["l"] + left, "b": layout["margin"]["b"] + bottom}
    return {**figure, "layout": {**layout, "margin": margin, "height": layout["height"] + bottom}}


def named(report: AuditReport) -> list[tuple[str, AuditReport]]:
    """The audited model, and the one it is compared with."""
    both = [(report.subject.name, report)]
    return both + ([(report.other.subject.name, report.other)] if report.other else [])
