"""``pinchpoint study export``, ``gc`` and ``schema``: what other programs read, and what nobody needs any more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pinchpoint.cli import checks
from pinchpoint.cli.options import Json, folder, out, place
from pinchpoint.utils.study_files import study_files

if TYPE_CHECKING:
    from pinchpoint.study import StudyConfig

StoreAt = Annotated[
    str | None,
    typer.Option(
        "--store",
        parser=place,
        metavar="PLACE",
        help="Where stages are kept: a folder, or e.g. s3://BUCKET/PREFIX. \\[default: runs/STUDY]",
    ),
]
Studies = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY...",
        callback=checks.studies,
        help="Study files, or names of studies that come with the package.",
        show_default=False,
    ),
]


def export(
    studies: Studies,
    out_file: Annotated[
        str,
        typer.Option(
            "--out",
            parser=place,
            callback=checks.rows_file,
            metavar="FILE",
            help="The file, .parquet, .csv or .jsonl; or its address, e.g. s3://BUCKET/rows.csv.",
        ),
    ],
    store_at: StoreAt = None,
    scale: Annotated[str | None, typer.Option(help="One of the files' scales.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Write one row for each finished model of the studies, for other tools.

    The records of stages need no exporting: DuckDB and Polars read STORE/stages/KIND/*/record.parquet as they are.
    """
    from pinchpoint.study import open_store
    from pinchpoint.study.outputs.export import rows_of, send, write

    rows = []
    for name in studies:
        config = _study(name, scale)
        rows += rows_of(config, open_store(store_at or Path("runs") / config.study))
    if "://" in out_file:
        send(rows, out_file)
    else:
        write(rows, Path(out_file))
    if as_json:
        typer.echo(json.dumps({"file": out_file, "rows": len(rows)}))
    else:
        typer.echo(f"{len(rows)} rows: {out_file}")


def gc(
    studies: Studies,
    store_at: Annotated[
        str | None,
        typer.Option(
            "--store",
            "--out",
            parser=place,
            metavar="PLACE",
            help="The store that is cleaned: a folder, or e.g. s3://BUCKET/PREFIX. \\[default: runs/STUDY, for one study]",
        ),
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Delete them; otherwise they are only shown.")] = False,
    as_json: Json = False,
) -> None:
    """Show the stages of a store that none of the studies needs, at any of their scales; delete them with --delete.

    Name every study that shares the store. What was made with KEY=VALUE on a command line belongs to none of them.
    """
    from pinchpoint.errors import ConfigError
    from pinchpoint.report.terminal import garbage_table
    from pinchpoint.study import open_store
    from pinchpoint.study.store import gc as rubbish

    configs = [config for name in studies for config in _scales(name)]
    own = {config.study for config in configs}
    if store_at is None and len(own) > 1:
        raise ConfigError("the store of several studies must be named", ", ".join(sorted(own)), "name it with --store")
    store = open_store(store_at or Path("runs") / own.pop())
    found = rubbish.find(store, rubbish.needed(configs))
    if delete:
        rubbish.delete(store, found)
    if as_json:
        kinds = {kind: {"stages": count, "bytes": size} for kind, (count, size) in found.by_kind.items()}
        typer.echo(json.dumps({"store": str(store), "kinds": kinds, "deleted": delete}))
        return
    if not found.sizes:
        typer.echo(f"Every stage in {store} is needed.")
        return
    out.print(garbage_table(found.by_kind))
    typer.echo("Deleted." if delete else "Nothing was deleted; --delete does it.")


def schema(
    what: Annotated[
        str, typer.Argument(callback=checks.schema, help="study, summary or audit: which one to print.")
    ] = "study",
    out_dir: Annotated[
        Path | None,
        typer.Option("--out", parser=folder, metavar="FOLDER", help="Write all of them here instead, NAME.json each."),
    ] = None,
) -> None:
    """Print the JSON schema of study files, of summary.json or of audit.json, for editors and other programs."""
    from pinchpoint.study.outputs import schema as schemas

    if out_dir is not None:
        for path in schemas.write(out_dir):
            typer.echo(str(path))
        return
    typer.echo(schemas.text_of(schemas.SCHEMAS[what]()), nl=False)


def _study(name: str, scale: str | None) -> StudyConfig:
    """A study file, or a study of the catalogue."""
    from pinchpoint.study import catalogue, read

    return catalogue(name, scale) if _is_ours(name) else read(Path(name), scale=scale)


def _scales(name: str) -> list[StudyConfig]:
    """A study as it stands, and at each of its scales."""
    from pinchpoint.study import scales
    from pinchpoint.utils.config import mapping, read_text

    if _is_ours(name):
        known = scales(name)
    else:
        known = list(mapping(read_text(Path(name), "a study file"), name, "study").get("scales") or {})
    return [_study(name, scale) for scale in (None, *known)]


def _is_ours(name: str) -> bool:
    """Whether a study of the catalogue is meant; a file of that name comes first."""
    return name in study_files() and not checks.there(name)
