"""A study's families as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich import box
from rich.table import Table

from pinchpoint.records import Summary
from pinchpoint.records.base import NORMS
from pinchpoint.records.estimate import Estimate
from pinchpoint.records.metrics import METRICS

_COLUMNS = {key: metric.head.replace(" / ", "/") for key, metric in METRICS.items() if metric.in_terminal}


def legend(summary: Summary) -> str:
    """What the heads of ``summary_tables`` mean."""
    said = "Means over seeds. compr: compressibility; SA: clean accuracy; RA: accuracy under AutoPGD;\n"
    if _universal(summary):
        budgets = [f"{norm} {eps:g}" for norm in NORMS if (eps := _first(summary, f"universal_eps_{norm}"))]
        said += f"universal: under one universal perturbation ({', '.join(budgets)}); "
    return f"{said}gap: adversarial minus clean loss.\n"


def _first(summary: Summary, key: str) -> float | None:
    return next((row[key] for row in summary.models if row.get(key) is not None), None)


def _universal(summary: Summary) -> bool:
    return any(_first(summary, f"universal_accuracy_{norm}") is not None for norm in NORMS)


def plan_tables(
    families: Iterable[tuple[str, str, int]],
    stages: Mapping[str, tuple[int, int]],
    seconds: Mapping[str, float],
) -> Iterator[Table]:
    """What a study comes to.

    Args:
        families: name, title and number of levels of each.
        stages: how many of each kind are finished, and how many there are.
        seconds: what those that are not finished will take one process, by kind, where that is known.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("family", "what", "levels"):
        table.add_column(heading, justify="right" if heading == "levels" else "left")
    for name, title, levels in families:
        table.add_row(name, title, str(levels))
    yield table
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("stage", "finished", "of", "left"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for kind, (done, of) in stages.items():
        left = "-" if done == of else duration(seconds[kind]) if kind in seconds else "unknown"
        table.add_row(kind, str(done), str(of), left)
    yield table


def duration(seconds: float) -> str:
    """About so long.

    >>> [duration(value) for value in (0.2, 59, 89, 3000, 7000, 400000)]
    ['1 s', '59 s', '89 s', '50 min', '1.9 h', '111 h']
    """
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.{0 if seconds > 36000 else 1}f} h"


def estimate_sentence(left: Estimate) -> str:
    """What is left of a study, in words that do not promise too much."""
    known = left.recorded + left.probed
    if not known and not left.unknown:
        return "Nothing is left to do."
    words = [] if not known else [
        f"About {duration(left.wall)} are left with {left.workers} worker{'s' * (left.workers > 1)}: an estimate, from what "
        f"like stages took ({left.recorded} stages) and from a probe ({left.probed})."
    ]  # fmt: skip
    if left.unknown:
        words.append(
            f"How long {left.unknown} stages will take is not known{f': {left.reason}' if left.reason else ''}."
        )
    return " ".join(words)


def garbage_table(kinds: Mapping[str, tuple[int, int]]) -> Table:
    """How many stages of each kind nobody needs, and their bytes; the last line has them all."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("stage", "not needed", "MB"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for kind, (count, size) in kinds.items():
        table.add_row(kind, str(count), f"{size / 1e6:.2f}")
    counts, sizes = zip(*kinds.values(), strict=True)
    table.add_row("all", str(sum(counts)), f"{sum(sizes) / 1e6:.2f}")
    return table


def summary_tables(summary: Summary) -> Iterator[Table]:
    """One table a family, one line a level: means over seeds. Narrow enough for 80 columns."""
    eps = {norm: found for norm in NORMS if (found := _first(summary, f"eps_{norm}")) is not None}
    budgets = ", ".join(f"{norm} {budget:g}" for norm, budget in eps.items())
    shown = {key: head for key, head in _COLUMNS.items() if key != "universal_accuracy" or _universal(summary)}
    for family in summary.families:
        title = f"{family.title} ({family.view} compressibility; {budgets})"
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=0)
        table.add_column("level")
        for heading in ("compr", "SA", *(f"{head}\n{norm}" for norm in eps for head in shown.values())):
            table.add_column(heading, justify="right")
        keys = ["compressibility", "clean_accuracy", *(f"{key}_{norm}" for norm in eps for key in shown)]
        for level in family.levels:
            values = [level.mean.get(key) for key in keys]
            table.add_row(level.label, *("-" if value is None else f"{value:.2f}" for value in values))
        yield table
