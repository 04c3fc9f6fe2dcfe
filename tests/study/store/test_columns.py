"""Parquet columns follow from types, and values come back as they went in."""

from __future__ import annotations

import math
import random
import types
from typing import Any, Literal, Union, get_args, get_origin

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from pinchpoint.records import STAGE_KINDS, StageRecord
from pinchpoint.records.base import Record
from pinchpoint.study.store import columns, parquet


class Inner(Record):
    """Everything a record may hold."""

    name: str
    number: int | None
    share: float
    flag: bool
    kind: Literal["a", "b"]
    many: list[float]
    nested: list[list[int]] | None
    mapping: dict[str, float]
    records: dict[str, list[int]] | None
    anything: dict[str, Any]


class Outer(Record):
    """Records within records."""

    one: Inner | None
    some: list[Inner]
    named: dict[str, Inner]


def test_every_type_has_its_column():
    expected = {
        "name": polars.String(), "number": polars.Int64(), "share": polars.Float64(), "flag": polars.Boolean(),
        "kind": polars.String(), "many": polars.List(polars.Float64()), "nested": polars.List(polars.List(polars.Int64())),
        "mapping": polars.List(polars.Struct({"key": polars.String(), "value": polars.Float64()})),
        "records": polars.List(polars.Struct({"key": polars.String(), "value": polars.List(polars.Int64())})),
        "anything": polars.String(),
    }  # fmt: skip
    assert columns.schema(Inner) == expected
    inner = polars.Struct(expected)
    assert columns.schema(Outer) == {
        "one": inner,
        "some": polars.List(inner),
        "named": polars.List(polars.Struct({"key": polars.String(), "value": inner})),
    }


FLOATS = [math.nan, math.inf, -math.inf, 0.0, -0.0, 5e-324, 1e308, 0.1, -2.5]
TEXTS = ["", "a", "linf", "naïve ε ✓ 𝔘", "two\nlines", '"quoted"', "\\", "null", "1", "NaN"]
WHOLES = [0, 1, -1, 2**63 - 1, -(2**63), 7]
PLAIN: dict[Any, list[Any]] = {float: FLOATS, str: TEXTS, int: WHOLES, bool: [True, False]}


def value(annotation: Any, chance: random.Random) -> Any:
    """Anything of a type, extremes more often than not."""
    if annotation in PLAIN:
        return chance.choice(PLAIN[annotation])
    if annotation is Any:
        kinds = [str, int, float, bool, list[float], dict[str, float], list[dict[str, str]]]
        return value(chance.choice(kinds), chance) if chance.random() < 0.9 else None
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        one = chance.choice(arguments)
        return None if one is type(None) else value(one, chance)
    if origin is Literal:
        return chance.choice(arguments)
    if origin in (list, tuple):
        return [value(arguments[0], chance) for _ in range(chance.randrange(3))]
    if origin is dict:
        return {value(arguments[0], chance): value(arguments[1], chance) for _ in range(chance.randrange(3))}
    assert issubclass(annotation, BaseModel), annotation
    return {name: value(field.annotation, chance) for name, field in annotation.model_fields.items()}


chances = st.integers(0, 2**32).map(random.Random)


def same(one: Any, other: Any) -> bool:
    """Equal, where a number that is none equals itself."""
    if isinstance(one, float) and isinstance(other, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def there_and_back(kind: str, records: list[StageRecord], path) -> list[StageRecord]:
    parquet.write(parquet.frame(kind, records), path)
    return parquet.records(kind, parquet.read(kind, [path]))


@given(chances)
def test_values_come_back_as_they_went_in(chance):
    fields = {name: field.annotation for name, field in Outer.model_fields.items()}
    rows = [value(Outer, chance) for _ in range(chance.randrange(4))]
    into = [{name: columns.encode(row[name], kind) for name, kind in fields.items()} for row in rows]
    frame = polars.DataFrame(into, schema=columns.schema(Outer), strict=True)
    back = [
        {name: columns.decode(row[name], kind) for name, kind in fields.items()} for row in frame.iter_rows(named=True)
    ]
    assert same(rows, back)


@pytest.mark.parametrize("kind", STAGE_KINDS)
@settings(max_examples=10)
@given(chance=chances)
def test_records_of_every_kind_come_back_from_parquet_as_they_went_in(tmp_path_factory, kind, chance):
    """NaN and infinities, empty lists, missing values and odd letters included."""
    records = []
    for _ in range(chance.randrange(1, 4)):
        common = {name: field.annotation for name, field in StageRecord.model_fields.items() if name != "result"}
        row = {name: value(annotation, chance) for name, annotation in common.items()}
        result = (
            STAGE_KINDS[kind].result.model_validate(value(STAGE_KINDS[kind].result, chance))
            if row["status"] == "done"
            else None
        )
        records.append(StageRecord.model_construct(**row | {"kind": kind, "store_schema": 1, "result": result}))
    back = there_and_back(kind, records, tmp_path_factory.mktemp("parquet") / "record.parquet")
    for record, other in zip(records, back, strict=True):
        assert type(other.result) is type(record.result)
        assert same(record.model_dump(warnings=False), other.model_dump())


def test_records_of_the_tiny_study_come_back_from_parquet_as_they_went_in(finished, tmp_path):
    for kind in {key[0] for key in finished.records}:
        records = [record for key, record in finished.records.items() if key[0] == kind]
        assert there_and_back(kind, records, tmp_path / f"{kind}.parquet") == records
