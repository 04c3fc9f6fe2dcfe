"""Finished models as flat rows, straight from the store's tables: a hundred thousand records in seconds.

A ``Run`` holds everything about one model and is read for a page or by hand; a summary needs some numbers of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pinchpoint.auditing.sentences import not_done, not_measured
from pinchpoint.errors import StoreError
from pinchpoint.records import Member, ThreatNorm
from pinchpoint.records.base import NORMS
from pinchpoint.records.metrics import METRICS, metric_keys
from pinchpoint.study.config.study import StudyConfig, no_collecting
from pinchpoint.study.graph.plan import Plan, Task
from pinchpoint.study.graph.stages import KINDS, Key, Kind, Stage
from pinchpoint.study.store import columns
from pinchpoint.study.store.store import Store


@dataclass(frozen=True)
class Rows:
    """Finished models of a study.

    Attributes:
        rows: one for each place in a family, in the order of families, levels and seeds; layers and curves nested.
        members: those places.
        warnings: what could not be done for some model, each once.
        versions, machine: of the first model.
    """

    rows: list[dict[str, Any]]
    members: list[Member]
    warnings: list[str]
    versions: dict[str, str]
    machine: str


@no_collecting()
def read_rows(config: StudyConfig, planned: Plan, store: Store) -> Rows:
    """Rows of all runs whose stages are all there.

    Raises:
        StoreError: where none is, or a record belongs to another configuration.
    """
    finished = store.finished()
    tasks = [task for task in planned.tasks if finished.issuperset(task.own)]
    if not tasks:
        raise StoreError(
            "a report needs at least one finished run",
            "an empty store",
            "run the study first: pinchpoint study run FILE",
        )
    slots = _slots(tasks, planned.stages)
    frames = _frames(slots, planned.stages, store)
    models = {task.id: row for task, row in zip(tasks, _models(frames), strict=True)}
    families = {family.name: family for family in config.families}
    order = {name: number for number, name in enumerate(families)}
    members = sorted(
        (member for task in tasks for member in task.members),
        key=lambda member: (order[member.family], member.level, member.seed),
    )
    rows = []
    for member in members:
        family, model = families[member.family], models[member.run]
        place = {
            "run": member.run,
            "family": family.name,
            "family_title": family.title or family.name,
            "level": member.level,
            "label": member.label,
            "seed": member.seed,
            "compressibility": model[family.view],
        }
        rows.append(place | model)
    first = frames["train", None].row(0, named=True)
    versions = columns.decode(first["versions"], dict[str, str])
    return Rows(rows, members, sorted(_warnings(frames)), versions, first["machine"])


Slot = tuple[Kind, ThreatNorm | None]


def _slots(tasks: Sequence[Task], stages: Mapping[Key, Stage]) -> dict[Slot, list[Key | None]]:
    """For each kind and norm, the stage of every task, or None."""
    found: dict[Slot, list[Key | None]] = {}
    for number, task in enumerate(tasks):
        for key in task.own:
            slot = key[0], stages[key].norm
            if slot not in found:
                found[slot] = [None] * len(tasks)
            found[slot][number] = key
    return found


def _frames(
    slots: Mapping[Slot, Sequence[Key | None]], stages: Mapping[Key, Stage], store: Store
) -> dict[Slot, pl.DataFrame]:
    """Records of each slot, a row each task; empty rows where a task has none.

    Raises:
        StoreError: where a record belongs to another configuration.
    """
    names: dict[Kind, set[str]] = {}
    for (kind, _), keys in slots.items():
        names.setdefault(kind, set()).update(key[1] for key in keys if key is not None)
    every = [pl.col(name) for name in ("digest", "status", "reason", "seconds")]
    tables = {kind: store.table(kind, some, [*every, *_COLUMNS.get(kind, ())]) for kind, some in names.items()}
    return {slot: _frame(slot[0], keys, stages, tables[slot[0]]) for slot, keys in slots.items()}


def _frame(kind: Kind, keys: Sequence[Key | None], stages: Mapping[Key, Stage], table: pl.DataFrame) -> pl.DataFrame:
    wanted = pl.DataFrame(
        {
            "id": [None if key is None else key[1] for key in keys],
            "wanted": [None if key is None else stages[key].digest for key in keys],
        },
        schema={"id": pl.String, "wanted": pl.String},
    )
    joined = wanted.join(table, on="id", how="left", maintain_order="left")
    other = joined.filter(pl.col("wanted") != pl.col("digest"))
    if len(other):
        raise StoreError(
            "the id of a stage must belong to one configuration",
            f"{kind} {other['id'][0]} of two",
            "change any value of one of them, for example its seed, or choose another folder with --out",
        )
    return joined


def _models(frames: Mapping[Slot, pl.DataFrame]) -> list[dict[str, Any]]:
    """The numbers of each task's model."""
    profile = frames["profile", None]
    found = _lists(profile, *metric_keys(stage="profile"))
    for norm in NORMS:
        found |= _threat(norm, frames, profile)
    if ("retrieval", None) in frames:
        found |= _lists(frames["retrieval", None], *metric_keys(stage="retrieval"))
    found |= _lists(profile, "layers") | _lists(frames["train", None], *metric_keys(stage="train"))
    seconds = pl.DataFrame([frame["seconds"].alias(str(number)) for number, frame in enumerate(frames.values())])
    found["seconds"] = seconds.sum_horizontal().to_list()
    return [dict(zip(found, values, strict=True)) for values in zip(*found.values(), strict=True)]


