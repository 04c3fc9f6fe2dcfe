"""``pinchpoint train``: one model from a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from pinchpoint.cli import checks
from pinchpoint.cli.options import Json, Normalize, err
from pinchpoint.cli.progress import epochs


def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe (YAML). See the README for one.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values that replace the file's.", show_default=False),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the initial weights and everything drawn.")] = 0,
    out_dir: Annotated[
        Path, typer.Option("--out", callback=checks.output, help="Folder for the checkpoint and training.json.")
    ] = Path("runs/model"),
    devices: Annotated[
        int, typer.Option(min=1, help="Processes on this machine that share each batch (Lightning Fabric).")
    ] = 1,
    nodes: Annotated[
        int,
        typer.Option(
            min=1,
            help="Machines that share each batch: the same command on each, with MASTER_ADDR, MASTER_PORT and NODE_RANK.",
        ),
    ] = 1,
    normalize: Normalize = None,
    as_json: Json = False,
) -> None:
    """Train one model, as a recipe says: data, network, penalties, constraints, adversary, schedule.

    The folder gets a checkpoint, which every other command takes as MODEL, and
    training.json. The state is saved every minute: what was interrupted, even by
    a kill, goes on from there and ends at the same weights. A study trains many models: [bold]pinchpoint study[/bold].
    """
    checks.recipe(recipe, overrides or ())
    from pinchpoint.recipes.folder import produce, unfinished
    from pinchpoint.recipes.recipe import read_recipe
    from pinchpoint.utils.config import assignments

    wanted = read_recipe(recipe, assignments(overrides or []), normalize)
    try:
        with epochs(wanted.train.epochs) as watch:
            training, trained = produce(wanted, out_dir, seed=seed, devices=devices, nodes=nodes, watch=watch)
    except KeyboardInterrupt:
        kept = "The same command goes on from the last minute." if unfinished(out_dir) else "Nothing is kept yet."
        err.print(f"Interrupted. {kept}", soft_wrap=True)
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
