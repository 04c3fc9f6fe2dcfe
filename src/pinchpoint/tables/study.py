"""A study's families as tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich import box
from rich.table import Table

from pinchpoint.records import Summary

_COLUMNS = {"robust_accuracy": "RA", "robust_over_clean": "RA/SA", "universal_accuracy": "UA", "gap": "gap"}


def legend(summary: Summary) -> str:
    budgets = [f"{norm} {eps:g}" for norm in ("linf", "l2") if (eps := summary.models[0].get(f"universal_eps_{norm}"))]
    return (
        "Means over seeds. compr: compressibility; SA: clean accuracy; RA: accuracy under AutoPGD;\n"
        f"UA: under one universal perturbation ({', '.join(budgets)}); gap: adversarial minus clean loss.\n"
    )


def plan_tables(families: Iterable[tuple[str, str, int]], stages: Mapping[str, tuple[int, int]]) -> Iterator[Table]:
    """What a study comes to.

    Args:
        families: name, title and number of levels of each.
        stages: how many of each kind are finished, and how many there are.
    """
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("family", "what", "levels"):
        table.add_column(heading, justify="right" if heading == "levels" else "left")
    for name, title, levels in families:
        table.add_row(name, title, str(levels))
    yield table
    table = Table(box=box.SIMPLE_HEAD, padding=0)
    for heading in ("stage", "finished", "of"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for kind, (done, of) in stages.items():
        table.add_row(kind, str(done), str(of))
    yield table


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
