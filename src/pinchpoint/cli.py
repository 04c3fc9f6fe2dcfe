"""The command line: thin. Every mistake of the user is one sentence and exit status 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

import pinchpoint
from pinchpoint.errors import PinchpointError

if TYPE_CHECKING:
    from pinchpoint.evaluate import Progress as Attacked
    from pinchpoint.evaluate.sheet import Name
    from pinchpoint.learn.data import AnyDataset
    from pinchpoint.learn.source import Source
    from pinchpoint.records import Norm
    from pinchpoint.study import Failure, StudyConfig, Task

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
study_app = typer.Typer(
    no_args_is_help=True,
    help="""Run experiments from files. A study file names a base configuration, families of grids and seeds; it is
    validated whole before anything runs, and finished runs are never run again.""",
)
app.add_typer(study_app, name="study")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that run models side by side.  [default: one a core, four at most]")
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A checkpoint folder, a .safetensors file, or a name such as timm:resnet18.",
        show_default=False,
    ),
]
InputSize = Annotated[
    str | None, typer.Option(help="Size of the images, e.g. 32 or 3x32x32, where it is not the model's own.")
]
File = Annotated[Path, typer.Argument(help="A study file (YAML). See the README for one.", show_default=False)]

out = Console(markup=False, emoji=False, highlight=False)  # labels and paths are shown as they are
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version and leave.", is_eager=True)] = False,
) -> None:
    if version:
        typer.echo(f"pinchpoint {pinchpoint.__version__}")
        raise typer.Exit


@app.command()
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


@app.command()
def profile(
    model: Model,
    k_share: Annotated[float, typer.Option(help="Share of the terms counted as dominant.")] = 0.1,
    target: Annotated[float, typer.Option(help="Residual that the smallest sufficient k must reach.")] = 0.1,
    input_size: InputSize = None,
    as_json: Json = False,
) -> None:
    """Measure how compressible each layer of a model is.

    MODEL is a checkpoint folder; a .safetensors file with the state dict of
    a CIFAR ResNet; or a network of a library (timm:NAME, torchvision:NAME,
    open_clip:NAME) with random weights or, as timm:NAME@FILE, with those of
    a local file.

    [bold]residual[/bold] is the share of the sum outside the k largest terms: row norms,
    singular values, entries or column norms. Low means compressible. [bold]k[/bold] says
    how many would do, [bold]spread[/bold] how unequal they are. Norms are those of the
    layers as operators on inputs of the given size.
    """
    from pinchpoint.measure import profile as measure
    from pinchpoint.tables import profile_parts

    source = _open(model, input_size)
    result = measure(source.model, k_share=k_share, target=target, input_shape=source.input_shape)
    if as_json:
        typer.echo(result.model_dump_json())
        return
    typer.echo(f"Compressibility of {source.name}")
    for part in profile_parts(result, k_share, out.width):
        if isinstance(part, str):
            typer.echo(part)
        else:
            out.print(part)


@app.command()
def bound(
    model: Model,
    norm: Annotated[
        list[str] | None, typer.Option(help="l2 or linf; may be given twice.  [default: both]", show_default=False)
    ] = None,
    input_size: InputSize = None,
    budget: Annotated[float, typer.Option(help="Seconds for all that can be left out or cut short.")] = 20.0,
    k: Annotated[
        int | None, typer.Option(help="Dominant terms in Theorem 3.1.  [default: the tightest]", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Bound how far a model's outputs can move: certified Lipschitz constants.

    MODEL is what [bold]pinchpoint profile[/bold] takes.

    The constant of the whole network is bracketed: no pair of inputs is further
    apart than the upper bound says, and some pair is as far apart as the lower
    one. Then come the layers: their norms as operators, and Theorem 3.1 of the
    paper, [bold]norm <= structure x scale[/bold], for their matrices. A network that cannot
    be bounded gets estimates only, and what is in the way is named.
    """
    from pinchpoint.bound.sheet import sheet
    from pinchpoint.measure.spectrum import check_norm
    from pinchpoint.tables import bound_parts

    for wanted in norm or []:
        check_norm(wanted)
    source = _open(model, input_size)
    with err.status("") as status:
        result = sheet(
            source.model,
            norms=cast("list[Norm]", norm or ["l2", "linf"]),
            input_shape=source.input_shape,
            budget_s=budget,
            k=k,
            progress=lambda stage: status.update(Text(stage)),
        )
    if as_json:
        typer.echo(result.model_dump_json())
        return
    typer.echo(f"Bounds of {source.name} on inputs of {'x'.join(map(str, result.input_shape))}")
    for part in bound_parts(result, out.width):
        if isinstance(part, str):
            typer.echo(part)
        else:
            out.print(part)


