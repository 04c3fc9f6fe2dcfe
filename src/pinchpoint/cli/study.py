"""``pinchpoint demo`` and ``pinchpoint study``: experiments as files."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pinchpoint.cli import checks
from pinchpoint.cli.options import (
    Address,
    EngineName,
    File,
    Json,
    Mirrors,
    Out,
    Overrides,
    Retry,
    Scale,
    StoreAt,
    Workers,
    folder,
    out,
)
from pinchpoint.cli.running import engine_of, run_study, write_report

if TYPE_CHECKING:
    from pinchpoint.study import Status, Store, StudyConfig

study_app = typer.Typer(
    no_args_is_help=True,
    help="""Run experiments from files. A study file names a base configuration, families of grids and seeds; it is
    validated whole before anything runs, and what is finished is never done again.""",
)


def demo(
    out_dir: Annotated[
        Path,
        typer.Option("--out", parser=folder, callback=checks.output, metavar="FOLDER", help="For stages and report."),
    ] = Path("runs/demo"),
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
    checks.address(address, engine)
    from pinchpoint.study.outputs.trackers import open_mirror

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
    from pinchpoint.report.terminal import estimate_sentence, plan_tables
    from pinchpoint.study import default_workers, open_store, plan, status
    from pinchpoint.study.cost.estimate import estimate
    from pinchpoint.study.cost.probe import seconds as probe_seconds

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
    write_report(config, store, folder, failures(config, store), as_json)


def _read(file: Path, values: list[str] | None, scale: str | None) -> StudyConfig:
    from pinchpoint.study import read
    from pinchpoint.utils.config import assignments

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