def _lists(frame: pl.DataFrame, *names: str) -> dict[str, list[Any]]:
    return frame.select(names).to_dict(as_series=False)


def _field(*names: str) -> pl.Expr:
    """What a stage found, under the last of the names."""
    expression = pl.col("result")
    for name in names:
        expression = expression.struct.field(name)
    return expression


def _layer(*names: str) -> pl.Expr:
    expression = pl.element()
    for name in names:
        expression = expression.struct.field(name)
    return expression.alias("_".join(names))


_LAYERS = (
    _field("profile", "layers")
    .list.eval(
        pl.struct(
            _layer("name"),
            *(_layer(view, value) for view in ("neuron", "spectral") for value in ("k", "residual", "spread")),
            *(_layer(name) for name in ("effective_rank", "stable_rank", "frobenius")),
        )
    )
    .alias("layers")
)


def _metric(key: str) -> pl.Expr:
    """A metric, where its stage's record holds it; a number in the path is a place in a list, none where it is shorter."""
    expression = pl.col("result")
    for name in METRICS[key].path:
        expression = (
            expression.list.get(int(name), null_on_oob=True) if name.isdigit() else expression.struct.field(name)
        )
    return expression.alias(key)


_OTHERS: dict[Kind, list[pl.Expr]] = {
    "train": [pl.col("versions"), pl.col("machine")],
    "profile": [_field("profile", "skipped"), _LAYERS],
    "attack": [_field(name) for name in ("eps", "curve", "clean_loss", "adversarial_loss")],
    "bound": [_field("radii")],
    "universal": [_field("eps").alias("universal_eps")],
}
"""What is read beside metrics."""

_COLUMNS: dict[Kind, list[pl.Expr]] = {
    kind: [*map(_metric, metric_keys(stage=kind)), *_OTHERS.get(kind, ())] for kind in KINDS
}
"""What is read of each kind's records."""


def _threat(norm: ThreatNorm, frames: Mapping[Slot, pl.DataFrame], profile: pl.DataFrame) -> dict[str, list[Any]]:
    """All columns of one norm, named after it."""
    attack, bound = frames.get(("attack", norm)), frames.get(("bound", norm))
    found: dict[str, list[Any]] = {}
    if attack is not None:
        found |= _lists(attack, "eps", "robust_accuracy")
        found["curve"], certified = _certified(attack["curve"].to_list(), found["eps"], bound)
        pairs = zip(found["robust_accuracy"], profile["clean_accuracy"], strict=True)
        found["robust_over_clean"] = [left / whole if left is not None and whole else None for left, whole in pairs]
        losses = zip(attack["adversarial_loss"], attack["clean_loss"], strict=True)
        found["gap"] = [None if after is None else after - before for after, before in losses]
        found["certified_accuracy"] = certified
    if bound is not None:
        found |= _lists(bound, *metric_keys(stage="bound"))
    elif attack is not None:
        found["gap_bound"] = [None] * len(profile)
    for kind in KINDS:
        frame = None if kind in ("attack", "bound") else frames.get((kind, norm))
        if frame is not None:
            found |= _lists(frame, *(column.meta.output_name() for column in _COLUMNS[kind]))
    return {f"{name}_{norm}": values for name, values in found.items()}


def _certified(
    curves: list[list[dict[str, Any]] | None], judged: list[float | None], bound: pl.DataFrame | None
) -> tuple[list[Any], list[float | None]]:
    """Curves with certified accuracy at each budget, and that at the judged budget: the share of radii that reach it."""
    budgets = sorted({point["eps"] for curve in curves for point in curve or ()})
    shares: dict[float, list[float | None]] = {}
    for eps in budgets:
        if bound is None:
            shares[eps] = [None] * len(curves)
            continue
        reached = pl.col("radii").list.eval(((pl.element() > 0) & (pl.element() >= eps)).mean()).list.first()
        shares[eps] = bound.select(share=reached)["share"].to_list()
    full = [
        None if curve is None else [{**point, "certified_accuracy": shares[point["eps"]][row]} for point in curve]
        for row, curve in enumerate(curves)
    ]
    return full, [None if eps is None else shares[eps][row] for row, eps in enumerate(judged)]


def _warnings(frames: Mapping[Slot, pl.DataFrame]) -> set[str]:
    """What could not be measured, bounded or explained for some model."""
    skipped = frames["profile", None]["skipped"].explode().drop_nulls().unique()
    found = {not_measured(one["kind"], one["name"], one["reason"]) for one in skipped.to_list()}
    for (kind, norm), frame in frames.items():
        if norm is not None:
            reasons = frame.filter(pl.col("status") == "skipped")["reason"].drop_nulls().unique()
            found |= {not_done(kind, norm, reason) for reason in reasons}
    return found
