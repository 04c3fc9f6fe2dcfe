"""``pinchpoint demo``, ``pinchpoint reproduce`` and ``pinchpoint study``: experiments as files."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pinchpoint.cli.options import File, Json, Workers, err, out

if TYPE_CHECKING:
    from pinchpoint.study import Engine, Failure, Stage, Status, Store, StudyConfig
    from pinchpoint.study.mirrors import Mirror

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
StoreAt = Annotated[
    str | None,
    typer.Option(
        "--store", help="Where stages are kept: a folder, or e.g. s3://BUCKET/PREFIX.  [default: that of --out]"
    ),
]
EngineName = Annotated[str, typer.Option("--engine", help="local, ray or slurm.")]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: auto, or HOST:PORT; this machine where left out.")
]
Mirrors = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror", help="Show runs there too: tensorboard:FOLDER, mlflow:URI or wandb:PROJECT.", show_default=False
    ),
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
    store: StoreAt = None,
    workers: Workers = None,
    engine: EngineName = "local",
    address: Address = None,
    mirror: Mirrors = None,
    retry_failed: Retry = False,
    as_json: Json = False,
) -> None:
    """Do what is missing of a study, then write summary, Parquet and report.

    Ctrl-C keeps what is finished; the same command goes on from there. Two such commands at once share the work.
    """
    from pinchpoint.study.mirrors import open_mirror

    config = _read(file, values, scale)
    run_study(
        config,
        out_dir or _folder(config),
        engine_of(engine, workers, address),
        as_json,
        store_at=store,
        mirrors=[open_mirror(name) for name in mirror or []],
        retry_failed=retry_failed,
    )


@study_app.command("plan")
def study_plan(
    file: File,
    values: Overrides = None,
    scale: Scale = None,
    out_dir: Out = None,
    store_at: StoreAt = None,
    workers: Workers = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Try out a few steps of each kind of stage, to say how long.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Show what a study comes to: its runs, the stages they share, what is finished, and an estimate of the time left.

    Seconds come from like stages in the store, else from a probe of a minute at most. Nothing is kept.
    """
    from pinchpoint.study import default_workers, open_store, plan, status
    from pinchpoint.study.estimate import estimate
    from pinchpoint.study.probe import seconds as probe_seconds
    from pinchpoint.tables import estimate_sentence, plan_tables

    config = _read(file, values, scale)
    planned, store = plan(config), open_store(store_at or out_dir or _folder(config))
    now = status(config, store, planned)
    left = estimate(planned, store, workers=workers or default_workers(), probe=probe_seconds if probe else None)
    if as_json:
        runs = [
            {"id": task.id, "label": task.label, "stages": ["/".join(key) for key in task.stages]}
            for task in planned.tasks
        ]
        document = {"study": config.study, "runs": runs, "stages": now.stages, "estimate": left.as_json()}
        typer.echo(json.dumps(document))
        return
    together = sum(len(task.stages) for task in planned.tasks)
    typer.echo(f"{config.study}: {now.total} runs in {len(planned.stages)} stages ({together} before sharing)")
    families = [(family.name, family.title, len(config.levels(family))) for family in config.families]
    for table in plan_tables(families, now.stages, left.seconds):
        out.print(table)
    typer.echo(estimate_sentence(left))


@study_app.command("status")
def study_status(
    file: File,
    values: Overrides = None,
    scale: Scale = None,
    out_dir: Out = None,
    store_at: StoreAt = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every two seconds, until all is done.")] = False,
    as_json: Json = False,
) -> None:
    """Show how far a study has come, who is at what, and what failed."""
    from pinchpoint.study import open_store, plan, status

    config = _read(file, values, scale)
    store = open_store(store_at or out_dir or _folder(config))
    planned = plan(config)
    while True:
        now = status(config, store, planned)
        if as_json:
            typer.echo(json.dumps(_status_json(config, store, now)))
        else:
            _show_status(config, store, now)
        if not watch or now.finished + len(now.failed) >= now.total:
            return
        time.sleep(2)


@study_app.command("report")
def study_report(
    file: File,
    values: Overrides = None,
    scale: Scale = None,
    out_dir: Out = None,
    store_at: StoreAt = None,
    as_json: Json = False,
) -> None:
    """Write summary, Parquet and report from the runs that are finished."""
    from pinchpoint.study import failures, open_store

    config = _read(file, values, scale)
    folder = out_dir or _folder(config)
    store = open_store(store_at or folder)
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
    store_at: str | Path | None = None,
    mirrors: Sequence[Mirror] = (),
    retry_failed: bool = False,
) -> None:
    """Do what is missing, with a bar, and write the report.

    Args:
        config: the study.
        folder: for summary and report.
        engine: who does it.
        as_json: print the summary as JSON.
        store_at: where stages are kept; ``folder`` where None.
        mirrors: where runs are shown too.
        retry_failed: forget failures first.
    """
    from pinchpoint.study import open_store, plan, run
    from pinchpoint.study.mirrors import mirrored
    from pinchpoint.study.outputs import belongs_to

    store = open_store(store_at or folder)
    belongs_to(folder, config.study)
    planned = plan(config)
    before = len(store.finished() & planned.stages.keys())
    try:
        with (
            _progress(config.study, len(planned.stages), before) as bar,
            mirrored(bar, config, planned, store, mirrors, _warn) as watcher,
        ):
            failed = run(config, store, watcher=watcher, engine=engine, retry_failed=retry_failed)
    except KeyboardInterrupt:
        finished = store.finished()
        kept, whole = len(finished & planned.stages.keys()), len(planned.tasks) - len(planned.waiting(finished))
        err.print(
            f"Interrupted: {kept} of {len(planned.stages)} stages ({whole} of {len(planned.tasks)} runs) are kept in "
            f"{store}. The same command goes on from there.",
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


def _warn(text: str) -> None:
    err.print(text, soft_wrap=True)


def _read(file: Path, values: list[str] | None, scale: str | None) -> StudyConfig:
    from pinchpoint.configfile import assignments
    from pinchpoint.study import read

    return read(file, scale=scale, overrides=assignments(values or []))


def _folder(config: StudyConfig) -> Path:
    return Path("runs") / config.study


def _status_json(config: StudyConfig, store: Store, now: Status) -> dict[str, object]:
    return {
        "study": config.study,
        "folder": str(store),
        "total": now.total,
        "finished": now.finished,
        "stages": now.stages,
        "waiting": now.waiting,
        "failed": [{"run": failure.label, "reason": failure.reason} for failure in now.failed],
        "running": now.running,
    }


def _show_status(config: StudyConfig, store: Store, now: Status) -> None:
    typer.echo(f"{config.study}: {now.finished} of {now.total} runs finished in {store}")
    typer.echo("  stages: " + ", ".join(f"{kind} {done}/{of}" for kind, (done, of) in now.stages.items()))
    for name, owner in now.running.items():
        typer.echo(f"  running: {name} ({owner})")
    for failure in now.failed:
        typer.echo(f"  failed: {failure.label}: {failure.reason}")
    for label in now.waiting[:10]:
        typer.echo(f"  waiting: {label}")
    if len(now.waiting) > 10:
        typer.echo(f"  and {len(now.waiting) - 10} more")


def _report(config: StudyConfig, store: Store, folder: Path, failed: list[Failure], as_json: bool) -> None:
    from pinchpoint.report.page import write
    from pinchpoint.study import gather
    from pinchpoint.tables import legend, summary_tables

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
