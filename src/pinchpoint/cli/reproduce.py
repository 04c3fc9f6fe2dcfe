"""``pinchpoint reproduce``: the paper's experiments, and those beyond it, by name."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from pinchpoint.cli.options import Json, Workers, err, out
from pinchpoint.cli.study import Address, EngineName, Retry, engine_of, run_study

if TYPE_CHECKING:
    from pinchpoint.report.results import Entry
    from pinchpoint.study import Store

Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME", help="Experiments; all: every one.", show_default=False)
]


def reproduce(
    names: Names = None,
    list_them: Annotated[bool, typer.Option("--list", help="Show what there is.")] = False,
    scale: Annotated[str, typer.Option(help="quick: minutes on two cores. paper: the original sizes.")] = "quick",
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the store and a folder for each.")] = Path(
        "runs/reproduce"
    ),
    page: Annotated[
        Path | None,
        typer.Option(help="Write what was found, of all that is finished at this scale, to this Markdown file."),
    ] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = None,
    retry_failed: Retry = False,
    as_json: Json = False,
) -> None:
    """Repeat experiments of the paper, each from its file, and say what became of its claims.

    All share one store, so a model that several look at is trained once. What is finished is not done again.
    """
    from pinchpoint.errors import ConfigError
    from pinchpoint.study import catalogue
    from pinchpoint.study.catalogue import reproducible

    known = reproducible()
    if list_them:
        _show(known, scale, as_json)
        return
    if not names and page is None:
        raise ConfigError("reproduce needs the name of an experiment", "none", "see --list, or write all")
    wanted = known if names == ["all"] else names or []
    configs = {name: catalogue(name, scale) for name in wanted}
    failed = 0
    for name, config in configs.items():
        if len(configs) > 1:
            err.print(f"{name}: {config.title}", soft_wrap=True)
        begun = time.monotonic()
        try:
            run_study(
                config,
                out_dir / f"{name}-{scale}",
                engine_of(engine, workers, address),
                as_json,
                store_at=out_dir / "store",
                retry_failed=retry_failed,
            )
        except typer.Exit as stop:
            if stop.exit_code != 2 or len(configs) == 1:
                raise
            failed += 1  # some of its runs; the other experiments go on
        finally:
            _add_time(out_dir / f"{name}-{scale}", time.monotonic() - begun)
    if page is not None:
        _write_page(page, out_dir, scale, known)
    if failed:
        raise typer.Exit(2)


def _show(known: list[str], scale: str, as_json: bool) -> None:
    import json

    from pinchpoint.study import catalogue, plan, scales

    rows = []
    for name in known:
        config = catalogue(name, scale if scale in scales(name) else None)
        rows.append((name, config.title, config.paper, len(plan(config).tasks)))
    if as_json:
        typer.echo(json.dumps([dict(zip(("name", "title", "paper", "runs"), row, strict=True)) for row in rows]))
        return
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("name", "what", "paper"):
        table.add_column(heading)
    table.add_column(f"runs ({scale})", justify="right")
    for name, title, paper, runs in rows:
        table.add_row(name, title, paper, str(runs))
    out.print(table)


_WALL = "wall_seconds"


def _add_time(folder: Path, seconds: float) -> None:
    """The wall time of an experiment, over all the calls it took."""
    if folder.is_dir():
        before = _time(folder) or 0.0
        (folder / _WALL).write_text(f"{before + seconds:.1f}\n", encoding="utf-8")


def _time(folder: Path) -> float | None:
    try:
        return float((folder / _WALL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_page(page: Path, out_dir: Path, scale: str, known: list[str]) -> None:
    from pinchpoint.errors import StoreError
    from pinchpoint.report import results
    from pinchpoint.study import Store

    store = Store(out_dir / "store")
    entries = [entry for name in known if (entry := _entry(name, scale, out_dir, store, page)) is not None]
    if not entries:
        raise StoreError("a page of results needs a finished experiment", f"none in {out_dir}", "run one first")
    command = f"pinchpoint reproduce --scale {scale} --page {page}"
    page.write_text(results.page(entries, command), encoding="utf-8")
    typer.echo(f"page: {page}")


def _entry(name: str, scale: str, out_dir: Path, store: Store, page: Path) -> Entry | None:
    from pinchpoint.errors import StoreError
    from pinchpoint.report.plates import plates
    from pinchpoint.report.results import Entry
    from pinchpoint.study import catalogue, plan
    from pinchpoint.study.rows import read_rows
    from pinchpoint.study.summary import summarise

    config = catalogue(name, scale)
    planned = plan(config)
    try:
        summary = summarise(config, planned, read_rows(config, planned, store))
    except StoreError:  # nothing is finished
        return None
    figures = page.parent / "figures" / "results"
    figures.mkdir(parents=True, exist_ok=True)
    paths = {}
    for family, svg in plates(summary).items():
        path = figures / f"{name}-{family}.svg"
        path.write_text(svg, encoding="utf-8")
        paths[family] = path.relative_to(page.parent).as_posix()
    return Entry(
        name=name,
        title=summary.title,
        paper=config.paper,
        about=config.about,
        scale=scale,
        summary=summary,
        command=f"pinchpoint reproduce {name} --scale {scale}",
        seconds=_time(out_dir / f"{name}-{scale}"),
        machine=summary.machine,
        figures=paths,
    )
