"""Finished models as flat rows, straight from the store's tables: a hundred thousand records in seconds.

A ``Run`` holds everything about one model and is read for a page or by hand; a summary needs some numbers of many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from pinchpoint.audit.assemble import not_done, not_measured
from pinchpoint.errors import StoreError
from pinchpoint.records import Member, ThreatNorm
from pinchpoint.study.claims import RECALLS
from pinchpoint.study.config import StudyConfig
from pinchpoint.study.graph import Key, Kind, Stage
from pinchpoint.study.plan import Plan, Task
from pinchpoint.study.store import Store

_NORMS: tuple[ThreatNorm, ...] = ("linf", "l2", "l1")


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
    frames = {slot: _frame(keys, planned.stages, store) for slot, keys in slots.items()}
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
    versions, machine = _origin(slots["train", None][0], store)
    return Rows(rows, members, sorted(_warnings(frames)), versions, machine)


Slot = tuple[Kind, ThreatNorm | None]


def _slots(tasks: Sequence[Task], stages: Mapping[Key, Stage]) -> dict[Slot, list[Key | None]]:
    """For each kind and norm, the stage of every task, or None."""
    found: dict[Slot, list[Key | None]] = {}
    for number, task in enumerate(tasks):
        for key in task.own:
            found.setdefault((key[0], stages[key].norm), [None] * len(tasks))[number] = key
    return found


def _frame(keys: Sequence[Key | None], stages: Mapping[Key, Stage], store: Store) -> pl.DataFrame:
    """Records of one slot, a row each task; empty rows where a task has none.

    Raises:
        StoreError: where a record belongs to another configuration.
    """
    kind = next(key[0] for key in keys if key is not None)
    table = store.table(kind, {key[1] for key in keys if key is not None})
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
    columns = _columns(profile, _PROFILE)
    for norm in _NORMS:
        columns |= _threat(norm, frames, profile)
    if ("retrieval", None) in frames:
        columns |= _columns(frames["retrieval", None], {name: _field(name.removeprefix("recall_")) for name in RECALLS})
    columns["layers"] = profile.select(_LAYERS)["layers"].to_list()
    columns["epochs"] = _columns(frames["train", None], {"epochs": _field("epochs")})["epochs"]
    seconds = pl.DataFrame([frame["seconds"].alias(str(number)) for number, frame in enumerate(frames.values())])
    columns["seconds"] = seconds.sum_horizontal().to_list()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _field(*names: str) -> pl.Expr:
    expression = pl.col("result")
    for name in names:
        expression = expression.struct.field(name)
    return expression


def _columns(frame: pl.DataFrame, expressions: Mapping[str, pl.Expr]) -> dict[str, list[Any]]:
    return frame.select(**expressions).to_dict(as_series=False)


_PROFILE = {
    "neuron": _field("profile", "neuron"),
    "spectral": _field("profile", "spectral"),
    "clean_accuracy": _field("clean_accuracy"),
    "parameters": _field("parameters"),
}


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


def _threat(norm: ThreatNorm, frames: Mapping[Slot, pl.DataFrame], profile: pl.DataFrame) -> dict[str, list[Any]]:
    """All columns of one norm, named after it."""
    attack, bound = frames.get(("attack", norm)), frames.get(("bound", norm))
    found: dict[str, list[Any]] = {}
    if attack is not None:
        judged = {name: _field(name) for name in ("eps", "robust_accuracy", "clean_loss", "adversarial_loss")}
        found |= _columns(attack, judged | {"curve": _field("curve")})
        clean = profile.select(_field("clean_accuracy"))["clean_accuracy"].to_list()
        pairs = zip(found["robust_accuracy"], clean, strict=True)
        found["robust_over_clean"] = [left / whole if left is not None and whole else None for left, whole in pairs]
        losses = zip(found.pop("adversarial_loss"), found.pop("clean_loss"), strict=True)
        found["gap"] = [None if after is None else after - before for after, before in losses]
        found["curve"], found["certified_accuracy"] = _certified(found["curve"], found["eps"], bound)
    if bound is not None:
        fields = ("lipschitz", "lipschitz_structure", "lipschitz_lower")
        found |= _columns(bound, {"gap_bound": _field("gap_bound")} | {one: _field("bounds", one) for one in fields})
    elif attack is not None:
        found["gap_bound"] = [None] * len(profile)
    first = _field("layers").list.first().struct
    more: dict[Kind, dict[str, pl.Expr]] = {
        "universal": {"universal_accuracy": _field("accuracy"), "universal_eps": _field("eps")},
        "query": {"query_accuracy": _field("robust_accuracy")},
        "transferred": {"transferred_accuracy": _field("robust_accuracy")},
        "mechanism": {
            "amplification": _field("amplification"),
            "alignment": first.field("alignment"),
            "alignment_baseline": first.field("baseline"),
        },
    }
    for kind, expressions in more.items():
        frame = frames.get((kind, norm))
        if frame is not None:
            found |= _columns(frame, expressions)
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
        reached = _field("radii").list.eval(((pl.element() > 0) & (pl.element() >= eps)).mean()).list.first()
        shares[eps] = bound.select(share=reached)["share"].to_list()
    full = [
        None if curve is None else [{**point, "certified_accuracy": shares[point["eps"]][row]} for point in curve]
        for row, curve in enumerate(curves)
    ]
    return full, [None if eps is None else shares[eps][row] for row, eps in enumerate(judged)]


def _warnings(frames: Mapping[Slot, pl.DataFrame]) -> set[str]:
    """What could not be measured, bounded or explained for some model."""
    skipped = frames["profile", None].select(one=_field("profile", "skipped").explode())["one"].drop_nulls().unique()
    found = {not_measured(one["kind"], one["name"], one["reason"]) for one in skipped.to_list()}
    for (kind, norm), frame in frames.items():
        if norm is not None:
            reasons = frame.filter(pl.col("status") == "skipped")["reason"].drop_nulls().unique()
            found |= {not_done(kind, norm, reason) for reason in reasons}
    return found


def _origin(key: Key | None, store: Store) -> tuple[dict[str, str], str]:
    assert key is not None
    record = store.load([key])[key]
    return record.versions, record.machine