@app.command()
def attack(
    model: Model,
    data: Annotated[
        str, typer.Option(help="digits, mnist, cifar10, cifar100, npz:PATH or torchvision:NAME.", show_default=False)
    ],
    threat: Annotated[
        list[str] | None,
        typer.Option(
            help="norm:eps, e.g. linf:8/255, l2:0.5, l1:12; may be given more than once.  [default: linf:8/255]"
        ),
    ] = None,
    attack: Annotated[str, typer.Option(help="standard, quick, apgd, pgd, fgsm, square or universal.")] = "standard",
    samples: Annotated[int, typer.Option(min=1, help="Test samples attacked, the first ones.")] = 1000,
    steps: Annotated[
        int | None,
        typer.Option(help="Of apgd (100), pgd (40), universal (30); queries of square (5000).", show_default=False),
    ] = None,
    curve: Annotated[int, typer.Option(help="Budgets up to eps for the curve of robust accuracy; 0 for none.")] = 10,
    certify: Annotated[
        float, typer.Option(help="Seconds to bound the model with first: what is certified needs no attack.")
    ] = 0.0,
    checks: Annotated[bool, typer.Option(help="Look for masked gradients.")] = True,
    low_precision: Annotated[bool, typer.Option(help="Search in bfloat16; finds are confirmed in float32.")] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Samples at a time.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")] = "auto",
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Folder for examples (safetensors) and attack.json; what was interrupted goes on from there.",
            show_default=False,
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Attack a model: how many samples does no attack fool?

    MODEL is what [bold]pinchpoint profile[/bold] takes; budgets are in pixels, from 0 to 1.

    [bold]standard[/bold] is the ensemble of Croce & Hein 2020 (AutoPGD with
    cross-entropy, targeted AutoPGD, FAB, Square), the figure to report;
    [bold]quick[/bold] is a shorter one. What has fallen is not attacked again, so weak
    models take seconds. Every example is checked for ball, box and label in
    float32, apart from the attack. [bold]universal[/bold] fits one perturbation on the
    training data and judges it on the test data.
    """
    from pinchpoint.attack import Threat
    from pinchpoint.evaluate import attack_sheet
    from pinchpoint.evaluate.sheet import Plan, Samples, write_sheet
    from pinchpoint.learn.device import device_of
    from pinchpoint.tables import attack_parts

    plan = Plan(
        attack=cast("Name", attack),
        steps=steps,
        curve=curve,
        certify_s=certify,
        checks=checks,
        low_precision=low_precision,
        batch_size=batch_size,
        seed=seed,
    )
    threats = [Threat.parse(text) for text in threat or ["linf:8/255"]]
    place = device_of(device)
    source, content = _open_with(model, data, samples)
    x, y = (tensor.to(place) for tensor in content.test.tensors(samples))
    fit = (content.x_train.to(place), content.y_train.to(place)) if attack == "universal" else None
    try:
        with _survivors() as watcher:
            result = attack_sheet(
                source.model.to(place), Samples(x, y, fit), threats, plan, out=out_dir, watcher=watcher
            )
    except KeyboardInterrupt:
        kept = "nothing is kept; with --out it would be" if out_dir is None else "the same command goes on from there"
        err.print(f"Interrupted: {kept}.", soft_wrap=True)
        raise typer.Exit(130) from None
    if out_dir is not None:
        write_sheet(result, out_dir)
    if as_json:
        typer.echo(result.model_dump_json())
        return
    typer.echo(f"{attack} on {source.name}: {len(x)} test samples of {content.name}")
    for part in attack_parts(result, out.width):
        if isinstance(part, str):
            typer.echo(part)
        else:
            out.print(part)


def _open_with(model: str, data: str, samples: int) -> tuple[Source, AnyDataset]:
    """Model and data that fit each other; what was assumed is told on stderr."""
    from pinchpoint.learn.data import DataConfig, load
    from pinchpoint.learn.source import fitting, open_model

    content = load(DataConfig(name=data))
    source = fitting(open_model(model, content.input_shape), content)
    whole = len(content.test)
    left = (
        [] if whole <= samples else [f"the first {samples} of {whole} test samples are attacked; --samples changes it"]
    )
    for note in (*source.notes, *left):
        err.print(f"note: {note}", soft_wrap=True)
    return source, content


def _open(model: str, input_size: str | None) -> Source:
    """The model, with what was assumed told on stderr."""
    from pinchpoint.learn.source import open_model, parse_size

    source = open_model(model, None if input_size is None else parse_size(input_size))
    for note in source.notes:
        err.print(f"note: {note}", soft_wrap=True)
    return source


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


@contextmanager
def _survivors() -> Iterator[Callable[[Attacked], None]]:
    """A bar for the stage that runs: how many samples it has seen, and how many of all still stand."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[standing]}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("starting", total=None, standing="")

        def watch(now: Attacked) -> None:
            standing = f"{now.standing} of {now.samples} stand"
            progress.update(bar, description=now.stage, completed=now.done, total=now.total, standing=standing)

        yield watch


def main() -> None:
    """Entry point: errors of the family become one sentence and exit status 2."""
    try:
        app()
    except PinchpointError as error:
        err.print(Text.assemble(("error:", "bold red"), f" {error}"), soft_wrap=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
