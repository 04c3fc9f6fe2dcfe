"""Records as tables for the terminal. Numbers are shown, never computed."""

from __future__ import annotations

import math
import textwrap
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TypeVar

from rich import box
from rich.table import Table

from pinchpoint.records import BoundSheet, LayerProfile, NetworkBounds, PairBounds, Profile, Summary, View

_T = TypeVar("_T")

_COLUMNS = {"robust_accuracy": "RA", "robust_over_clean": "RA/SA", "universal_accuracy": "UA", "gap": "gap"}


def legend(summary: Summary) -> str:
    budgets = [f"{norm} {eps:g}" for norm in ("linf", "l2") if (eps := summary.models[0].get(f"universal_eps_{norm}"))]
    return (
        "Means over seeds. compr: compressibility; SA: clean accuracy; RA: accuracy under AutoPGD;\n"
        f"UA: under one universal perturbation ({', '.join(budgets)}); gap: adversarial minus clean loss.\n"
    )


def summary_tables(summary: Summary) -> Iterator[Table]:
    """One table a family, one line a level: means over seeds. Narrow enough for 80 columns."""
    for family in summary.families:
        eps = {norm: summary.models[0].get(f"eps_{norm}") for norm in ("linf", "l2")}
        norms = [norm for norm, value in eps.items() if value is not None]
        budgets = ", ".join(f"{norm} {eps[norm]:g}" for norm in norms)
        title = f"{family.title} ({family.view} compressibility; {budgets})"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=0)
        table.add_column("level")
        for heading in ("compr", "SA"):
            table.add_column(heading, justify="right")
        for norm in norms:
            for heading in _COLUMNS.values():
                table.add_column(f"{heading}\n{norm}", justify="right")
        for level in family.levels:
            keys = ["compressibility", "clean_accuracy", *(f"{key}_{norm}" for norm in norms for key in _COLUMNS)]
            values = [level.mean.get(key) for key in keys]
            table.add_row(level.label, *("-" if value is None else f"{value:.2f}" for value in values))
        yield table


_VIEWS = {"neuron": "neur", "spectral": "spec", "entrywise": "entr", "column": "col"}


@dataclass(frozen=True)
class _Column:
    """A heading, a cell for each layer, and one for the network."""

    heading: str
    cells: list[str]
    network: str = ""

    @property
    def width(self) -> int:
        return 1 + max(map(len, (*self.heading.split("\n"), *self.cells, self.network)))


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


def _columns(result: Profile, k_share: float, room: int) -> tuple[list[_Column], list[str]]:
    """The columns that fit, the most telling first, and what they mean."""
    layers = result.layers
    inside = _inside([layer.name for layer in layers])

    def column(heading: str, show: Callable[[LayerProfile], str], network: str = "") -> _Column:
        return _Column(heading, [show(layer) for layer in layers], network)

    def in_view(name: str, heading: str, show: Callable[[View], str], network: str = "") -> _Column:
        return column(f"{heading}\n{_VIEWS[name]}", lambda layer: show(getattr(layer, name)), network)

    share = "a tenth" if k_share == 0.1 else f"{k_share:g}"
    shown = [
        column("layer", lambda layer: layer.name.removeprefix(inside), "network"),
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


def _inside(names: Sequence[str]) -> str:
    """``network.`` where all layers are those of a library's network, which stands behind a normalisation."""
    first, *others = {name.partition(".")[0] for name in names}
    return "" if others or first in names else f"{first}."


_PICTURE = 34
"""Characters of the line on which bounds stand."""


def bound_parts(sheet: BoundSheet, width: int) -> Iterator[Table | str]:
    """The network's constant under each norm, from both sides; then pairs of layers, and the layers."""
    for part in _bound_parts(sheet, width):
        yield _wrapped(part, width) if isinstance(part, str) else part


def _wrapped(text: str, width: int) -> str:
    """Lines that are too long go on below, indented."""
    if len(text) <= width:
        return text
    start = text[: len(text) - len(text.lstrip(" "))]
    return textwrap.fill(text, width, initial_indent="", subsequent_indent=f"{start}  ", break_long_words=False)


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
    inside = _inside([name for pair in pairs for name in (pair.first, pair.second)])
    table = Table(title="Alignment of adjacent layers", box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    for heading in ("norm", "layers", "at least", "at most", "factor"):
        table.add_column(heading, justify="left" if heading in ("norm", "layers") else "right")
    for pair in pairs:
        if pair.lower is not None and pair.upper is not None:
            names = f"{pair.first.removeprefix(inside)}, {pair.second.removeprefix(inside)}"
            table.add_row(
                pair.norm, names, down(pair.lower), "exact" if pair.exact else up(pair.upper), up(pair.factor)
            )
    return table


def _layer_table(sheet: BoundSheet, width: int) -> Table:
    """One line a layer; structure apart where there is room."""
    layers = sheet.layers
    inside = _inside([layer.name for layer in layers])
    shapes = [layer.matrix_shape for layer in layers]
    columns = [
        _Column("layer", [layer.name.removeprefix(inside) for layer in layers]),
        _Column("matrix", ["-" if shape is None else f"{shape[0]}x{shape[1]}" for shape in shapes]),
        _Column("scale", [_some(layer.norms[0].scale, up) for layer in layers]),
    ]
    optional = []
    for place, network in enumerate(sheet.networks):
        of = [layer.norms[place] for layer in layers]
        columns += [
            _Column(f"norm\n{network.norm}", [up(item.upper) for item in of]),
            _Column(f"T 3.1\n{network.norm}", [_some(item.bound, up) for item in of]),
            _Column(f"k\n{network.norm}", [_some(item.k, str) for item in of]),
        ]
        optional.append(_Column(f"struct\n{network.norm}", [_some(item.structure, up) for item in of]))
        optional.append(_Column(f"matrix\n{network.norm}", [_some(item.matrix_norm, up) for item in of]))
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


def _some(value: _T | None, show: Callable[[_T], str]) -> str:
    return "-" if value is None else show(value)


def up(value: float) -> str:
    """Four digits, rounded up, so that an upper bound stays one.

    >>> up(1.00001), up(123456.0), up(0.0)
    ('1.001', '1.235e+05', '0')
    """
    return _digits(value, ROUND_CEILING)


def down(value: float) -> str:
    """Four digits, rounded down, so that a lower bound stays one.

    >>> down(1.99999), down(0.000123456)
    ('1.999', '1.234e-04')
    """
    return _digits(value, ROUND_FLOOR)


def _digits(value: float, rounding: str) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exact = Decimal(value)
    kept = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding=rounding)
    return (
        f"{float(kept):.3e}" if not -4 < kept.adjusted() < 5 else f"{kept:f}" if kept.adjusted() < 4 else f"{kept:.0f}"
    )
