"""The two tables of the page: one row a model, and the correlations at the main budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pinchpoint.records import Correlation, Family, ThreatNorm
from pinchpoint.records.metrics import METRICS, metric_keys
from pinchpoint.report.formatting import finite, written
from pinchpoint.report.glossary import TERMS, Term, term
from pinchpoint.report.study.data import Material


@dataclass(frozen=True)
class Column:
    """One column: the key in the model's row, its head, and the term that explains it."""

    key: str
    head: str
    term: Term
    digits: int = 3
    starts_group: bool = False


@dataclass(frozen=True)
class Group:
    """Columns under one head."""

    title: str
    columns: Sequence[Column]


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number that sorting compares (None sorts last)."""

    text: str
    value: float | None


def groups(material: Material) -> list[Group]:
    """Columns of the models' table, for the norms on record and what is known under each."""
    first = [
        Column("compressibility", "in this view", TERMS["compressibility"], starts_group=True),
        Column("neuron", "neuron", TERMS["neuron"]),
        Column("spectral", "spectral", TERMS["spectral"]),
    ]
    table = [Group("Compressibility", first)]
    table.append(Group("No attack", [Column("clean_accuracy", "SA", TERMS["clean_accuracy"], starts_group=True)]))
    items = [item for placed in material.placed.values() for item in placed]
    recalls = [key for key in metric_keys(stage="retrieval") if any(item.value(key) is not None for item in items)]
    if recalls:
        columns = [
            Column(key, METRICS[key].head, term(METRICS[key]), starts_group=index == 0)
            for index, key in enumerate(recalls)
        ]
        table.append(Group("Recall", columns))
    for norm in material.norms:
        measured = [
            key
            for key in metric_keys(per_norm=True)
            if METRICS[key].head and any(item.value(f"{key}_{norm}") is not None for item in items)
        ]
        columns = [
            Column(f"{key}_{norm}", _head(key, METRICS[key].head, norm, material), TERMS[key], starts_group=index == 0)
            for index, key in enumerate(measured)
        ]
        if columns:
            table.append(Group(material.threat(norm), columns))
    return table


def _head(key: str, head: str, norm: ThreatNorm, material: Material) -> str:
    """A universal perturbation has a budget of its own and queries are counted, so their columns say so."""
    records = [item for run in material.runs for item in run.audit.robustness if item.norm == norm]
    if key == "universal_accuracy" and records and records[0].universal_eps is not None:
        return f"{head}, ε = {records[0].universal_eps:.4g}"
    queries = max((item.queries or 0 for item in records), default=0)
    return f"{queries} {head}" if key == "query_accuracy" and queries else head


def model_rows(material: Material) -> list[dict[str, Any]]:
    """One row a member, family by family, level by level: its place and its cells in the order of the columns."""
    columns = [column for group in groups(material) for column in group.columns]
    rows = []
    for family in material.summary.families:
        for item in material.placed[family.name]:
            values = [item.value(column.key) for column in columns]
            rows.append(
                {
                    "family": family.title,
                    "color": material.family_color(family),
                    "label": item.member.label,
                    "level": item.member.level,
                    "seed": item.member.seed,
                    "run": item.member.run,
                    "cells": [Cell(written(value), value) for value in values],
                }
            )
    return rows


def _at_main(material: Material, family: Family, metric: str, norm: ThreatNorm | None) -> Correlation | None:
    """The correlation at the main budget: the one that names it, else the one that names no budget."""
    found = [item for item in family.correlations if item.metric == metric and item.norm == norm]
    main = material.eps.get(norm) if norm else None
    exact = (item for item in found if item.eps is not None and main is not None and abs(item.eps - main) < 1e-9)
    return next(exact, next((item for item in found if item.eps is None), None))


def correlation_rows(material: Material) -> list[dict[str, Any]]:
    """One row a metric that any family has on record; cells family by family, norm by norm.

    A metric without a norm (clean accuracy) has one cell a family, as wide as all norms together.
    """
    rows: list[dict[str, Any]] = []
    for metric in (key for key, metric in METRICS.items() if metric.correlated):
        free = any(item.metric == metric and item.norm is None for item in _all(material))
        norms: Sequence[ThreatNorm | None] = [None] if free else material.norms
        found = [_at_main(material, family, metric, norm) for family in material.summary.families for norm in norms]
        if not any(found):
            continue
        cells = [
            {
                "rho": finite(item.rho) if item else None,
                "p": finite(item.p_value) if item else None,
                "seeds": [finite(rho) for rho in item.rho_by_seed] if item else [],
            }
            for item in found
        ]
        rows.append({"term": term(METRICS[metric]), "cells": cells, "span": len(material.norms) if free else 1})
    return rows


def _all(material: Material) -> list[Correlation]:
    return [item for family in material.summary.families for item in family.correlations]
