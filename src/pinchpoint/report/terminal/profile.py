"""A model's compressibility, one line a layer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator

from rich import box
from rich.table import Table

from pinchpoint.records import LayerProfile, Profile, View
from pinchpoint.report.terminal.text import Column, inside

_VIEWS = {"neuron": "neur", "spectral": "spec", "entrywise": "entr", "column": "col"}


def profile_parts(result: Profile, k_share: float, width: int) -> Iterator[Table | str]:
    """A table with one line a layer, and sentences that explain it. More columns where the terminal is wider."""
    columns, legend = _columns(result, k_share, width - 1)
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        table.add_column(column.heading, justify="right" if table.columns else "left")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    table.add_section()
    table.add_row(*(column.network for column in columns))
    yield table
    yield from legend
    without = Counter(layer.norm_reason for layer in result.layers if layer.norm_reason is not None)
    for reason, count in without.items():
        yield f"no norm for {count} of {len(result.layers)} layers: {reason}"
    skipped = Counter((module.kind, module.reason) for module in result.skipped)
    for (kind, reason), count in skipped.items():
        yield f"left out: {count} {kind}: {reason}"


def _columns(result: Profile, k_share: float, room: int) -> tuple[list[Column], list[str]]:
    """The columns that fit, the most telling first, and what they mean."""
    layers = result.layers
    prefix = inside([layer.name for layer in layers])

    def column(heading: str, show: Callable[[LayerProfile], str], network: str = "") -> Column:
        return Column(heading, [show(layer) for layer in layers], network)

    def in_view(name: str, heading: str, show: Callable[[View], str], network: str = "") -> Column:
        return column(f"{heading}\n{_VIEWS[name]}", lambda layer: show(getattr(layer, name)), network)

    share = "a tenth" if k_share == 0.1 else f"{k_share:g}"
    shown = [
        column("layer", lambda layer: layer.name.removeprefix(prefix), "network"),
        column("shape", lambda layer: f"{layer.rows}x{layer.columns}"),
        column("eff.\nrank", lambda layer: f"{layer.effective_rank:.1f}"),
    ]
    for name in _VIEWS:
        mean = f"{1 - getattr(result, name):.3f}"
        shown.append(in_view(name, "resid", lambda view: f"{view.residual:.3f}", mean))
    legend = [
        "neur: row norms; spec: singular values; entr: entries; col: column norms",
        f"resid: residual at k = {share} of the terms",
        "network: mean over all layers but the last",
        "eff. rank: exp(entropy of the singular values)",
    ]
    also = (
        (
            [
                column("linf\nnorm", lambda layer: _up(layer.linf)),
                column("l2\nnorm", lambda layer: _up(layer.l2_upper)),
            ],
            "norm: certified upper bound, of the layer as an operator on inputs of this size",
        ),
        (
            [in_view(name, "k", lambda view: f"{view.k_for_target / view.n:.0%}") for name in _VIEWS],
            f"k: share of the terms that suffices for a residual of at most {layers[0].neuron.target:g}",
        ),
        (
            [in_view(name, "sprd", lambda view: f"{view.spread:.3f}") for name in _VIEWS],
            f"sprd: spread at k = {share} of the terms",
        ),
        (
            [column("stable\nrank", lambda layer: f"{layer.stable_rank:.2f}")],
            "stable rank: (Frobenius norm / largest singular value)^2",
        ),
    )
    for more, meaning in also:
        if sum(column.width for column in (*shown, *more)) < room:
            shown += more
            legend.append(meaning)
    return shown, legend


def _up(norm: float | None) -> str:
    """Rounded up, so that a bound stays one."""
    if norm is None:
        return "-"
    return (
        f"{math.ceil(norm * 100) / 100:.2f}" if norm < 1000 else f"{math.ceil(norm)}" if norm < 1e6 else f"{norm:.0e}"
    )
