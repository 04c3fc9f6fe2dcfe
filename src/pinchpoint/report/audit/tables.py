"""The tables of an audit's report, once for the page and for Markdown: heads with their terms, rows of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pinchpoint.records import Advice, AuditReport, Comparison, PinchPoint, Share, ThreatReport, Trial
from pinchpoint.records.base import NORM_NAMES
from pinchpoint.report.audit import text as words
from pinchpoint.report.formatting import written
from pinchpoint.utils.numbers import budget


@dataclass(frozen=True)
class Head:
    """A column's head, the term that explains it, and the group it opens."""

    text: str
    term: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Cell:
    """What is shown, the number that sorting compares (None sorts last), and small print, a link or an interval to draw."""

    text: str
    value: float | None = None
    small: str = ""
    link: str = ""
    share: Share | None = None
    term: str | None = None
    tone: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under heads; a row's first cell is its name."""

    id: str
    caption: str
    heads: Sequence[Head]
    rows: Sequence[Sequence[Cell]]
    groups: Sequence[tuple[str, int]] = field(default_factory=list)


def groups(heads: Sequence[Head]) -> list[tuple[str, int]]:
    """Titles of groups of columns with their widths; the first group is that of the name.

    >>> groups([Head("a"), Head("b", group="B"), Head("c"), Head("d", group="D")])
    [('', 1), ('B', 2), ('D', 1)]
    """
    found: list[tuple[str, int]] = []
    for head in heads:
        if head.group is not None or not found:
            found.append((head.group or "", 0))
        found[-1] = (found[-1][0], found[-1][1] + 1)
    return found


def _share(share: Share | None) -> list[Cell]:
    """An accuracy with its interval drawn, its interval in figures, and the count."""
    if share is None:
        return [Cell("–"), Cell("–"), Cell("–")]
    return [
        Cell(words.percent(share.value), share.value, share=share),
        Cell(words.interval(share), share.low),
        Cell(f"{share.count} of {share.of}", share.count),
    ]


def accuracy_cell(share: Share | None) -> Cell:
    """An accuracy with its interval in small print."""
    return Cell("–") if share is None else Cell(words.percent(share.value), share.value, small=words.interval(share))


def accuracies(report: AuditReport) -> Table:
    """Clean accuracy, and what is left of it under each threat."""
    rows = [[Cell("Clean accuracy", 0, term="clean_accuracy"), Cell("no attack", 0), *_share(report.clean)]]
    for place, item in enumerate(report.threats, 1):
        under = Cell(words.threat(item.norm, item.eps), place)
        for share, name, told in (
            (item.robust, "robust_accuracy", f"attack: {item.attack}"),
            (item.universal, "universal_accuracy", "one perturbation for all samples"),
            (item.certified, "certified_accuracy", "no attack can leave less"),
        ):
            if share is not None:
                named = Cell(words.metric(name), len(rows), small=told, term=name)
                rows.append([named, under, *_share(share)])
    heads = [
        Head("accuracy"),
        Head("threat", "eps"),
        Head("value"),
        Head("95 % interval", "interval"),
        Head("samples"),
    ]
    return Table("accuracies", "Accuracy without attack and under each threat.", heads, rows)


def settled(threat: ThreatReport) -> Table:
    """How many samples each stage settled, the survivors last."""
    total = sum(threat.settled.values()) or 1
    last = ("certified", "survived")
    order = [name for name in threat.settled if name not in last] + [name for name in last if name in threat.settled]
    rows = [
        [
            Cell(words.stage(name), place, tone=name if name in ("clean", *last) else "attack"),
            Cell(str(threat.settled[name]), threat.settled[name]),
            Cell(words.percent(threat.settled[name] / total), threat.settled[name] / total),
        ]
        for place, name in enumerate(order)
    ]
    caption = f"What settled the samples, {words.threat(threat.norm, threat.eps)}."
    return Table(
        f"settled-{threat.norm}", caption, [Head("settled by", "settled"), Head("samples"), Head("share")], rows
    )


def curve(threat: ThreatReport) -> Table:
    """Robust and certified accuracy at every budget."""
    rows = [
        [
            Cell(budget(threat.norm, point.eps), point.eps),
            Cell(words.percent(point.robust.value), point.robust.value),
            Cell(words.interval(point.robust), point.robust.low),
            Cell(words.percent(point.certified), point.certified),
        ]
        for point in sorted(threat.curve, key=lambda point: point.eps)
    ]
    heads = [
        Head("budget ε", "eps"),
        Head("robust", "robust_accuracy"),
        Head("95 % interval", "interval"),
        Head("certified", "certified_accuracy"),
    ]
    return Table(f"curve-{threat.norm}", f"Accuracy at every {NORM_NAMES[threat.norm]} budget.", heads, rows)


