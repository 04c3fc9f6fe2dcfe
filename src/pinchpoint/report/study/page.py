"""One self-contained HTML page: it opens offline, asks the network for nothing, and appears whole or not at all."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pinchpoint.errors import StoreError
from pinchpoint.records import Run, Summary
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report import html
from pinchpoint.report.glossary import TERMS
from pinchpoint.report.study import verdicts
from pinchpoint.report.study.claims import claim_groups
from pinchpoint.report.study.data import gather
from pinchpoint.report.study.exhibits import exhibits, payload
from pinchpoint.report.study.provenance import repeat
from pinchpoint.report.study.selectors import MOST_PICTURES
from pinchpoint.report.study.tables import correlation_rows, groups, model_rows

PACK_ABOVE = 600_000
"""Characters of figure data above which they are compressed."""


def render(summary: Summary, runs: Sequence[Run]) -> str:
    """The page as text.

    Args:
        summary: the study's summary.
        runs: the full records of its models; those the summary does not name are not drawn.

    Raises:
        StoreError: there are no runs.
    """
    if not runs:
        raise StoreError(
            "a report needs at least one finished run",
            f"none for the study {summary.study!r}",
            "run the study first, or name the folder that holds its records",
        )
    material = gather(summary, runs)
    shown = exhibits(material)
    return html.fill(
        "page.html.j2",
        payload(material, shown),
        pack_above=PACK_ABOVE,
        summary=summary,
        material=material,
        figures=shown,
        terms=TERMS,
        norm_names=NORM_NAMES,
        groups=groups(material),
        models=model_rows(material),
        correlations=correlation_rows(material),
        claims=claim_groups(summary),
        most_pictures=MOST_PICTURES,
        counted=verdicts.counted(summary.verdicts),
        rulings=verdicts.RULINGS,
        repeat=repeat(material),
    )


def write(summary: Summary, runs: Sequence[Run], path: Path) -> Path:
    """Write the report to ``path`` atomically and return it.

    Args:
        summary: the study's summary; its headline, findings, means and correlations are shown as they are.
        runs: the full records of its models.
        path: the HTML file; its folder is made if need be.

    Raises:
        StoreError: there are no runs, or the folder cannot be written.
    """
    return html.put(render(summary, runs), path)
