"""What became of a model made smaller: its size, its clean accuracy, and what each layer kept."""

from __future__ import annotations

from collections.abc import Iterator

from rich import box
from rich.table import Table

from pinchpoint.records import Compressed, Pruning


def compressed_parts(record: Compressed) -> Iterator[Table | str]:
    """Layers first where it was pruned, then sizes and accuracies side by side."""
    if record.pruning is not None:
        yield from _pruned(record.pruning)
    for left in record.left:
        yield f"left alone: {left.name} ({left.reason})"
    yield _sizes(record)


def _pruned(pruning: Pruning) -> Iterator[Table | str]:
    shared = (
        "" if pruning.threshold is None or pruning.allocation != "residual" else f", residual {pruning.threshold:.4g}"
    )
    yield (
        f"{pruning.unit} {'removed' if pruning.removed else 'set to zero'} by {pruning.allocation} allocation: "
        f"{pruning.met:.1%} of {pruning.count} (asked {pruning.ratio:.1%}{shared})"
    )
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("layers pruned together", overflow="fold")
    for heading in ("kept", "of", "residual"):
        table.add_column(heading, justify="right")
    for layer in pruning.layers:
        named = layer.name if len(layer.members) < 2 else f"{layer.name} (+{len(layer.members) - 1})"
        table.add_row(named, str(layer.kept), str(layer.units), f"{layer.residual:.4f}")
    yield table


def _sizes(record: Compressed) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    table.add_column("")
    table.add_column("before", justify="right")
    tuned = record.clean_cut != record.clean_after
    if tuned:
        table.add_column("cut", justify="right")
    table.add_column("after", justify="right")

    def row(name: str, before: str, after: str, cut: str = "") -> None:
        table.add_row(name, before, *([cut] if tuned else []), after)

    row("parameters", f"{record.parameters_before:,}", f"{record.parameters_after:,}")
    if record.pruning is not None:
        if not record.pruning.removed:
            row("not set to zero", f"{record.pruning.parameters_before:,}", f"{record.pruning.parameters_after:,}")
        row("operations", f"{record.pruning.flops_before:,}", f"{record.pruning.flops_after:,}")
        if record.pruning.seconds_before is not None and record.pruning.seconds_after is not None:
            before, after = record.pruning.seconds_before, record.pruning.seconds_after
            row(f"milliseconds ({record.pruning.batch} images)", f"{before * 1e3:.2f}", f"{after * 1e3:.2f}")
    if record.clean_before is not None and record.clean_after is not None and record.clean_cut is not None:
        row(
            f"clean accuracy ({record.samples} of {record.data})",
            f"{record.clean_before:.1%}",
            f"{record.clean_after:.1%}",
            f"{record.clean_cut:.1%}",
        )
    return table