def pinch_points(points: Sequence[PinchPoint]) -> Table:
    """One row a layer: its share of the risk and what the share comes from."""
    heads = [
        Head("layer"),
        Head("rank", group="Risk"),
        Head("share", "share"),
        Head("gain", "gain"),
        Head("random gain", "random_gain"),
        Head("amplification", "amplification", group="Perturbation"),
        Head("alignment", "alignment"),
        Head("random direction", "alignment_baseline"),
        Head("operator norm", "operator_norm", group="Norm"),
        Head("structure", "structure"),
        Head("scale", "scale"),
        Head("neighbour", "neighbour"),
        Head("neuron", "neuron", group="Compressibility"),
        Head("spectral", "spectral"),
        Head("stable rank", "stable_rank"),
        Head("effective rank", "effective_rank"),
    ]
    rows = []
    for point in points:
        numbers = (
            point.gain, point.random_gain, point.amplification, point.alignment, point.alignment_baseline,
            point.operator_norm, point.structure, point.scale, point.neighbour, point.neuron, point.spectral,
            point.stable_rank, point.effective_rank,
        )  # fmt: skip
        rows.append(
            [
                Cell(point.layer, point.rank, small=point.kind, link=f"#pinch-{point.rank}"),
                Cell(str(point.rank), point.rank),
                Cell(words.percent(point.share), point.share),
                *(Cell(written(value).replace("-", "−"), value) for value in numbers),
            ]
        )
    return Table(
        "pinch-table", "Layers by their share of the risk, with what it comes from.", heads, rows, groups(heads)
    )


def predicted(advice: Advice) -> Table:
    """What an advice should bring."""
    rows = [
        [
            Cell(words.metric(item.metric, item.norm, item.eps), place, small=item.how),
            Cell(words.amount(item.metric, item.before), item.before),
            Cell(words.amount(item.metric, item.after), item.after),
            Cell(f"{words.amount(item.metric, item.low)} to {words.amount(item.metric, item.high)}", item.low),
        ]
        for place, item in enumerate(advice.predicted)
    ]
    heads = [Head("number"), Head("now"), Head("predicted", "predicted"), Head("fails outside")]
    return Table(f"predicted-{advice.id}", f"Predicted effect of: {advice.title}.", heads, rows)


def trial(tried: Trial) -> Table:
    """What was predicted, what was measured, and whether the prediction held."""
    rows = [
        [
            Cell(words.metric(item.metric, item.norm, item.eps), place),
            Cell(words.amount(item.metric, item.before), item.before),
            Cell(words.amount(item.metric, item.predicted), item.predicted),
            Cell(f"{words.amount(item.metric, item.low)} to {words.amount(item.metric, item.high)}", item.low),
            Cell(words.amount(item.metric, item.measured), item.measured),
            Cell("not on record" if item.alone is None else words.amount(item.metric, item.alone), item.alone),
            Cell("✓ held" if item.held else "✗ did not hold", float(item.held), tone="good" if item.held else "bad"),
        ]
        for place, item in enumerate(tried.outcomes)
    ]
    heads = [
        Head("number"),
        Head("before"),
        Head("predicted", "predicted"),
        Head("fails outside"),
        Head("measured"),
        Head("fine-tuning alone"),
        Head("held?", "held"),
    ]
    return Table("trial-table", f"The suggestion tried: {tried.title}.", heads, rows)


def compared(both: Comparison) -> Table:
    """Two models on the same samples, row by row."""
    rows = []
    for place, item in enumerate(both.rows):
        tone = "" if item.p_value >= 0.05 else "up" if item.difference > 0 else "down"
        rows.append(
            [
                Cell(words.metric(item.metric, item.norm, item.eps), place, term=item.metric),
                accuracy_cell(item.first),
                accuracy_cell(item.second),
                Cell(
                    words.points(item.difference),
                    item.difference,
                    small=f"{words.points(item.low)} to {words.points(item.high)}",
                    tone=tone,
                ),
                Cell(words.probability(item.p_value), item.p_value),
                Cell(str(item.both), item.both),
                Cell(str(item.only_first), item.only_first),
                Cell(str(item.only_second), item.only_second),
                Cell(str(item.neither), item.neither),
            ]
        )
    heads = [
        Head("accuracy"),
        Head("first", group="Accuracy"),
        Head("second"),
        Head("difference", "difference", group="Is it more than chance?"),
        Head("p", "p_value"),
        Head("both", group="Samples right in"),
        Head("only the first", "discordant"),
        Head("only the second", "discordant"),
        Head("neither"),
    ]
    caption = f"{both.first} and {both.second} on the same samples, under attacks that both faced."
    return Table("compared", caption, heads, rows, groups(heads))
