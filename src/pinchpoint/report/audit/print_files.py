"""The figures of an audit as files for papers: SVG, and PDF where cairosvg is installed (the extra ``paper``)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from pinchpoint.errors import ConfigError, StoreError
from pinchpoint.records import AuditReport
from pinchpoint.report.attempt import attempt
from pinchpoint.report.audit import print as plates
from pinchpoint.report.audit import print_decisions
from pinchpoint.report.audit.figures import named


def drawn(report: AuditReport) -> dict[str, str]:
    """The figures as SVG, light and without CSS variables, by the name of their file; those without data are left out."""
    models = named(report)
    names = report.data.class_names
    made: dict[str, Callable[[], str]] = {}
    if any(item.curve for item in report.threats):
        made["budgets"] = lambda: plates.curves(report)
    if report.pinch_points:
        made["pinch-points"] = lambda: plates.ranking(report.pinch_points)
    for item in report.mechanism:
        if item.layers:
            traced = [(name, one.mechanism) for name, one in models]
            made[f"layers-{item.norm}"] = partial(plates.layers, item.norm, traced)
    for shown in report.pictures:
        for sample in dict.fromkeys(plane.sample for plane in shown.planes):
            made[f"decisions-{shown.norm}-{sample}"] = partial(print_decisions.planes, shown, sample, names)
        if shown.pca.labels:
            made[f"representations-{shown.norm}"] = partial(print_decisions.representations, shown, names)
    found = {name: attempt(f"the figure {name}", draw, "") for name, draw in made.items()}
    return {name: text for name, text in found.items() if text}


def write(report: AuditReport, folder: Path, *, pdf: bool | None = None) -> list[Path]:
    """Write the figures into ``folder`` and return their paths.

    Args:
        report: what was audited.
        folder: made if need be.
        pdf: whether each is written as PDF, too; by default, where that can be done.

    Raises:
        ConfigError: PDF is asked for, and cairosvg is not installed or finds no cairo.
        StoreError: the folder cannot be made or written.
    """
    folder = Path(folder)
    printer = None if pdf is False else _printer()
    if pdf and printer is None:
        raise ConfigError(
            "figures as PDF need cairosvg and the cairo library",
            "one of them missing",
            "install the extra with: pip install 'pinchpoint[paper]', and cairo with your system's package manager; or "
            "leave PDF out",
        )
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in drawn(report).items():
            paths.append(folder / f"{name}.svg")
            paths[-1].write_text(text, encoding="utf-8")
            if printer is not None:
                paths.append(folder / f"{name}.pdf")
                paths[-1].write_bytes(printer(text))
    except OSError as error:
        raise StoreError(
            "the figures' folder must exist or be creatable, and be writable",
            f"{folder} ({error.strerror or error})",
            "name another folder for the figures",
        ) from error
    return paths


def _printer() -> Callable[[str], bytes] | None:
    """SVG to PDF, with text as text; None where that cannot be done here."""
    try:
        import cairosvg
    except (ImportError, OSError):  # OSError: the package is there, the library is not
        return None
    return lambda text: bytes(cairosvg.svg2pdf(bytestring=text.encode()))
