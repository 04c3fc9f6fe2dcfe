"""``pinchpoint prune`` and ``pinchpoint factorize``: a smaller model from one that is there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from pinchpoint.cli import checks
from pinchpoint.cli.options import (
    DATA_NAMES,
    ImageSize,
    InputSize,
    Json,
    Model,
    Normalize,
    err,
    open_known,
    show,
)
from pinchpoint.cli.progress import epochs as watched

if TYPE_CHECKING:
    from torch import nn

    from pinchpoint.compress.prune import Allocation, Criterion, FineTune, Unit
    from pinchpoint.data.load import AnyDataset
    from pinchpoint.models.sources.open_model import Source
    from pinchpoint.recipes.folder import Smaller, Tuning
    from pinchpoint.records import Compressed

Data = Annotated[
    str | None,
    typer.Option(callback=checks.data, help=f"Data to judge and fine-tune on: {DATA_NAMES}.", show_default=False),
]
Epochs = Annotated[int, typer.Option(min=0, help="Epochs of fine-tuning after each step.")]
Rate = Annotated[float, typer.Option(help="Learning rate of fine-tuning (SGD with momentum, half a cosine).")]
Adversary = Annotated[
    str | None,
    typer.Option(
        callback=checks.adversary,
        help="Fine-tune adversarially: norm:eps, e.g. linf:8/255; PGD on half of each batch.",
        show_default=False,
    ),
]
Penalties = Annotated[
    list[str] | None,
    typer.Option(help="NAME=STRENGTH while fine-tuning, e.g. spread=0.1; may be given more than once."),
]
Limit = Annotated[int | None, typer.Option(min=1, help="Fine-tune on the first N training images.", show_default=False)]
Seed = Annotated[int, typer.Option(min=0, help="Of fine-tuning.")]
Device = Annotated[
    str, typer.Option(callback=checks.device, help="cpu, cuda, cuda:1; auto takes a GPU where there is one.")
]
Samples = Annotated[int, typer.Option(min=1, help="Test images judged, the first ones.")]
Out = Annotated[
    Path, typer.Option("--out", callback=checks.output, help="Empty folder for the checkpoint and compression.json.")
]


def prune(
    model: Model,
    ratio: Annotated[float, typer.Option(help="The share that goes, from 0 to below 1.")],
    unit: Annotated[str, typer.Option(help="filters, heads, rows, singular values or entries.")] = "filters",
    allocation: Annotated[str, typer.Option(help="residual, uniform or global.")] = "residual",
    criterion: Annotated[str, typer.Option(help="Norm that ranks rows: l1 or l2.")] = "l2",
    steps: Annotated[int, typer.Option(min=1, help="Prune in so many steps, fine-tuning after each.")] = 1,
    keep: Annotated[
        list[str] | None, typer.Option(help="Layers to leave alone, e.g. layer3.*; may be given more than once.")
    ] = None,
    mask: Annotated[bool, typer.Option("--mask", help="Leave zeros instead of making tensors smaller.")] = False,
    batch: Annotated[
        int | None, typer.Option(min=1, help="Time a forward pass of N images before and after.", show_default=False)
    ] = None,
    data: Data = None,
    epochs: Epochs = 0,
    learning_rate: Rate = 0.01,
    threat: Adversary = None,
    penalty: Penalties = None,
    limit_train: Limit = None,
    samples: Samples = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    input_size: InputSize = None,
    normalize: Normalize = None,
    image_size: ImageSize = None,
    out_dir: Out = Path("runs/pruned"),
    as_json: Json = False,
) -> None:
    """Prune a model: filters, attention heads, rows, singular values or entries.

    [bold]residual[/bold] gives every layer the same residual, the share of its scores
    that goes, so that no layer becomes a bottleneck; [bold]uniform[/bold] takes the same
    share of each, [bold]global[/bold] ranks all layers' units together. Filters and heads
    are removed for real, coupled layers together; what cannot be removed stays,
    with the reason.
    """
    import torch

    from pinchpoint.compress import prune as cut
    from pinchpoint.recipes.folder import Smaller

    source = open_known(model, input_size, normalize)
    tuning, content, place = _prepare(
        source, data, epochs, learning_rate, threat, penalty, limit_train, image_size, seed, device
    )

    def smaller(network: nn.Module, fine_tune: FineTune | None) -> Smaller:
        pruned = cut.prune(
            network,
            ratio,
            input_shape=source.input_shape,
            unit=cast("Unit", unit),
            allocation=cast("Allocation", allocation),
            criterion=cast("Criterion", criterion),
            keep=keep or (),
            remove=False if mask else None,
            steps=steps,
            fine_tune=fine_tune,
            batch=batch,
        )
        return Smaller(pruned.model, pruned.report.left, pruned.report)

    how = {"ratio": ratio, "unit": unit, "allocation": allocation, "criterion": criterion, "steps": steps}
    with torch.random.fork_rng(devices=[]):
        _finish(source, smaller, how, tuning, content, samples, place, out_dir, as_json)


def factorize(
    model: Model,
    rank: Annotated[int | None, typer.Option(help="The same rank for every layer.", show_default=False)] = None,
    energy: Annotated[
        float | None, typer.Option(help="Keep this share of each layer's squared singular values.", show_default=False)
    ] = None,
    residual: Annotated[
        float | None, typer.Option(help="Leave out at most this share of their sum.", show_default=False)
    ] = None,
    layer: Annotated[
        list[str] | None, typer.Option(help="Only these layers, e.g. layer3.*; may be given more than once.")
    ] = None,
    include_head: Annotated[bool, typer.Option("--include-head", help="The last layer too.")] = False,
    data: Data = None,
    epochs: Epochs = 0,
    learning_rate: Rate = 0.01,
    threat: Adversary = None,
    penalty: Penalties = None,
    limit_train: Limit = None,
    samples: Samples = 1000,
    seed: Seed = 0,
    device: Device = "auto",
    input_size: InputSize = None,
    normalize: Normalize = None,
    image_size: ImageSize = None,
    out_dir: Out = Path("runs/factorized"),
    as_json: Json = False,
) -> None:
    """Replace layers by low-rank ones: two factors, from a truncated SVD.

    Give one of --rank, --energy and --residual. A layer whose rank would save no
    multiplications stays as it is.
    """
    from pinchpoint.compress import factorize as cut
    from pinchpoint.compress import plan
    from pinchpoint.recipes.folder import Smaller
    from pinchpoint.records import Skipped

    source = open_known(model, input_size, normalize)
    tuning, content, place = _prepare(
        source, data, epochs, learning_rate, threat, penalty, limit_train, image_size, seed, device
    )

    def smaller(network: nn.Module, fine_tune: FineTune | None) -> Smaller:
        chosen = plan(
            network,
            rank=rank,
            energy=energy,
            residual=residual,
            layers=layer or "*",
            include_head=include_head,
            input_shape=source.input_shape,
        )
        low = cut(network, ranks=chosen.ranks)
        if fine_tune is not None:
            fine_tune(low, lambda model: None)
        kinds = {name: type(module).__name__ for name, module in network.named_modules()}
        return Smaller(low, [Skipped(name=name, kind=kinds[name], reason=why) for name, why in chosen.left.items()])

    how = {"rank": rank, "energy": energy, "residual": residual, "include_head": include_head}
    _finish(source, smaller, how, tuning, content, samples, place, out_dir, as_json)


def _prepare(
    source: Source,
    data: str | None,
    epochs: int,
    rate: float,
    threat: str | None,
    penalty: list[str] | None,
    limit_train: int | None,
    image_size: int | None,
    seed: int,
    device: str,
) -> tuple[Tuning | None, AnyDataset | None, Any]:
    """Fine-tuning, data and device; options that do not go together are refused."""
    from pinchpoint.attack import Threat
    from pinchpoint.data.config import DataConfig
    from pinchpoint.data.load import load
    from pinchpoint.errors import ConfigError
    from pinchpoint.models.sources.open_model import fitting
    from pinchpoint.recipes.folder import Tuning
    from pinchpoint.recipes.recipe import Recipe
    from pinchpoint.utils.config import assignments, overridden, validate
    from pinchpoint.utils.device import device_of

    place = device_of(device)
    if epochs and data is None:
        raise ConfigError("fine-tuning needs data", "none", "give --data, or --epochs 0")
    if not epochs and (threat or penalty):
        raise ConfigError("a threat or penalty is for fine-tuning", "--epochs 0", "give --epochs, for example 3")
    if data is None and image_size is not None:
        raise ConfigError("an image size is for data", "no --data", "give --data, or --input-size for the model")
    if data is None:
        return None, None, place
    content = load(DataConfig(name=data, limit_train=limit_train, image_size=image_size))
    fitting(source, content)
    if not epochs:
        return None, content, place
    asked: dict[str, Any] = {
        "data": {"name": data, "limit_train": limit_train, "image_size": image_size},
        "train": {
            "epochs": epochs,
            "optimizer": "sgd",
            "learning_rate": rate,
            "weight_decay": 5e-4,
            "schedule": "cosine",
            "patience": None,
        },
        "penalty": assignments(penalty or []),
    }
    if threat is not None:
        ball = Threat.parse(threat)
        asked["adversarial"] = {"norm": ball.norm, "eps": ball.eps}
    return Tuning(validate(Recipe, overridden(asked, {}, "fine-tuning"), "fine-tuning"), content, seed), content, place


def _finish(
    source: Source,
    smaller: Callable[[nn.Module, FineTune | None], Smaller],
    how: dict[str, Any],
    tuning: Tuning | None,
    content: AnyDataset | None,
    samples: int,
    place: Any,
    folder: Path,
    as_json: bool,
) -> None:
    from pinchpoint.recipes.folder import compress
    from pinchpoint.report.terminal import compressed_parts

    asked = how if tuning is None else {**how, "fine_tuning": tuning.recipe.model_dump(mode="json")}
    try:
        with watched(
            0 if tuning is None else tuning.recipe.train.epochs, "making it smaller", "fine-tuning, "
        ) as watch:
            tuning = tuning and replace(tuning, watch=watch)
            record: Compressed = compress(
                source, smaller, folder, how=asked, data=content, samples=samples, tuning=tuning, device=place
            )
    except KeyboardInterrupt:
        err.print("Interrupted. Nothing is kept.", soft_wrap=True)
        raise typer.Exit(130) from None
    if as_json:
        typer.echo(record.model_dump_json())
        return
    show(compressed_parts(record))
    typer.echo(f"checkpoint: {folder}")
