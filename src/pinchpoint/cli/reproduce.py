"""``pinchpoint reproduce``: the paper's experiments, and those beyond it, by name."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from pinchpoint.cli import checks
from pinchpoint.cli.options import Address, EngineName, Json, Mirrors, Retry, Workers, err, folder, out, place
from pinchpoint.cli.running import engine_of, run_study
from pinchpoint.errors import ConfigError

if TYPE_CHECKING:
    from pinchpoint.report.study.results import Entry
    from pinchpoint.study import Key, Store, StudyConfig

Names = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME", callback=checks.experiments, help="Experiments; all: every one.", show_default=False
    ),
]


def reproduce(
    names: Names = None,
    list_them: Annotated[bool, typer.Option("--list", help="Show what there is.")] = False,
    scale: Annotated[str, typer.Option(help="quick: minutes on two cores. paper: the original sizes.")] = "quick",
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out",
            parser=folder,
            callback=checks.output,
            metavar="FOLDER",
            help="Has the store, and a folder for each.",
        ),
    ] = Path("runs/reproduce"),
    store_at: Annotated[
        str | None,
        typer.Option(
            "--store",
            parser=place,
            metavar="PLACE",
            help="Where stages are kept: a folder, or e.g. s3://BUCKET/PREFIX. \\[default: store in --out]",
        ),
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="Write what was found, of all that is finished at this scale, to this Markdown file."),
    ] = None,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = None,
    mirror: Mirrors = None,
    retry_failed: Retry = False,
    as_json: Json = False,
) -> None:
    """Repeat experiments of the paper, each from its file, and say what became of its claims.

    All share one store, so a model that several look at is trained once. What is finished is not done again.
    """
    if not (names or list_them or page):
        raise ConfigError("reproduce needs the name of an experiment", "none", "see --list, or write all")
    if page is not None:
        _check_page(page)
    checks.address(address, engine)
    from pinchpoint.study import catalogue
    from pinchpoint.study.config.catalogue import reproducible
    from pinchpoint.study.outputs.trackers import open_mirror

    known = reproducible()
    wanted = known if "all" in (names or ()) else list(dict.fromkeys(names or ()))
    configs = {name: catalogue(name, scale) for name in wanted or known}
    if list_them:
        _show(configs, scale, as_json)
        return
    store, mirrors, failed = store_at or out_dir / "store", [open_mirror(one) for one in mirror or []], 0
    for name in wanted:
        config = configs[name]
        if len(wanted) > 1:
            err.print(f"{name}: {config.title}", soft_wrap=True)
        begun = time.monotonic()
        try:
            run_study(
                config,
                out_dir / f"{name}-{scale}",
                engine_of(engine, workers, address),
                as_json,
                store_at=store,
                mirrors=mirrors,
                retry_failed=retry_failed,
            )
        except typer.Exit as stop:
            if stop.exit_code != 2 or len(wanted) == 1:
                raise
            failed += 1  # some of its runs; the other experiments go on
        finally:
            _add_time(out_dir / f"{name}-{scale}", time.monotonic() - begun)
    if page is not None:
        _write_page(page, out_dir, store, scale, known)
    if failed:
        raise typer.Exit(2)


def _check_page(page: Path) -> None:
    """Refuse what no page can be, before anything is run for it.

    Raises:
        ConfigError: where it is a folder, or the folder it would lie in is not there.
    """
    if page.is_dir():
        raise ConfigError("a page of results is a file", f"the folder {page}", "name a Markdown file in it")
    if not page.parent.is_dir():
        raise ConfigError("the folder of a page must be there", str(page.parent), "make it first, or correct the path")


def _show(configs: Mapping[str, StudyConfig], scale: str, as_json: bool) -> None:
    from pinchpoint.study import plan

    rows = [(name, config.title, config.paper, len(plan(config).tasks)) for name, config in configs.items()]
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
    """The wall time of an experiment, over all the calls it took; not worth an error where it cannot be kept."""
    before = _time(folder) or 0.0
    with suppress(OSError):
        (folder / _WALL).write_text(f"{before + seconds:.1f}\n", encoding="utf-8")


def _time(folder: Path) -> float | None:
    try:
        return float((folder / _WALL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_page(page: Path, out_dir: Path, store_at: str | Path, scale: str, known: list[str]) -> None:
    from pinchpoint.errors import StoreError
    from pinchpoint.report.study import results
    from pinchpoint.study import open_store

    store = open_store(store_at)
    finished = store.finished()
    entries = [entry for name in known if (entry := _entry(name, scale, out_dir, store, finished, page)) is not None]
    if not entries:
        raise StoreError("a page of results needs a finished experiment", f"none in {store}", "run one first")
    command = f"pinchpoint reproduce --scale {scale} --page {page}"
    _write_text(page, results.page(entries, command))
    typer.echo(f"page: {page}")


def _write_text(path: Path, text: str) -> Path:
    from pinchpoint.study.outputs.files import write_whole

    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _entry(name: str, scale: str, out_dir: Path, store: Store, finished: set[Key], page: Path) -> Entry | None:
    """What came of an experiment, with its figures drawn; None where no run of it is finished."""
    from pinchpoint.report.study.print import plates
    from pinchpoint.report.study.results import Entry
    from pinchpoint.study import catalogue, plan
    from pinchpoint.study.analysis.rows import read_rows
    from pinchpoint.study.analysis.summary import summarise

    config = catalogue(name, scale)
    planned = plan(config)
    if len(planned.waiting(finished)) == len(planned.tasks):
        return None
    summary = summarise(config, planned, read_rows(config, planned, store))
    figures = page.parent / "figures" / "results"
    paths = {}
    for family, svg in plates(summary).items():
        path = _write_text(figures / f"{name}-{family}.svg", svg)
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
