"""``pinchpoint attack``: how many samples does no attack fool?"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from pinchpoint.cli import checks
from pinchpoint.cli.options import DATA_NAMES, ImageSize, Json, Model, Normalize, err, open_with, out, say, show

if TYPE_CHECKING:
    from pinchpoint.evaluate import Progress as Attacked
    from pinchpoint.evaluate.named_attacks import Name


def attack(
    model: Model,
    data: Annotated[str, typer.Option(callback=checks.data, help=f"{DATA_NAMES}.", show_default=False)],
    threat: Annotated[
        list[str] | None,
        typer.Option(
            callback=checks.threats,
            help="norm:eps, e.g. linf:8/255, l2:0.5, l1:12; may be given more than once. \\[default: linf:8/255]",
        ),
    ] = None,
    attack: Annotated[
        str,
        typer.Option(
            callback=checks.chosen("standard", "quick", "apgd", "pgd", "fgsm", "square", "universal"),
            help="standard, quick, apgd, pgd, fgsm, square or universal.",
        ),
    ] = "standard",
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
    image_size: ImageSize = None,
    normalize: Normalize = None,
    seed: Annotated[int, typer.Option(min=0, help="Of everything drawn.")] = 0,
    device: Annotated[
        str, typer.Option(callback=checks.device, help="cpu, cuda, cuda:1, mps; auto takes a GPU where there is one.")
    ] = "auto",
    out_dir: Annotated[
        Path | None,
        typer.Option(
            "--out",
            callback=checks.output,
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
    from pinchpoint.evaluate.named_attacks import Plan, Samples, write_sheet
    from pinchpoint.report.terminal import attack_parts
    from pinchpoint.utils.device import device_of

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
    source, content = open_with(model, data, samples, image_size, normalize)
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
    say(f"{attack} on {source.name}: {len(x)} test samples of {content.name}")
    show(attack_parts(result, out.width))


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
