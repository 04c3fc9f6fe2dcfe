"""``pinchpoint demo``, ``pinchpoint reproduce`` and ``pinchpoint study``: experiments as files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pinchpoint.cli.options import File, Json, Workers, err, out

if TYPE_CHECKING:
    from pinchpoint.study import Engine, Failure, Stage, Status, StudyConfig

study_app = typer.Typer(
    no_args_is_help=True,
    help="""Run experiments from files. A study file names a base configuration, families of grids and seeds; it is
    validated whole before anything runs, and what is finished is never done again.""",
)

Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Values to replace, e.g. train.epochs=5 or seeds=[0].", show_default=False
    ),
]
Scale = Annotated[str | None, typer.Option(help="One of the file's scales, e.g. quick.", show_default=False)]
Out = Annotated[Path | None, typer.Option("--out", help="Folder for stages and report.  [default: runs/STUDY]")]
EngineName = Annotated[str, typer.Option("--engine", help="local, ray or slurm.")]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: auto, or HOST:PORT; this machine where left out.")
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Forget failures, and try again.")]


def demo(
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for stages and report.")] = Path("runs/demo"),
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Train, measure, bound and attack three families of networks on handwritten digits, and write a report.

    The data come with scikit-learn; nothing is downloaded. What is finished is not done again, so a second call is quick.
    """
    from pinchpoint.study import catalogue

    run_study(catalogue("demo"), out_dir, engine_of("local", workers, None), as_json)


@study_app.command("run")
def study_run(
    file: File,
    values: Overrides = None,
    scale: Scale = None,
    out_dir: Out = None,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = None,
    retry_failed: Retry = False,
    as_json: Json = False,
) -> None:
    """Do what is missing of a study, then write summary, Parquet and report.

    Ctrl-C keeps what is finished; the same command goes on from there. Two such commands at once share the work.
    """
    config = _read(file, values, scale)
    run_study(
        config, out_dir or _folder(config), engine_of(engine, workers, address), as_json, retry_failed=retry_failed
    )


@study_app.command("plan")
def study_plan(
    file: File, values: Overrides = None, scale: Scale = None, out_dir: Out = None, as_json: Json = False
) -> None:
    """Show what a study comes to: its runs, the stages they share, and what is finished. Nothing is done."""
    from pinchpoint.study import Store, plan, status
    from pinchpoint.tables import plan_tables

    config = _read(file, values, scale)
    planned = plan(config)
    now = status(config, Store(out_dir or _folder(config)), planned)
    if as_json:
        runs = [
            {"id": task.id, "label": task.label, "stages": ["/".join(key) for key in task.stages]}
            for task in planned.tasks
        ]
        typer.echo(json.dumps({"study": config.study, "runs": runs, "stages": now.stages}))
        return
    asked = sum(len(task.stages) for task in planned.tasks)
    typer.echo(f"{config.study}: {now.total} runs in {len(planned.stages)} stages ({asked} before sharing)")
    families = [(family.name, family.title, len(config.levels(family))) for family in config.families]
    for table in plan_tables(families, now.stages):
        out.print(table)


