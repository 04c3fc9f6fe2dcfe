"""``pinchpoint demo`` and ``pinchpoint study``: experiments from files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pinchpoint.cli.options import File, Json, Workers, err, out

if TYPE_CHECKING:
    from pinchpoint.study import Failure, StudyConfig, Task

study_app = typer.Typer(
    no_args_is_help=True,
    help="""Run experiments from files. A study file names a base configuration, families of grids and seeds; it is
    validated whole before anything runs, and finished runs are never run again.""",
)


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for runs and report.")] = Path("runs/demo"),
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train, measure, bound and attack three families of networks on handwritten digits, and write a report.

    The data come with scikit-learn; nothing is downloaded. What is finished is not done again, so a second call is quick.
    """
    from pinchpoint.study import catalogue

    _run(catalogue("demo"), out_dir, workers, as_json)


@study_app.command("run")
def study_run(
    file: File,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder for runs and report.")] = None,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Run what is missing of a study, then write summary, Parquet and report.

    Ctrl-C keeps what is finished; the same command goes on from there.
    """
    from pinchpoint.study import read

    config = read(file)
    _run(config, out_dir or _folder(config), workers, as_json)


@study_app.command("status")
def study_status(
    file: File,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the runs.")] = None,
    as_json: Json = False,
) -> None:
    """Show how far a study has come."""
    from pinchpoint.study import Store, read, status

    config = read(file)
    folder = out_dir or _folder(config)
    now = status(config, Store(folder))
    if as_json:
        content = {"study": config.study, "folder": str(folder), "total": now.total, "finished": now.finished}
        typer.echo(json.dumps(content | {"waiting": now.waiting}))
        return
    typer.echo(f"{config.study}: {now.finished} of {now.total} runs finished in {folder}")
    for label in now.waiting[:10]:
        typer.echo(f"  waiting: {label}")
    if len(now.waiting) > 10:
        typer.echo(f"  and {len(now.waiting) - 10} more")


@study_app.command("report")
def study_report(
    file: File,
    out_dir: Annotated[Path | None, typer.Option("--out", help="Folder of the runs.")] = None,
    as_json: Json = False,
) -> None:
    """Write summary, Parquet and report from the runs that are finished."""
    from pinchpoint.study import read

    config = read(file)
    _report(config, out_dir or _folder(config), [], as_json)


def _folder(config: StudyConfig) -> Path:
    return Path("runs") / config.study


def _run(config: StudyConfig, folder: Path, workers: int | None, as_json: bool) -> None:
    from pinchpoint.study import Store, default_workers, run

    store = Store(folder)
    tasks = config.plan()
    before = sum(store.has(task.id) for task in tasks)
    try:
        with _progress(config.study, len(tasks), before) as watcher:
            failures = run(config, store, watcher=watcher, workers=default_workers() if workers is None else workers)
    except KeyboardInterrupt:
        kept = sum(store.has(task.id) for task in tasks)
        err.print(
            f"Interrupted: {kept} of {len(tasks)} runs are kept in {folder}. The same command goes on from there.",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    if len(failures) < len(tasks):
        _report(config, folder, failures, as_json)
    if failures:
        err.print(
            f"{len(failures)} of {len(tasks)} runs failed; the first: {failures[0].label}: {failures[0].reason}",
            soft_wrap=True,
        )
        raise typer.Exit(2)


def _report(config: StudyConfig, folder: Path, failures: list[Failure], as_json: bool) -> None:
    from pinchpoint.report.page import write
    from pinchpoint.study import Store, gather
    from pinchpoint.tables import legend, summary_tables

    summary, runs = gather(config, Store(folder), failures)
    page = write(summary, runs, folder / "report.html")
    if as_json:
        typer.echo(summary.model_dump_json())
        return
    for table in summary_tables(summary):
        out.print(table)
    typer.echo(legend(summary))
    typer.echo(summary.headline)
    for note in summary.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"summary: {folder / 'summary.json'}\nrecords: {folder / 'records.parquet'}\nreport:  {page}")


class _Watcher:
    """Shows runs as they finish."""

    def __init__(self, progress: Progress, total: int, before: int, name: str) -> None:
        self.progress = progress
        self.bar = progress.add_task(name, total=total, completed=before, now="starting")

    def stage(self, task: Task, stage: str) -> None:
        self.progress.update(self.bar, now=f"{task.label}: {stage}")

    def finished(self, task: Task, failure: Failure | None) -> None:
        self.progress.update(self.bar, advance=1, now=f"{'FAILED' if failure else 'done'}: {task.label}")


@contextmanager
def _progress(name: str, total: int, before: int) -> Iterator[_Watcher]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=err, expand=True) as progress:
        yield _Watcher(progress, total, before, name)
