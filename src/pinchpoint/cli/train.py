"""``pinchpoint train``: one model from a recipe."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pinchpoint.cli.options import Json, err

if TYPE_CHECKING:
    from pinchpoint.recipe import Watch
    from pinchpoint.records import EpochRecord


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML). See the README for one.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and everything drawn.")] = 0,
    out_dir: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint and training.json.")] = Path(
        "runs/model"
    ),
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine that share each batch (Lightning Fabric).")
    ] = 1,
    nodes: Annotated[int, typer.Option(min=1, help="Machines that share each batch.")] = 1,
    as_json: Json = False,
) -> None:
    """Train one model, as a recipe says: data, network, penalties, constraints, adversary, schedule.

    The folder gets a checkpoint, which every other command takes as MODEL, and
    training.json. What was interrupted, even by a kill, goes on from there and
    ends at the same weights. A study trains many models: [bold]pinchpoint study[/bold].
    """
    from pinchpoint.configfile import assignments
    from pinchpoint.recipe import read_recipe
    from pinchpoint.workshop import produce

    wanted = read_recipe(recipe, assignments(overrides or []))
    try:
        with _epochs(wanted.train.epochs) as watch:
            training, trained = produce(wanted, out_dir, seed=seed, devices=devices, nodes=nodes, watch=watch)
    except KeyboardInterrupt:
        err.print(f"Interrupted: what is in {out_dir} is kept. The same command goes on from there.", soft_wrap=True)
        raise typer.Exit(130) from None
    if training is None:  # another process than the first
        return
    if as_json:
        typer.echo(json.dumps({"out": str(out_dir), **training.model_dump()}))
        return
    typer.echo(f"{'trained' if trained else 'already trained'}: {training.epochs} epochs, best {training.best_epoch}")
    if training.stopped is not None:
        typer.echo(f"stopped early: {training.stopped}")
    typer.echo(f"validation accuracy {training.validation_accuracy:.1%}, loss {training.validation_loss:.4g}")
    typer.echo(f"checkpoint: {out_dir}")


@contextmanager
def _epochs(epochs: int) -> Iterator[Watch]:
    """A bar over the steps of the epoch in hand, and what the last one came to."""
    from pinchpoint.recipe import Watch

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[last]}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("starting", total=None, last="")

        def step(epoch: int, done: int, of: int) -> None:
            progress.update(bar, description=f"epoch {epoch} of {epochs}", completed=done, total=of)

        def epoch(record: EpochRecord) -> None:
            loss, accuracy = record.validation_loss, record.validation_accuracy
            progress.update(bar, last=f"validation loss {loss:.4g}, accuracy {accuracy:.1%}")

        yield Watch(step, epoch)
