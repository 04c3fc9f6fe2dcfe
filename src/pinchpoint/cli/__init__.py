"""The command line: thin. Every mistake of the user is one sentence and exit status 2."""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from rich.text import Text

import pinchpoint
from pinchpoint.cli import attack, compress, reproduce, store, study, train, weights
from pinchpoint.cli.options import err, out
from pinchpoint.errors import PinchpointError

__all__ = ["app", "err", "main", "out"]

app = typer.Typer(
    name="pinchpoint",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Measure how compressible a neural network is, bound what follows for its robustness, attack it for real, and
    report what was found.

    Start with [bold]pinchpoint demo[/bold]: three families of networks of rising compressibility, trained, measured, bounded
    and attacked in a minute or two, with a report to look at.""",
    rich_markup_mode="rich",
)

app.command("demo")(study.demo)
app.command("reproduce")(reproduce.reproduce)
study.study_app.command("export")(store.export)
study.study_app.command("gc")(store.gc)
study.study_app.command("schema")(store.schema)
app.add_typer(study.study_app, name="study")
app.command("profile")(weights.profile)
app.command("bound")(weights.bound)
app.command("attack")(attack.attack)
app.command("train")(train.train)
app.command("prune")(compress.prune)
app.command("factorize")(compress.factorize)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"pinchpoint {pinchpoint.__version__}")
        raise typer.Exit


def main() -> None:
    """Entry point: errors of the family become one sentence and exit status 2."""
    try:
        app()
    except PinchpointError as error:
        err.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(2)
