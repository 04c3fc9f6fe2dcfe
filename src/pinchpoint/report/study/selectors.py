"""What a figure with selectors can show: for a family, and one of its layers or attacks, the panels."""

from __future__ import annotations

from dataclasses import replace

from pinchpoint.records import DecisionPlane, Family, Pictures, ThreatNorm
from pinchpoint.records.decisions import Space
from pinchpoint.report.charts.plotly import Panel
from pinchpoint.report.exhibit import Choice
from pinchpoint.report.study import figures
from pinchpoint.report.study.data import Material, Placed

MOST_PICTURES = 16
"""Pairs of models of which pictures are shown: keeps the page under 6 MB."""

_SPACES: tuple[Space, ...] = ("input", "representation")


def spectra(material: Material) -> list[Choice]:
    """Row norms and singular values of every layer."""
    most = figures.points_a_line(material)
    return [
        Choice(
            family.name,
            title,
            [
                figures.spectrum(material, family, layer, "neuron", most),
                figures.spectrum(material, family, layer, "spectral", most),
            ],
        )
        for family in material.summary.families
        for layer, title in figures.layer_titles(material, family).items()
    ]


def decisions(material: Material) -> list[Choice]:
    """Decision planes of both ends of a family: pixels, then representations."""
    found = []
    for family, norm, ends in _pairs(material):
        panels, sample = [], _shared(ends)
        for space in _SPACES:
            planes = [_plane(pictures, space, sample) for _, pictures in ends]
            panels += [
                _titled(figures.decision_plane(plane), item)
                for (item, _), plane in zip(ends, planes, strict=True)
                if plane is not None
            ]
        if len(panels) == len(_SPACES) * len(ends):
            found.append(Choice(family.name, material.threat(norm), panels))
    return found


def representations(material: Material) -> list[Choice]:
    """Representations of both ends of a family along their principal axes."""
    return [
        Choice(
            family.name,
            material.threat(norm),
            [_titled(figures.representation_pca(pictures.pca), item) for item, pictures in ends if pictures.pca.labels],
        )
        for family, norm, ends in _pairs(material)
    ]


_Ends = list[tuple[Placed, Pictures]]


def _pairs(material: Material) -> list[tuple[Family, ThreatNorm, _Ends]]:
    """The models at the first and the last level, of the first seed with pictures of both, of every family and norm; of
    one in which both draw the same sample, where there is one."""
    found = []
    for norm in material.norms:
        for family in material.summary.families:
            drawn = [
                (item, one)
                for item in material.placed[family.name]
                if (one := next((one for one in item.run.audit.pictures if one.norm == norm), None)) is not None
            ]
            levels = [item.member.level for item, _ in drawn]
            pairs: list[_Ends] = []
            for seed in material.seeds:
                own = {item.member.level: (item, one) for item, one in drawn if item.member.seed == seed}
                if own and min(levels) in own and max(levels) in own:
                    ends = list(dict.fromkeys([min(levels), max(levels)]))
                    pairs.append([own[level] for level in ends])
            if pairs:
                found.append((family, norm, next((ends for ends in pairs if _shared(ends) is not None), pairs[0])))
    order = [family.name for family in material.summary.families]
    return sorted(found[:MOST_PICTURES], key=lambda pair: order.index(pair[0].name))


def _shared(ends: _Ends) -> int | None:
    """The first sample that all of them draw, in pixels and in representations."""
    drawn = [{(plane.space, plane.sample) for plane in pictures.planes} for _, pictures in ends]
    samples = (plane.sample for plane in ends[0][1].planes)
    return next((one for one in samples if all((space, one) in own for own in drawn for space in _SPACES)), None)


def _plane(pictures: Pictures, space: Space, sample: int | None) -> DecisionPlane | None:
    """The plane through this sample, or through the first that is drawn."""
    planes = [plane for plane in pictures.planes if plane.space == space]
    return next((plane for plane in planes if plane.sample == sample), planes[0] if planes else None)


def _titled(panel: Panel, item: Placed) -> Panel:
    """The same, said to be of this model."""
    who = f"Level {item.member.label}, seed {item.member.seed}"
    title = f"{who}: {panel.title[:1].lower()}{panel.title[1:]}"
    return replace(panel, title=title, label=f"{who}. {panel.label}")
