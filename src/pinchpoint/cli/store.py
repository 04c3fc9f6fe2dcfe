"""``pinchpoint study export``, ``gc`` and ``schema``: what other programs read, and what nobody needs any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pinchpoint.cli.options import Json, out

if TYPE_CHECKING:
    from pinchpoint.study import StudyConfig

StoreAt = Annotated[
    str | None,
    typer.Option("--store", help="Where stages are kept.  [default: runs/STUDY]", show_default=False),
]
Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY...", help="Study files, or names of studies that come with the package.", show_default=False
    ),
]


def export(
    studies: Studies,
    out_file: Annotated[Path, typer.Option("--out", help="The file: .parquet, .csv or .jsonl.", show_default=False)],
    store: StoreAt = None,
    scale: Annotated[str | None, typer.Option(help="One of the files' scales.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Write one row for each finished model of the studies, for other tools.

    The records of stages need no exporting: DuckDB and Polars read STORE/stages/KIND/*/record.parquet as they are.
    """
    from pinchpoint.study import open_store
    from pinchpoint.study.export import check_suffix, rows_of, write

    check_suffix(out_file)
    rows = []
    for name in studies:
        config = _study(name, scale)
        rows += rows_of(config, open_store(store or Path("runs") / config.study))
    write(rows, out_file)
    if as_json:
        typer.echo(json.dumps({"file": str(out_file), "rows": len(rows)}))
    else:
        typer.echo(f"{len(rows)} rows: {out_file}")


def gc(
    studies: Studies,
    folder: Annotated[str, typer.Option("--out", help="The store that is cleaned.", show_default=False)],
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; otherwise they are only shown.")] = False,
    as_json: Json = False,
) -> None:
    """Show the stages of a store that none of the studies needs, at any of their scales; delete them with --delete.

    Name every study that shares the store. What was made with KEY=VALUE on a command line belongs to none of them.
    """
    from pinchpoint.study import garbage as rubbish
    from pinchpoint.study import open_store
    from pinchpoint.tables import garbage_table

    store = open_store(folder)
    found = rubbish.find(store, rubbish.needed(config for name in studies for config in _scales(name)))
    if delete:
        rubbish.delete(store, found)
    if as_json:
        kinds = {kind: {"stages": count, "bytes": size} for kind, (count, size) in found.by_kind.items()}
        typer.echo(json.dumps({"store": folder, "kinds": kinds, "deleted": delete}))
        return
    if not found.sizes:
        typer.echo(f"Every stage in {folder} is needed.")
        return
    out.print(garbage_table(found.by_kind))
    typer.echo("Deleted." if delete else "Nothing was deleted; --delete does it.")


def schema(
    what: Annotated[str, typer.Argument(help="study or summary: which one to print.")] = "study",
    folder: Annotated[
        Path | None, typer.Option("--out", help="Write study.json and summary.json here instead.", show_default=False)
    ] = None,
) -> None:
    """Print the JSON schema of study files, or of summary.json, for editors and other programs."""
    from pinchpoint.errors import ConfigError
    from pinchpoint.study import schema as schemas

    if folder is not None:
        for path in schemas.write(folder):
            typer.echo(str(path))
        return
    if what not in schemas.SCHEMAS:
        raise ConfigError("a schema must be known by name", what, f"use {' or '.join(schemas.SCHEMAS)}")
    typer.echo(schemas.text_of(schemas.SCHEMAS[what]()), nl=False)


def _study(name: str, scale: str | None) -> StudyConfig:
    """A study file, or a study of the catalogue."""
    from pinchpoint.study import catalogue, names, read

    if name in names() and not Path(name).exists():
        return catalogue(name, scale)
    return read(Path(name), scale=scale)


def _scales(name: str) -> list[StudyConfig]:
    """A study as it stands, and at each of its scales."""
    from pinchpoint.configfile import mapping, read_text
    from pinchpoint.study import names, scales

    if name in names() and not Path(name).exists():
        known = scales(name)
    else:
        known = list(mapping(read_text(Path(name), "a study file"), name, "study").get("scales") or {})
    return [_study(name, scale) for scale in (None, *known)]
