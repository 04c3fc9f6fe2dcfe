"""A page as a file: a template filled with everything it needs, written whole or not at all."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from pinchpoint.errors import StoreError
from pinchpoint.report.exhibit import packed, script_json
from pinchpoint.report.formatting import written


def _template(name: str) -> str:
    return (resources.files("pinchpoint.report") / "templates" / name).read_text(encoding="utf-8")


def environment() -> jinja2.Environment:
    """Templates of this package; whatever they are given is escaped, and a name they do not know is an error."""
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(_template),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["written"] = written
    made.filters["packed"] = packed
    return made


def fill(
    template: str, data: Mapping[str, Any], *, pack_above: int, pack_library: bool = False, **context: object
) -> str:
    """A page as text.

    Args:
        template: one that extends ``base.html.j2``.
        data: what the script draws (``exhibits.contents``).
        pack_above: characters of ``data`` above which they are compressed.
        pack_library: whether plotly is, too: a third of the size, for pages that hold images.
        context: what the template reads.
    """
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    return (
        environment()
        .get_template(template)
        .render(
            **context,
            data=script_json(data),
            pack_above=pack_above,
            pack_library=pack_library,
            dark=data["dark"],
            style=Markup(_template("style.css")),
            script=Markup(_template("page.js")),
            plotly=library if pack_library else Markup(library.replace("</script", "<\\/script")),
        )
    )


def put(text: str, path: Path) -> Path:
    """Write a page to ``path`` atomically and return it: a reader sees the old page or the new one, never half.

    Raises:
        StoreError: the folder cannot be made or written.
    """
    path = Path(path)
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