@study_app.command("status")
def study_status(
    file: File,
    values: Overrides = None,
    scale: Scale = None,
    out_dir: Out = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until all is done.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far a study has come, who is at what, and what failed."""
    from pinchpoint.study import Store, plan, status

    config = _read(file, values, scale)
    folder = out_dir or _folder(config)
    planned = plan(config)
    while True:
        now = status(config, Store(folder), planned)
        if as_json:
            typer.echo(json.dumps(_status_json(config, folder, now)))
        else:
            _show_status(config, folder, now)
        if not watch or now.finished + len(now.failed) >= now.total:
            return
        time.sleep(2)


@study_app.command("report")
def study_report(
    file: File, values: Overrides = None, scale: Scale = None, out_dir: Out = None, as_json: Json = False
) -> None:
    """Write summary, Parquet and report from the runs that are finished."""
    from pinchpoint.study import Store, failures

    config = _read(file, values, scale)
    folder = out_dir or _folder(config)
    store = Store(folder)
    _report(config, store, folder, failures(config, store), as_json)


def engine_of(name: str, workers: int | None, address: str | None) -> Engine:
    """The engine that was asked for.

    Raises:
        ConfigError: for a name that is unknown, or a package that is missing.
    """
    from pinchpoint.errors import ConfigError
    from pinchpoint.study import Here, Processes, default_workers

    if address is not None and name != "ray":
        raise ConfigError("an address is that of a Ray cluster", f"--engine {name}", "add --engine ray")
    if name == "local":
        count = default_workers() if workers is None else workers
        return Here() if count == 1 else Processes(count)
    if name == "ray":
        from pinchpoint.study.ray_engine import Ray

        return Ray(address, workers)
    if name == "slurm":
        from pinchpoint.study.slurm import Slurm

        return Slurm(workers)
    raise ConfigError("an engine must be known by name", name, "use local, ray or slurm")


def run_study(
    config: StudyConfig,
    folder: Path,
    engine: Engine,
    as_json: bool,
    *,
    store_at: Path | None = None,
    retry_failed: bool = False,
) -> None:
    """Do what is missing, with a bar, and write the report.

    Args:
        config: the study.
        folder: for summary and report.
        engine: who does it.
        as_json: print the summary as JSON.
        store_at: where stages are kept; ``folder`` where None.
        retry_failed: forget failures first.
    """
    from pinchpoint.study import Store, plan, run
    from pinchpoint.study.outputs import belongs_to

    store = Store(store_at or folder)
    belongs_to(folder, config.study)
    planned = plan(config)
    before = len(store.finished() & planned.stages.keys())
    try:
        with _progress(config.study, len(planned.stages), before) as watcher:
            failed = run(config, store, watcher=watcher, engine=engine, retry_failed=retry_failed)
    except KeyboardInterrupt:
        finished = store.finished()
        kept, whole = len(finished & planned.stages.keys()), len(planned.tasks) - len(planned.waiting(finished))
        err.print(
            f"Interrupted: {kept} of {len(planned.stages)} stages ({whole} of {len(planned.tasks)} runs) are kept in "
            f"{store.root}. The same command goes on from there.",
            soft_wrap=True,
        )
        raise typer.Exit(130) from None
    if len(failed) < len(planned.tasks):
        _report(config, store, folder, failed, as_json)
    if failed:
        err.print(
            f"{len(failed)} of {len(planned.tasks)} runs failed; the first: {failed[0].label}: {failed[0].reason}",
            soft_wrap=True,
        )
        raise typer.Exit(2)


def _read(file: Path, values: list[str] | None, scale: str | None) -> StudyConfig:
    from pinchpoint.configfile import assignments
    from pinchpoint.study import read

    return read(file, scale=scale, overrides=assignments(values or []))


def _folder(config: StudyConfig) -> Path:
    return Path("runs") / config.study


def _status_json(config: StudyConfig, folder: Path, now: Status) -> dict[str, object]:
    return {
        "study": config.study,
        "folder": str(folder),
        "total": now.total,
        "finished": now.finished,
        "stages": now.stages,
        "waiting": now.waiting,
        "failed": [{"run": failure.label, "reason": failure.reason} for failure in now.failed],
        "running": now.running,
    }


def _show_status(config: StudyConfig, folder: Path, now: Status) -> None:
    typer.echo(f"{config.study}: {now.finished} of {now.total} runs finished in {folder}")
    typer.echo("  stages: " + ", ".join(f"{kind} {done}/{of}" for kind, (done, of) in now.stages.items()))
    for name, owner in now.running.items():
        typer.echo(f"  running: {name} ({owner})")
    for failure in now.failed:
        typer.echo(f"  failed: {failure.label}: {failure.reason}")
    for label in now.waiting[:10]:
        typer.echo(f"  waiting: {label}")
    if len(now.waiting) > 10:
        typer.echo(f"  and {len(now.waiting) - 10} more")


def _report(config: StudyConfig, store: object, folder: Path, failed: list[Failure], as_json: bool) -> None:
    from pinchpoint.report.page import write
    from pinchpoint.study import Store, gather
    from pinchpoint.tables import legend, summary_tables

    assert isinstance(store, Store)
    summary, runs = gather(config, store, failed, folder)
    page = write(summary, runs, folder / "report.html")
    if as_json:
        typer.echo(summary.model_dump_json())
        return
    for table in summary_tables(summary):
        out.print(table)
    typer.echo(legend(summary))
    typer.echo(summary.headline)
    for verdict in summary.verdicts:
        typer.echo(f"{verdict.ruling}: {verdict.sentence}")
    for note in summary.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"summary: {folder / 'summary.json'}\nrecords: {folder / 'records.parquet'}\nreport:  {page}")


class _Watcher:
    """Shows stages as they end."""

    def __init__(self, progress: Progress, total: int, before: int, name: str) -> None:
        self.progress = progress
        self.bar = progress.add_task(name, total=total, completed=before, now="starting")

    def started(self, stage: Stage) -> None:
        self.progress.update(self.bar, now=f"{stage.name}, seed {stage.seed}")

    def ended(self, stage: Stage, reason: str | None) -> None:
        self.progress.update(self.bar, advance=1)
        if reason is not None:
            self.progress.update(self.bar, now=f"FAILED: {stage.name}, seed {stage.seed}")


@contextmanager
def _progress(name: str, total: int, before: int) -> Iterator[_Watcher]:
    """A bar over the stages; on stderr that is no terminal, one line at the end."""
    columns = (
        TextColumn("{task.description}", table_column=Column(no_wrap=True)),
        BarColumn(bar_width=16),
        MofNCompleteColumn(table_column=Column(no_wrap=True)),
        TimeElapsedColumn(table_column=Column(no_wrap=True)),
        TextColumn("left", table_column=Column(no_wrap=True)),
        TimeRemainingColumn(table_column=Column(no_wrap=True)),
        TextColumn("{task.fields[now]}", markup=False, table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis")),
    )
    with Progress(*columns, console=err, expand=True) as progress:
        yield _Watcher(progress, total, before, name)
