"""One self-contained HTML page: it opens offline, asks the network for nothing, and appears whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from pinchpoint.errors import StoreError
from pinchpoint.records import Run, Summary
from pinchpoint.report import palette, verdicts
from pinchpoint.report.choices import MOST_PICTURES
from pinchpoint.report.claims import claim_groups
from pinchpoint.report.exhibits import exhibits, packed, payload, script_json
from pinchpoint.report.glossary import TERMS
from pinchpoint.report.material import NORM_NAMES, gather
from pinchpoint.report.repeat import repeat
from pinchpoint.report.table import correlation_rows, groups, model_rows, written

PACK_ABOVE = 600_000
"""Characters of figure data above which they are compressed."""


def _template(name: str) -> str:
    return (resources.files("pinchpoint.report") / "templates" / name).read_text(encoding="utf-8")


def _environment() -> jinja2.Environment:
    """Templates of this package; whatever they are given is escaped, and a name they do not know is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["written"] = written
    environment.filters["packed"] = packed
    return environment


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
    from plotly.offline import get_plotlyjs

    material = gather(summary, runs)
    shown = exhibits(material)
    dark = palette.dark_of(max((len(family.levels) for family in summary.families), default=1))
    page = _environment().get_template("page.html.j2")
    return page.render(
        summary=summary,
        material=material,
        figures=shown,
        data=script_json(payload(material, shown)),
        pack_above=PACK_ABOVE,
        dark=dark,
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
        style=Markup(_template("style.css")),
        script=Markup(_template("page.js")),
        plotly=Markup(get_plotlyjs().replace("</script", "<\\/script")),
    )


def write(summary: Summary, runs: Sequence[Run], path: Path) -> Path:
    """Write the report to ``path`` atomically and return it: a reader sees the old page or the new one, never half.

    Args:
        summary: the study's summary; its headline, findings, means and correlations are shown as they are.
        runs: the full records of its models.
        path: the HTML file; its folder is made if need be.

    Raises:
        StoreError: there are no runs, or the folder cannot be written.
    """
    path = Path(path)
    text = render(summary, runs)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise StoreError(
            "the report's folder must exist or be creatable, and be writable",
            f"{path} ({error.strerror or error})",
            "name another path for the report",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
    return path
