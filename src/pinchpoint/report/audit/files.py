"""An audit as files: report.html, report.md, audit.json and figures/."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from pydantic import ValidationError

from pinchpoint.errors import StoreError
from pinchpoint.records import REPORT_SCHEMA, AuditReport
from pinchpoint.report.attempt import attempt
from pinchpoint.report.audit import markdown, page, print_files
from pinchpoint.report.html import put

PAGE, TEXT, RECORD, FIGURES = "report.html", "report.md", "audit.json", "figures"


def check_folder(folder: Path) -> None:
    """Refuse a folder that takes no files, before an hour of work.

    Raises:
        StoreError: where it cannot be made or written.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise StoreError(
            f"{folder} must be a folder that can be written",
            error.strerror or str(error),
            "choose another with --out",
        ) from None


def write(report: AuditReport, folder: Path) -> list[Path]:
    """Write everything; the page comes last, so that whoever sees it sees the rest.

    Returns:
        The paths, the page first; what could not be drawn is left out, with a ``PinchpointWarning``.

    Raises:
        StoreError: where the folder cannot be written.
    """
    # what was found out is kept before anything is drawn from it
    record = put(report.model_dump_json(indent=1) + "\n", folder / RECORD)
    drawn = print_files.write(report, folder / FIGURES)
    text: list[Path] = attempt(TEXT, lambda: [put(markdown.text(report), folder / TEXT)], [])
    shown: list[Path] = attempt(PAGE, lambda: [page.write(report, folder / PAGE)], [])
    return [*shown, *text, record, *drawn]


def address(path: Path, folder: Path) -> str:
    """The link from a page in ``folder`` to a file: relative, never a scheme such as ``javascript:``.

    >>> address(Path("a:b/c #1.html"), Path("."))
    './a%3Ab/c%20%231.html'
    """
    return "./" + quote(os.fsencode(Path(os.path.relpath(path, folder)).as_posix()))


def read(folder: Path) -> AuditReport:
    """The record of an audit's folder (or the file itself).

    Raises:
        StoreError: where there is none, it is damaged, or a newer version wrote it.
    """
    path = folder / RECORD if folder.is_dir() else folder
    remedy = "name a folder that pinchpoint audit wrote with --out"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise StoreError(f"an audit's folder holds {RECORD}", f"{path} ({error.strerror})", remedy) from None
    try:
        return AuditReport.model_validate_json(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "no JSON"
        rule = f"{path} must be an audit of schema {REPORT_SCHEMA}"
        raise StoreError(rule, f"{where}: {first['msg']}", "audit the model again, or update pinchpoint") from None
