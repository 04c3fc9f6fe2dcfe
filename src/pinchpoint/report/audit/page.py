"""The page of an audit: verdict first, then the numbers, the layers that pinch, what to do, and how it all came about."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pinchpoint.records import Advice, AuditReport, Pictures
from pinchpoint.report import html
from pinchpoint.report.attempt import attempt
from pinchpoint.report.audit import figures, tables
from pinchpoint.report.audit import text as words
from pinchpoint.report.audit.gallery import gallery
from pinchpoint.report.audit.terms import TERMS, address, docs
from pinchpoint.report.charts import palette
from pinchpoint.report.charts.plotly import Panel
from pinchpoint.report.exhibit import Choice, Exhibit, contents
from pinchpoint.report.study.figures import decision_plane, representation_pca

LIMIT = 6_000_000
"""Bytes of the page."""
_IMAGES = (2_600_000, 1_000_000, 0)
"""Characters of images: the first of these with which the page stays below the limit."""
_PACK_ABOVE = 200_000
_MOST_PLANES = 12

VERDICT = ("How compressible", "How robust", "Which layers pinch")
"""What the three sentences of the verdict answer."""


def exhibits(report: AuditReport) -> dict[str, Exhibit]:
    """The numbered figures by name, in the order of the page; those with nothing to draw are left out."""
    models = figures.named(report)
    norms = [item.norm for item in report.threats if item.curve]
    felt = [item.norm for item in report.mechanism]
    names, pinched = report.data.class_names, report.pinch_points
    made: list[tuple[str, str, Callable[[], list[Panel]], Callable[[], list[Choice]]]] = [
        (
            "curve",
            "Robust accuracy against the budget",
            lambda: [figures.curve(norm, [(name, one.threats) for name, one in models]) for norm in norms],
            list,
        ),
        (
            "ranking",
            "Pinch points",
            lambda: [figures.shares(pinched), figures.gains(pinched)] if pinched else [],
            list,
        ),
        ("alignment", "Where perturbations point", lambda: [figures.alignment(one) for one in report.mechanism], list),
        (
            "amplification",
            "Amplification by layer",
            lambda: [figures.amplification(norm, [(name, one.mechanism) for name, one in models]) for norm in felt],
            list,
        ),
        ("decisions", "Decisions around a sample", list, lambda: _planes(report.pictures, names)),
        (
            "representations",
            "Representations, clean and attacked",
            lambda: [_titled(representation_pca(one.pca, names), one) for one in report.pictures if one.pca.labels],
            list,
        ),
    ]
    shown: dict[str, Exhibit] = {}
    for name, title, draw, choose in made:
        drawn: list[Panel] = attempt(f"the figure {title!r}", draw, [])
        choices: list[Choice] = attempt(f"the figure {title!r}", choose, [])
        most = max((choice.panels for choice in choices), key=len, default=drawn)
        if most:
            shown[name] = Exhibit(name, len(shown) + 1, title, most, choices)
    return shown


def _titled(panel: Panel, item: Pictures) -> Panel:
    return Panel(words.threat(item.norm, item.eps), panel.label, panel.figure, panel.color, panel.keys)


def _planes(pictures: Sequence[Pictures], names: Sequence[str] | None) -> list[Choice]:
    """A choice a threat and sample: its planes side by side."""
    found = []
    for item in pictures:
        for sample in dict.fromkeys(plane.sample for plane in item.planes):
            drawn = [decision_plane(plane, names) for plane in item.planes if plane.sample == sample]
            found.append(Choice(words.threat(item.norm, item.eps), f"sample {sample}", drawn))
    return found[:_MOST_PLANES]


def _advice(report: AuditReport) -> dict[str, tuple[int, Advice]]:
    """Each advice with its number on the page."""
    return {item.id: (place, item) for place, item in enumerate(report.advice, 1)}


def points(report: AuditReport) -> list[dict[str, Any]]:
    """Pinch points with their advice: in full where it first comes up, by its number afterwards."""
    advice = _advice(report)
    told: set[str] = set()
    found = []
    for point in report.pinch_points:
        own = [name for name in point.advice if name in advice]
        first = [name for name in own if name not in told]
        told.update(first)
        found.append(
            {
                "point": point,
                "advice": [advice[name] for name in first],
                "again": [advice[name] for name in own if name not in first],
            }
        )
    return found


def general(report: AuditReport) -> list[tuple[int, Advice]]:
    """Advice that no pinch point names: for the model as a whole."""
    named = {name for point in report.pinch_points for name in point.advice}
    return [pair for name, pair in _advice(report).items() if name not in named]


def settled_parts(report: AuditReport) -> list[dict[str, Any]]:
    """For every threat, the stages that settled its samples as parts of a bar, and as a table."""
    found = []
    for item in report.threats:
        table = tables.settled(item)
        attacks = [row[0].text for row in table.rows if row[0].tone == "attack"]
        parts = [
            {
                "name": name.text,
                "share": share.value or 0.0,
                "count": count.text,
                "text": share.text,
                "tone": f"attack-{attacks.index(name.text) % 4}" if name.tone == "attack" else name.tone,
            }
            for name, count, share in table.rows
        ]
        found.append({"title": words.threat(item.norm, item.eps), "parts": parts})
    return found


def facts(report: AuditReport) -> list[str]:
    """One line of what was audited."""
    subject = report.subject
    return [
        f"{subject.parameters:,} parameters",
        f"{subject.classes} classes",
        " × ".join(map(str, subject.input_shape)) + " inputs",
        f"{report.data.count} of {report.data.of} samples of {report.data.name}",
        *(words.threat(item.norm, item.eps) for item in report.threats),
    ]


def warnings(report: AuditReport) -> list[str]:
    """All warnings once: those of the audit, then those of each threat with its name."""
    found = list(report.warnings)
    for item in report.threats:
        found += [f"{words.threat(item.norm, item.eps)}: {line}" for line in item.warnings if line not in found]
    return list(dict.fromkeys(found))


def render(report: AuditReport) -> str:
    """The page as text, below 6 MB: images are left out from the end where they would not fit, and the page says so."""
    shown = exhibits(report)
    data = contents(shown, palette.dark_of(1))
    for most in _IMAGES:
        text = _fill(report, shown, data, most)
        if len(text.encode()) < LIMIT:
            break
    return text


def _fill(report: AuditReport, shown: Mapping[str, Exhibit], data: Mapping[str, Any], most: int) -> str:
    return html.fill(
        "audit.html.j2",
        data,
        pack_above=_PACK_ABOVE,
        pack_library=True,
        report=report,
        figures=shown,
        facts=facts(report),
        verdict=list(zip([*VERDICT, *[""] * len(report.verdict)], report.verdict, strict=False)),
        accuracies=tables.accuracies(report),
        settled=settled_parts(report),
        points=points(report),
        general=general(report),
        pinch_table=tables.pinch_points(report.pinch_points),
        predicted={item.id: tables.predicted(item) for item in report.advice},
        trial=tables.trial(report.trial) if report.trial else None,
        compared=tables.compared(report.comparison) if report.comparison else None,
        gallery=gallery(report, most),
        warnings=warnings(report),
        percent=words.percent,
        terms=TERMS,
        docs={name: docs(name) for name in TERMS},
        address=address(),
        titles={choice.family: choice.family for item in shown.values() for choice in item.choices},
    )


def write(report: AuditReport, path: Path) -> Path:
    """Write the page to ``path`` atomically and return it.

    Args:
        report: what was audited; every number is shown as it is.
        path: the HTML file; its folder is made if need be.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    return html.put(render(report), path)
