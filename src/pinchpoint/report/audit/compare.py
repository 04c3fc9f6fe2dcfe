"""Many audits side by side: one table, curves over one another, pinch points by model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pinchpoint.errors import StoreError
from pinchpoint.records import AuditReport, ThreatNorm, ThreatReport
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report import html
from pinchpoint.report.audit import figures, text
from pinchpoint.report.audit.page import warnings
from pinchpoint.report.audit.tables import Cell, Head, Table, accuracy_cell, groups
from pinchpoint.report.audit.terms import TERMS, address, docs
from pinchpoint.report.charts import palette
from pinchpoint.report.exhibit import Exhibit, contents
from pinchpoint.report.formatting import written

_RANKS = 5
"""Pinch points shown of each model."""
_PACK_ABOVE = 200_000


def names(reports: Sequence[AuditReport]) -> list[str]:
    """What each model is called: its name, with a number where several have the same."""
    counts = Counter(report.subject.name for report in reports)
    seen: Counter[str] = Counter()
    found = []
    for report in reports:
        name = report.subject.name
        seen[name] += 1
        found.append(f"{name} ({seen[name]})" if counts[name] > 1 else name)
    return found


def _threats(reports: Sequence[AuditReport]) -> list[tuple[ThreatNorm, float]]:
    """All threats of all audits, once, in the order in which they come up."""
    return list(dict.fromkeys((item.norm, item.eps) for report in reports for item in report.threats))


def _under(report: AuditReport, norm: ThreatNorm, eps: float) -> ThreatReport | None:
    return next((item for item in report.threats if (item.norm, item.eps) == (norm, eps)), None)


def side_by_side(reports: Sequence[AuditReport], links: Sequence[str] | None = None) -> Table:
    """One row a model: size, compressibility, and what attacks leave of it under every threat of any audit."""
    threats = _threats(reports)
    heads = [
        Head("model"),
        Head("parameters", group="Size and compressibility"),
        Head("neuron", "neuron"),
        Head("spectral", "spectral"),
        Head("clean", "clean_accuracy", group="No attack"),
    ]
    for norm, eps in threats:
        heads += [
            Head("robust", "robust_accuracy", group=text.threat(norm, eps)),
            Head("universal", "universal_accuracy"),
            Head("certified", "certified_accuracy"),
        ]
    rows = []
    for place, (report, name) in enumerate(zip(reports, names(reports), strict=True)):
        profile = report.profile
        row = [
            Cell(
                name,
                place,
                link=links[place] if links else "",
                small=f"{report.data.name}, {report.data.count} samples",
            ),
            Cell(f"{report.subject.parameters:,}", report.subject.parameters),
            Cell(written(profile.neuron), profile.neuron),
            Cell(written(profile.spectral), profile.spectral),
            accuracy_cell(report.clean),
        ]
        for norm, eps in threats:
            item = _under(report, norm, eps)
            row += [
                accuracy_cell(share)
                for share in ((item.robust, item.universal, item.certified) if item else 3 * (None,))
            ]
        rows.append(row)
    return Table("side-by-side", "Models side by side.", heads, rows, groups(heads))


def pinch_points(reports: Sequence[AuditReport]) -> Table:
    """One row a model: its first pinch points, best known first."""
    heads = [Head("model"), *(Head(f"rank {rank}", "share" if rank == 1 else None) for rank in range(1, _RANKS + 1))]
    rows = []
    for place, (report, name) in enumerate(zip(reports, names(reports), strict=True)):
        first = [
            Cell(point.layer, point.share, small=f"{text.percent(point.share)} of the risk")
            for point in report.pinch_points[:_RANKS]
        ]
        rows.append([Cell(name, place), *first, *[Cell("–")] * (_RANKS - len(first))])
    return Table("pinch-by-model", "The first pinch points of each model.", heads, rows)


def differences(reports: Sequence[AuditReport]) -> list[str]:
    """Where the audits were not done alike, so that a difference between models may be none."""
    found = []
    for what, values in (
        ("data", {report.data.name for report in reports}),
        ("numbers of samples", {str(report.data.count) for report in reports}),
        ("seeds", {str(report.seed) for report in reports}),
        ("threats", {", ".join(text.threat(item.norm, item.eps) for item in report.threats) for report in reports}),
    ):
        if len(values) > 1:
            found.append(f"The audits used different {what}: {'; '.join(sorted(values))}.")
    for norm, eps in _threats(reports):
        under = [item for report in reports if (item := _under(report, norm, eps)) is not None]
        attacks = {item.attack for item in under}
        judged = {str(item.robust.of) for item in under}
        threat = text.threat(norm, eps)
        if len(attacks) > 1:
            found.append(f"Models faced different attacks under {threat}: {'; '.join(sorted(attacks))}.")
        if len(judged) > 1:
            found.append(f"Different numbers of samples were judged under {threat}: {'; '.join(sorted(judged))}.")
    return found


def exhibits(reports: Sequence[AuditReport]) -> dict[str, Exhibit]:
    """Robust accuracy and amplification, models over one another; those with nothing to draw are left out."""
    called = list(zip(names(reports), reports, strict=True))
    judged = {item.norm for report in reports for item in report.threats if item.curve}
    felt = {item.norm for report in reports for item in report.mechanism}
    curves = [
        figures.curve(norm, [(name, one.threats) for name, one in called]) for norm in NORM_NAMES if norm in judged
    ]
    grown = [
        figures.amplification(norm, [(name, one.mechanism) for name, one in called])
        for norm in NORM_NAMES
        if norm in felt
    ]
    made = (("curve", "Robust accuracy against the budget", curves), ("amplification", "Amplification by layer", grown))
    drawn = [(name, title, found) for name, title, found in made if found]
    return {name: Exhibit(name, place, title, found) for place, (name, title, found) in enumerate(drawn, 1)}


def page(reports: Sequence[AuditReport], links: Sequence[str] | None = None) -> str:
    """The page as text.

    Args:
        reports: the audits, in the order of the rows.
        links: addresses of the audits' own pages, relative to this one.

    Raises:
        StoreError: there are no audits.
    """
    if not reports:
        raise StoreError(
            "a comparison needs at least one audit", "none", "name folders that `pinchpoint audit --out` wrote"
        )
    shown = exhibits(reports)
    return html.fill(
        "audit_compare.html.j2",
        contents(shown, palette.dark_of(1)),
        pack_above=_PACK_ABOVE,
        pack_library=True,
        reports=list(zip(names(reports), reports, [warnings(report) for report in reports], strict=True)),
        figures=shown,
        side_by_side=side_by_side(reports, links),
        pinched=pinch_points(reports),
        differences=differences(reports),
        terms=TERMS,
        docs={name: docs(name) for name in TERMS},
        address=address(),
    )


def write(reports: Sequence[AuditReport], path: Path, links: Sequence[str] | None = None) -> Path:
    """Write the page to ``path`` atomically and return it.

    Raises:
        StoreError: there are no audits, or the folder cannot be made or written.
    """
    return html.put(page(reports, links), path)
