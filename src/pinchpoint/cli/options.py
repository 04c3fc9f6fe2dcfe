"""What the commands share: consoles, options, and models and data opened with their notes told on stderr."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from pinchpoint.learn.data import AnyDataset
    from pinchpoint.learn.source import Source

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
DATA_NAMES = (
    "digits, mnist, cifar10, cifar100, npz:PATH, imagefolder:PATH, imagenet:PATH, huggingface:PATH or torchvision:NAME"
)
ImageSize = Annotated[
    int | None,
    typer.Option(
        min=1, help="Of data in image files: resized, and cut to the middle square of this side.", show_default=False
    ),
]
File = Annotated[Path, typer.Argument(help="A study file (YAML). See the README for one.", show_default=False)]

out = Console(markup=False, emoji=False, highlight=False)  # labels and paths are shown as they are
err = Console(markup=False, emoji=False, highlight=False, stderr=True)


def open_with(model: str, data: str, samples: int, image_size: int | None = None) -> tuple[Source, AnyDataset]:
    """Model and data that fit each other; what was assumed is told on stderr."""
    from pinchpoint.learn import source as sources
    from pinchpoint.learn.data import DataConfig, load

    content = load(DataConfig(name=data, image_size=image_size))
    source = sources.fitting(sources.open_model(model, content.input_shape), content)
    whole = len(content.test)
    left = (
        [] if whole <= samples else [f"the first {samples} of {whole} test samples are attacked; --samples changes it"]
    )
    for note in (*source.notes, *left):
        err.print(f"note: {note}", soft_wrap=True)
    return source, content


def open_model(model: str, input_size: str | None) -> Source:
    """The model, with what was assumed told on stderr."""
    from pinchpoint.learn import source as sources

    source = sources.open_model(model, None if input_size is None else sources.parse_size(input_size))
    for note in source.notes:
        err.print(f"note: {note}", soft_wrap=True)
    return source


def show(parts: Iterable[str | Table]) -> None:
    """Text and tables, in turn."""
    for part in parts:
        if isinstance(part, str):
            typer.echo(part)
        else:
            out.print(part)
