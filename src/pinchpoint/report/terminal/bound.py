"""A model's bounds: each on a common line, then pairs of layers, then the layers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence

from rich import box
from rich.table import Table

from pinchpoint.records import BoundSheet, NetworkBounds, PairBounds
from pinchpoint.report.terminal.text import Column, down, inside, some, up, wrapped

_PICTURE = 34
"""Characters of the line on which bounds stand."""


def bound_parts(sheet: BoundSheet, width: int) -> Iterator[Table | str]:
    """The network's constant under each norm, from both sides; then pairs of layers, and the layers."""
    for part in _bound_parts(sheet, width):
        yield wrapped(part, width) if isinstance(part, str) else part


def _bound_parts(sheet: BoundSheet, width: int) -> Iterator[Table | str]:
    for network in sheet.networks:
        yield from _network_parts(network)
    yield from _unbounded_parts(sheet)
    if any(pair.reason is None for pair in sheet.pairs):
        yield _pair_table(sheet.pairs)
    unaligned = Counter(pair.norm for pair in sheet.pairs if pair.reason is not None)
    for norm, count in unaligned.items():
        reason = next(pair.reason for pair in sheet.pairs if pair.norm == norm and pair.reason is not None)
        yield f"{norm}: {count} pairs of layers not aligned; the first: {reason}"
    yield _layer_table(sheet, width)
    yield from _layer_legend(sheet)
    yield from (f"assumed: {assumption}" for assumption in sheet.assumptions if not sheet.unbounded)


def _network_parts(network: NetworkBounds) -> Iterator[str]:
    """The bracket in one line, then each bound on a common logarithmic line."""
    if network.upper is None and network.lower is None:
        yield f"\n{network.norm}: no bound; seen, by search: {down(network.empirical)}"
        return
    lower, upper = network.lower or 0.0, network.upper
    within = f", a factor of {up(upper / lower)} apart" if upper is not None and lower > 0 else ""
    yield f"\n{network.norm}: {down(lower)} <= Lipschitz constant <= {'?' if upper is None else up(upper)}{within}"
    below = [("seen", network.empirical), ("sampled", network.sampled), ("ascent", network.lower)]
    rows = [(name, value, down(value), ">") for name, value in below if value is not None]
    above = [(bound.method, bound.value) for bound in network.uppers if bound.value is not None]
    rows += [(name, value, up(value), "<") for name, value in sorted(above, key=lambda pair: pair[1])]
    shown = [math.log10(value) for _, value, _, _ in rows if value > 0]
    low, high = (min(shown), max(shown)) if shown else (0.0, 0.0)
    span = max(high - low, 1e-9)
    for name, size, text, mark in rows:
        place = round((math.log10(size) - low) / span * (_PICTURE - 1)) if size > 0 else None
        picture = "" if place is None else " " * place + mark
        best = "tightest" if name == network.method else ""
        yield f"  {name:<12}{text:>11}  {picture:<{_PICTURE}}  {best}".rstrip()
    for label, value in (
        ("encoder", network.encoder),
        ("largest margin", network.margin_largest),
        ("median margin", network.margin_median),
    ):
        if value is not None:
            yield f"  {label:<14}{up(value):>9}"
    missing: dict[str, list[str]] = {}
    for name, reason in [(bound.method, bound.reason) for bound in network.uppers] + list(network.reasons.items()):
        if reason is not None:
            missing.setdefault(reason, []).append(name.replace("_", " "))
    for reason, names in missing.items():
        yield f"  {' and '.join((', '.join(names[:-1]), names[-1])) if names[1:] else names[0]}: {reason}"


def _unbounded_parts(sheet: BoundSheet) -> Iterator[str]:
    if not sheet.unbounded:
        yield ""
        yield "seen: largest |f(a) - f(b)| / |a - b| that was met, in float64"
        yield "sampled, ascent: such quotients less their rounding errors, certified"
        yield "encoder: all before the last layer; margin: the difference of two logits; both certified"
        return
    yield "What is seen is no bound: some other pair of inputs may be further apart."
    kinds: dict[tuple[str, str], list[str]] = {}
    for module in sheet.unbounded:
        kinds.setdefault((module.kind, module.reason), []).append(module.name or "the top level")
    for (kind, reason), names in kinds.items():
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        yield f"not bounded: {kind} at {names[0]}{more}: {reason}"


def _pair_table(pairs: Sequence[PairBounds]) -> Table:
    prefix = inside([name for pair in pairs for name in (pair.first, pair.second)])
    table = Table(title="Alignment of adjacent layers", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("norm", "layers", "at least", "at most", "factor"):
        table.add_column(heading, justify="left" if heading in ("norm", "layers") else "right")
    for pair in pairs:
        if pair.lower is not None and pair.upper is not None:
            names = f"{pair.first.removeprefix(prefix)}, {pair.second.removeprefix(prefix)}"
            table.add_row(
                pair.norm, names, down(pair.lower), "exact" if pair.exact else up(pair.upper), up(pair.factor)
            )
    return table


def _layer_table(sheet: BoundSheet, width: int) -> Table:
    """One line a layer; structure apart where there is room."""
    layers = sheet.layers
    prefix = inside([layer.name for layer in layers])
    shapes = [layer.matrix_shape for layer in layers]
    columns = [
        Column("layer", [layer.name.removeprefix(prefix) for layer in layers]),
        Column("matrix", ["-" if shape is None else f"{shape[0]}x{shape[1]}" for shape in shapes]),
        Column("scale", [some(layer.norms[0].scale, up) for layer in layers]),
    ]
    optional = []
    for place, network in enumerate(sheet.networks):
        of = [layer.norms[place] for layer in layers]
        columns += [
            Column(f"norm\n{network.norm}", [up(item.upper) for item in of]),
            Column(f"T 3.1\n{network.norm}", [some(item.bound, up) for item in of]),
            Column(f"k\n{network.norm}", [some(item.k, str) for item in of]),
        ]
        optional.append(Column(f"struct\n{network.norm}", [some(item.structure, up) for item in of]))
        optional.append(Column(f"matrix\n{network.norm}", [some(item.matrix_norm, up) for item in of]))
    if sum(column.width for column in (*columns, *optional)) < width - 1:
        columns += optional
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        table.add_column(column.heading, justify="right" if table.columns else "left")
    for row in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*row)
    return table


def _layer_legend(sheet: BoundSheet) -> Iterator[str]:
    yield "norm: certified upper bound, of the layer as an operator, batch norm folded in"
    yield "T 3.1: structure x scale, a bound on the norm of the layer's matrix (Theorem 3.1), with k terms"
    yield "scale: Frobenius norm of that matrix"
    if any(layer.kind.startswith("conv") for layer in sheet.layers):
        yield "a convolution's matrix is its filter bank, one filter a row: T 3.1 does not bound its norm as an operator"
