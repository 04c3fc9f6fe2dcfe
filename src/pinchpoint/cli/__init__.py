"""The command line: thin. Every mistake of the user is one sentence and exit status 2."""

from __future__ import annotations

import shlex
import sys
import warnings
from typing import Annotated, Any

import typer
from rich.text import Text

import pinchpoint
from pinchpoint.cli import attack, audit, compress, reproduce, store, study, train, weights
from pinchpoint.cli.options import err, out
from pinchpoint.errors import ConfigError, PinchpointError, PinchpointWarning

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
app.command("audit")(audit.audit)
app.command("compare")(audit.compare)
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


_UsageError: Any = typer.BadParameter.__base__
"""What typer raises for options, values and commands that it cannot take."""


def _tell(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    """Our own warnings are a sentence on stderr; all others stay as they are."""
    if issubclass(category, PinchpointWarning):
        err.print(f"warning: {message}", soft_wrap=True)
    else:
        _as_python(message, category, *where, **more)


_as_python = warnings.showwarning


def main() -> None:
    """Entry point: errors of the family, and of the command line itself, become one sentence and exit status 2."""
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _tell
            sys.exit(app(prog_name="pinchpoint", standalone_mode=False))
    except PinchpointError as error:
        said = error
    except _UsageError as error:
        rule = error.format_message().strip().rstrip(".")
        if not rule:  # a command that was named alone has shown its help
            sys.exit(2)
        command = "pinchpoint" if error.ctx is None else error.ctx.command_path
        said = ConfigError(rule, shlex.join(["pinchpoint", *sys.argv[1:]]), f"see {command} --help")
    err.print(Text.assemble(("error:", "bold red"), f" {said}"), soft_wrap=True)
    sys.exit(2)
