"""``pinchpoint audit`` and ``pinchpoint compare``: one model or two, one command, a report."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from pinchpoint.cli import checks
from pinchpoint.cli.options import DATA_NAMES, ImageSize, Json, Model, Normalize, err, folder, out, say

if TYPE_CHECKING:
    from pinchpoint.auditing.clock import Told
    from pinchpoint.data.load import AnyDataset
    from pinchpoint.models.sources.open_model import Source
    from pinchpoint.records import AuditReport

FAILED = 1
"""Exit status where the condition of --fail-if holds."""


def audit(
    model: Model,
    data: Annotated[str, typer.Option(callback=checks.data, help=f"{DATA_NAMES}.", show_default=False)],
    threat: Annotated[
        list[str] | None,
        typer.Option(
            callback=checks.threats,
            help="norm:eps in pixels, e.g. linf:8/255 or l2:0.5; may be given once a norm.  \\[default: linf:8/255]",
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(
            callback=checks.model,
            help="Another model, judged on the same samples: what changes from MODEL to it?",
            show_default=False,
        ),
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Test samples judged, the first ones.")] = 1000,
    budget: Annotated[
        str | None,
        typer.Option(
            callback=checks.time,
            help="Time to spend, e.g. 90s or 10m: a full answer early, then sharper.",
            show_default=False,
        ),
    ] = None,
    try_it: Annotated[
        bool, typer.Option("--try", help="Follow the first advice on a copy, and see whether its prediction holds.")
    ] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the standard ensemble.")] = False,
    normalize: Normalize = None,
    fail_if: Annotated[
        str | None,
        typer.Option(
            callback=checks.condition,
            help='Exit with status 1 where this holds, e.g. "robust_accuracy < 0.3".',
            show_default=False,
        ),
    ] = None,
    image_size: ImageSize = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    device: Annotated[
        str, typer.Option(callback=checks.device, help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
    ] = "auto",
    out_dir: Annotated[
        Path,
        typer.Option(
            "--out", parser=folder, callback=checks.output, metavar="FOLDER", help="For the report, and its figures."
        ),
    ] = Path("runs/audit"),
    as_json: Json = False,
) -> None:
    """Audit a model: how compressible, how robust, which layers pinch, and what to do about it.

    Writes FOLDER/report.html (one file, offline), report.md, audit.json and
    figures/ as SVG. MODEL is a checkpoint folder, a file, timm:NAME@FILE,
    torchvision:NAME@FILE, open_clip:NAME@FILE, a .pt2 of torch.export, or
    py:package.module:factory, which runs your own code.

    [bold]--fail-if[/bold] knows clean_accuracy, robust_accuracy, universal_accuracy,
    certified_accuracy (lowest over threats, or with _linf, _l2, _l1 behind) and
    difference_robust_accuracy_linf (with --against), each also with _low or
    _high behind for an end of its 95 % interval, joined by and, or, not.
    """
    from pinchpoint.auditing import clock, conditions
    from pinchpoint.auditing.audit import audit as run
    from pinchpoint.auditing.audit import parsed
    from pinchpoint.data.config import DataConfig
    from pinchpoint.data.load import load
    from pinchpoint.report.audit.files import check_folder, write

    if fail_if is not None:
        conditions.check(fail_if)
    seconds = None if budget is None else clock.seconds(budget)
    threats = parsed(threat or ["linf:8/255"])
    check_folder(out_dir)
    content = load(DataConfig(name=data, image_size=image_size))
    sources = [_open(name, content, normalize) for name in (model, against) if name is not None]
    with _telling() as told:
        report = run(
            sources[0],
            content,
            threats,
            against=sources[1] if len(sources) > 1 else None,
            samples=samples,
            budget=seconds,
            standard=not quick,
            try_advice=try_it,
            seed=seed,
            device=device,
            told=told,
            command=_said(model, data, threat, against, samples, budget, seed, try_it, quick, normalize, image_size),
        )
    written = write(report, out_dir)
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        _show(report, written)
    if fail_if is not None and conditions.holds(fail_if, conditions.numbers(report)):
        err.print(f"Failed: {fail_if}", soft_wrap=True)
        raise typer.Exit(FAILED)


def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Folders of audits.", show_default=False)],
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="The page.")] = Path("runs/compare.html"),
) -> None:
    """Put many audits side by side: one page from the audit.json of each folder."""
    from pinchpoint.report.audit import compare as pages
    from pinchpoint.report.audit.files import PAGE, address, read

    reports = [read(folder) for folder in folders]
    links = [address(folder / PAGE, out_file.parent) for folder in folders]
    say(f"{pages.write(reports, out_file, links)}")


def _open(model: str, data: AnyDataset, normalize: str | None) -> Source:
    from pinchpoint.models.sources import open_model as sources

    source = sources.fitting(sources.open_model(model, data.input_shape, normalize=normalize), data)
    for note in source.notes:
        err.print(f"note: {note}", soft_wrap=True)
    return source


@contextmanager
def _telling() -> Iterator[Told]:
    """One line: the phase that runs, and what is known so far."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("{task.fields[known]}", markup=False),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        bar = progress.add_task("starting", total=None, known="")

        def told(phase: str, known: str) -> None:
            progress.update(bar, description=phase)
            if known:
                progress.update(bar, known=known)

        yield told


def _show(report: AuditReport, written: list[Path]) -> None:
    """The verdict, what to do first, where the rest is, and all that lowers trust in a number."""
    from pinchpoint.report.audit.page import warnings

    for sentence in report.verdict:
        out.print(sentence, soft_wrap=True)
    if report.advice:
        out.print(f"First: {report.advice[0].title}. {report.advice[0].because}", soft_wrap=True)
    for said in report.comparison.said if report.comparison else ():
        out.print(said, soft_wrap=True)
    if report.trial is not None:
        out.print(report.trial.said, soft_wrap=True)
    for one in report.threats:
        if one.certified_attacked:
            count = f"{one.certified_attacked} certified samples were attacked all the same"
            out.print(f"{count} under {one.norm}, and none fell.", soft_wrap=True)
    for model in (report, *([report.other] if report.other else [])):
        name = f"{model.subject.name}: " if report.other else ""
        for warning in warnings(model):
            err.print(f"warning: {name}{warning}", soft_wrap=True)
    out.print(f"Report: {written[0]}", soft_wrap=True)


def _said(
    model: str,
    data: str,
    threats: list[str] | None,
    against: str | None,
    samples: int,
    budget: str | None,
    seed: int,
    try_it: bool,
    quick: bool,
    normalize: str | None,
    image_size: int | None,
) -> str:
    """The command that makes the report again."""
    import shlex

    words = ["pinchpoint", "audit", model, "--data", data]
    for threat in threats or ():
        words += ["--threat", threat]
    valued = {
        "--against": against,
        "--budget": budget,
        "--normalize": normalize,
        "--image-size": None if image_size is None else str(image_size),
        "--samples": str(samples),
        "--seed": str(seed),
    }
    for name, value in valued.items():
        words += [] if value is None else [name, value]
    return shlex.join([*words, *(["--try"] if try_it else []), *(["--quick"] if quick else [])])
