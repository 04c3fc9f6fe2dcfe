"""What ``demo``, ``reproduce`` and ``study run`` share: an engine by its name, a study done under a bar, its report."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from pinchpoint.cli import checks
from pinchpoint.cli.options import err, out, say

if TYPE_CHECKING:
    from pinchpoint.study import Engine, Failure, Stage, Store, StudyConfig
    from pinchpoint.study.outputs.trackers import Mirror


def engine_of(name: str, workers: int | None, address: str | None) -> Engine:
    """The engine that was asked for.

    Raises:
        ConfigError: for a name that is unknown, or a package that is missing.
    """
    checks.address(address, checks.engine(name))
    from pinchpoint.study import Here, Processes, default_workers

    if name == "local":
        count = default_workers() if workers is None else workers
        return Here() if count == 1 else Processes(count)
    if name == "ray":
        from pinchpoint.study.engines.ray import Ray

        return Ray(address, workers)
    from pinchpoint.study.engines.slurm import Slurm

    return Slurm(workers)


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
    from pinchpoint.study.outputs.files import belongs_to
    from pinchpoint.study.outputs.trackers import mirrored

    store = open_store(folder if store_at is None else store_at)
    belongs_to(folder, config.study)
    planned = plan(config)
    before = len(store.finished() & planned.stages.keys())
    try:
        with (
            _progress(config.study, len(planned.stages), before) as bar,
            mirrored(bar, config, planned, store, mirrors, _warn) as watcher,
        ):
            failed = run(config, store, watcher=watcher, engine=engine, retry_failed=retry_failed)
            bar.over()
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
        write_report(config, store, folder, failed, as_json)
    if failed:
        err.print(
            f"{len(failed)} of {len(planned.tasks)} runs failed; the first: {failed[0].label}: {failed[0].reason}",
            soft_wrap=True,
        )
        raise typer.Exit(2)


def write_report(config: StudyConfig, store: Store, folder: Path, failed: list[Failure], as_json: bool) -> None:
    """Summary, Parquet and page of what is finished, and what they say on the console, or the summary as JSON."""
    from pinchpoint.report.study.page import write
    from pinchpoint.report.terminal import legend, summary_tables
    from pinchpoint.study import gather

    summary, runs = gather(config, store, failed, folder)
    page = write(summary, runs, folder / "report.html")
    if as_json:
        typer.echo(summary.model_dump_json())
        return
    for table in summary_tables(summary):
        out.print(table)
    typer.echo(legend(summary))
    say(summary.headline)
    for verdict in summary.verdicts:
        say(f"claim {verdict.claim}: {verdict.sentence}")
    for note in summary.notes:
        say(f"note: {note}")
    typer.echo(f"summary: {folder / 'summary.json'}\nrecords: {folder / 'records.parquet'}\nreport:  {page}")


def _warn(text: str) -> None:
    err.print(text, soft_wrap=True)


class _Watcher:
    """Shows stages as they end."""

    def __init__(self, progress: Progress, total: int, before: int, name: str) -> None:
        self.progress, self.total = progress, total
        self.bar = progress.add_task(name, total=total, completed=before, now="starting")

    def started(self, stage: Stage) -> None:
        self.progress.update(self.bar, now=f"{stage.name}, seed {stage.seed}")

    def ended(self, stage: Stage, reason: str | None) -> None:
        self.progress.update(self.bar, advance=1)
        if reason is not None:
            self.progress.update(self.bar, now=f"FAILED: {stage.name}, seed {stage.seed}")

    def over(self) -> None:
        """Every stage has ended: those that other drivers did, or that failed before, nobody has told of."""
        self.progress.update(self.bar, completed=self.total)


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
