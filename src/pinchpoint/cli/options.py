"""What the commands share: consoles, options, and models and data opened with their notes told on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table

from pinchpoint.cli import checks
from pinchpoint.errors import printable

if TYPE_CHECKING:
    from pinchpoint.data.load import AnyDataset
    from pinchpoint.models.sources.open_model import Source

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of tables.")]
Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes that run models side by side. \\[default: one a core, four at most]"),
]
Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        callback=checks.model,
        help="A checkpoint folder, a .safetensors file, or a name such as timm:resnet18.",
        show_default=False,
    ),
]
InputSize = Annotated[
    str | None,
    typer.Option(callback=checks.size, help="Size of the images, e.g. 32 or 3x32x32, where it is not the model's own."),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        callback=checks.normalisation,
        help="What the network expects, where the model does not say: none, imagenet, or mean=...,std=....",
        show_default=False,
    ),
]
DATA_NAMES = (
    "digits, mnist, cifar10, cifar100, npz:PATH, imagefolder:PATH, imagenet:PATH, huggingface:PATH or torchvision:NAME"
)
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of data in image files: resized, and cut to the middle square of this side.", show_default=False
    ),
]


def place(text: str) -> str:
    """A folder or an address as it is written; an empty one, as of a shell variable that is not set, is refused."""
    if not text.strip():
        raise typer.BadParameter("a folder or address must be named")
    return text


def folder(text: str | Path) -> Path:
    """A folder, likewise."""
    return Path(place(str(text)))


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        callback=checks.overrides,
        help="Values to replace, e.g. train.epochs=5 or seeds=[0].",
        show_default=False,
    ),
]
Scale = Annotated[str | None, typer.Option(help="One of the file's scales, e.g. quick.", show_default=False)]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        parser=folder,
        callback=checks.output,
        metavar="FOLDER",
        help="For stages and report. \\[default: runs/STUDY]",
    ),
]
StoreAt = Annotated[
    str | None,
    typer.Option(
        "--store",
        parser=place,
        metavar="PLACE",
        help="Where stages are kept: a folder, or e.g. s3://BUCKET/PREFIX. \\[default: that of --out]",
    ),
]
EngineName = Annotated[str, typer.Option("--engine", callback=checks.engine, help="local, ray or slurm.")]
Address = Annotated[
    str | None, typer.Option(help="Of the Ray cluster: auto, or HOST:PORT; this machine where left out.")
]
Mirrors = Annotated[
    list[str] | None,
    typer.Option(
        "--mirror", help="Show runs there too: tensorboard:FOLDER, mlflow:URI or wandb:PROJECT.", show_default=False
    ),
]
Retry = Annotated[bool, typer.Option("--retry-failed", help="Forget failures, and try again.")]
File = Annotated[
    Path,
    typer.Argument(callback=checks.study_file, help="A study file (YAML). See the README for one.", show_default=False),
]


class _Plain(Console):
    """A console on which no control character of a file reaches the terminal."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(printable(segment.text), segment.style)


def say(text: object) -> None:
    """A line on standard output, likewise."""
    typer.echo(printable(str(text)))


out = _Plain(markup=False, emoji=False, highlight=False)  # labels and paths are shown as they are
err = _Plain(markup=False, emoji=False, highlight=False, stderr=True)


def open_with(
    model: str, data: str, samples: int, image_size: int | None = None, normalize: str | None = None
) -> tuple[Source, AnyDataset]:
    """Model and data that fit each other, the normalisation known; what was assumed is told on stderr."""
    from pinchpoint.data.config import DataConfig
    from pinchpoint.data.load import load
    from pinchpoint.models.sources import open_model as sources

    content = load(DataConfig(name=data, image_size=image_size))
    source = sources.fitting(
        sources.with_known_normalisation(sources.open_model(model, content.input_shape, normalize)), content
    )
    whole = len(content.test)
    left = (
        [] if whole <= samples else [f"the first {samples} of {whole} test samples are attacked; --samples changes it"]
    )
    for note in (*source.notes, *left):
        err.print(f"note: {note}", soft_wrap=True)
    return source, content


def open_model(model: str, input_size: str | None) -> Source:
    """The model, with what was assumed told on stderr; whether it normalises need not be known."""
    return _told(model, input_size, None)


def open_known(model: str, input_size: str | None, normalize: str | None) -> Source:
    """The model, where it is known how its inputs are normalised, as constants and data in pixels need it."""
    from pinchpoint.models.sources.open_model import with_known_normalisation

    return with_known_normalisation(_told(model, input_size, normalize))


def _told(model: str, input_size: str | None, normalize: str | None) -> Source:
    from pinchpoint.models.sources import open_model as sources

    source = sources.open_model(model, None if input_size is None else sources.parse_size(input_size), normalize)
    for note in source.notes:
        err.print(f"note: {note}", soft_wrap=True)
    return source


def show(parts: Iterable[str | Table]) -> None:
    """Text and tables, in turn."""
    for part in parts:
        if isinstance(part, str):
            say(part)
        else:
            out.print(part)
