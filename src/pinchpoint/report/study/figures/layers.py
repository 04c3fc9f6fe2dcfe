"""Layers as readers know them: by their path in the model and what they are."""

from __future__ import annotations

from pinchpoint.records import Family
from pinchpoint.report.charts.plotly import short
from pinchpoint.report.study.data import Material

_TICK = 12
"""Characters of a tick's label."""


def layer_names(material: Material, family: Family) -> list[str]:
    """The layers of the family's models, in the order in which they first appear."""
    return list(_kinds(material, family))


def layer_titles(material: Material, family: Family) -> dict[str, str]:
    """Each layer's path with its kind, or its kinds where models of the family differ."""
    return {name: f"{name} ({' or '.join(kinds)})".strip() for name, kinds in _kinds(material, family).items()}


def layer_ticks(material: Material, family: Family, names: list[str]) -> list[str]:
    """The same for an axis: the end of the path, and the kind before a bare number."""
    kinds = _kinds(material, family)
    ticks = []
    for name in names:
        own = kinds.get(name, [])
        whole = f"{own[0] if len(own) == 1 and len(own[0]) + len(name) < _TICK else 'layer'} {name}"
        ticks.append(short(whole if name.isdecimal() else name, _TICK))
    return ticks


def _kinds(material: Material, family: Family) -> dict[str, list[str]]:
    """What each layer is, in the models of the family."""
    found: dict[str, list[str]] = {}
    for item in material.placed[family.name]:
        for layer in item.run.audit.profile.layers:
            kinds = found.setdefault(layer.name, [])
            if layer.kind not in kinds:
                kinds.append(layer.kind)
    return found
