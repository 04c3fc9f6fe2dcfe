"""``pinchpoint profile`` and ``pinchpoint bound``: what the weights alone tell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.text import Text

from pinchpoint.cli.options import InputSize, Json, Model, Normalize, err, open_known, open_model, out, say, show

if TYPE_CHECKING:
    from pinchpoint.records import Norm


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
    from pinchpoint.report.terminal import profile_parts

    source = open_model(model, input_size)
    result = measure(source.model, k_share=k_share, target=target, input_shape=source.input_shape)
    if as_json:
        typer.echo(result.model_dump_json())
        return
    say(f"Compressibility of {source.name}")
    show(profile_parts(result, k_share, out.width))


def bound(
    model: Model,
    norm: Annotated[
        list[str] | None, typer.Option(help="l2 or linf; may be given twice. \\[default: both]", show_default=False)
    ] = None,
    input_size: InputSize = None,
    normalize: Normalize = None,
    budget: Annotated[float, typer.Option(help="Seconds for all that can be left out or cut short.")] = 20.0,
    k: Annotated[
        int | None, typer.Option(help="Dominant terms in Theorem 3.1. \\[default: the tightest]", show_default=False)
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
    from pinchpoint.bound.summary import sheet
    from pinchpoint.measure.spectrum import check_norm
    from pinchpoint.report.terminal import bound_parts

    for wanted in norm or []:
        check_norm(wanted)
    source = open_known(model, input_size, normalize)
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
    say(f"Bounds of {source.name} on inputs of {'x'.join(map(str, result.input_shape))}")
    show(bound_parts(result, out.width))
