"""Rows of models, read off the tables of stages."""

from __future__ import annotations

from pinchpoint.records import LayerMechanism, Mechanism, StageRecord
from pinchpoint.study.analysis.rows import _COLUMNS
from pinchpoint.study.store import parquet


def record(identity: str, layers: list[LayerMechanism]) -> StageRecord:
    result = Mechanism(norm="l2", eps=0.5, amplification=0.25, layers=layers)
    return StageRecord(
        id=identity, digest=identity, kind="mechanism", parents=[], seed=0, config={}, status="done", reason=None,
        versions={}, machine="", seconds=0.0, result=result,
    )  # fmt: skip


def test_alignment_is_that_of_the_first_layer_and_none_where_no_layer_has_one():
    layers = [
        LayerMechanism(name=name, k=1, alignment=alignment, baseline=0.125, amplification=1.0)
        for name, alignment in (("first", 0.75), ("second", 0.5))
    ]
    table = parquet.frame("mechanism", [record("a", layers), record("b", [])])
    columns = table.select(_COLUMNS["mechanism"]).to_dict(as_series=False)
    assert columns == {
        "alignment": [0.75, None],
        "alignment_baseline": [0.125, None],
        "amplification": [0.25, 0.25],
    }
