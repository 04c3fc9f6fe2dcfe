"""Runs put together from the records of their stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pinchpoint.errors import StoreError
from pinchpoint.records import SCHEMA_VERSION, Run, StageRecord
from pinchpoint.study.analysis.assemble import NormResults, assemble
from pinchpoint.study.graph.plan import Task
from pinchpoint.study.graph.stages import Key, Stage


def together(task: Task, stages: Mapping[Key, Stage], records: Mapping[Key, StageRecord]) -> Run | None:
    """A task's run, or None where a stage of its own is not there or failed.

    Raises:
        StoreError: where a record belongs to another configuration.
    """
    own: list[tuple[Stage, StageRecord]] = []
    for key in task.own:
        record, stage = records.get(key), stages[key]
        if record is None or record.status == "failed":
            return None
        if record.digest != stage.digest:
            raise StoreError(
                "the id of a stage must belong to one configuration",
                f"{stage.kind} {stage.id} of two",
                "change any value of one of them, for example its seed, or choose another folder with --out",
            )
        own.append((stage, record))
    made: dict[str, Any] = {record.kind: record.result for stage, record in own if stage.norm is None}
    trained = own[0][1]
    return Run(
        id=task.id,
        schema_version=SCHEMA_VERSION,
        config=task.cell.model_dump(mode="json"),
        seed=task.seed,
        versions=trained.versions,
        machine=trained.machine,
        model="/".join(task.model),
        training=made["train"],
        transferred=made.get("transfer"),
        compressed=made.get("compress"),
        audit=assemble(
            made["profile"], _by_norm(own), {stage.name: record.seconds for stage, record in own}, made.get("retrieval")
        ),
    )


def _by_norm(own: Sequence[tuple[Stage, StageRecord]]) -> list[NormResults]:
    by_norm: dict[str, NormResults] = {}
    for stage, record in own:
        if stage.norm is not None:
            results = by_norm.setdefault(stage.norm, NormResults(stage.norm))
            if record.status == "skipped":
                results.reasons[stage.kind] = record.reason or "no reason"
            elif record.result is not None:
                results.results.append(record.result)
    return list(by_norm.values())
