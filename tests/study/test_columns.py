"""Parquet columns follow from types, and values come back as they went in."""

from __future__ import annotations

import math
from typing import Any, Literal

import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pinchpoint.records import RESULTS, Record, StageRecord
from pinchpoint.study import columns, tables


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


floats = st.floats(allow_nan=True, allow_infinity=True)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=5)
wholes = st.integers(-(2**63), 2**63 - 1)
json_values = st.recursive(
    st.none() | st.booleans() | wholes | floats | texts,
    lambda inside: st.lists(inside, max_size=2) | st.dictionaries(texts, inside, max_size=2),
    max_leaves=4,
)


def values(annotation: Any) -> st.SearchStrategy:
    """Anything of a type."""
    from types import UnionType
    from typing import Union, get_args, get_origin

    from pydantic import BaseModel

    plain = {str: texts, int: wholes, float: floats, bool: st.booleans(), Any: json_values}
    if annotation in plain:
        return plain[annotation]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        rest = [values(one) for one in arguments if one is not type(None)]
        return st.one_of(st.none(), *rest) if type(None) in arguments else st.one_of(*rest)
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (list, tuple):
        return st.lists(values(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(texts, values(arguments[1]), max_size=2)
    assert issubclass(annotation, BaseModel), annotation
    return st.fixed_dictionaries({name: values(field.annotation) for name, field in annotation.model_fields.items()})


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
    tables.write(tables.frame(kind, records), path)
    return tables.records(kind, tables.read(kind, [path]))


@settings(max_examples=30)
@given(st.lists(values(Outer), max_size=3))
def test_values_come_back_as_they_went_in(rows):
    types = {name: field.annotation for name, field in Outer.model_fields.items()}
    into = [{name: columns.encode(row[name], kind) for name, kind in types.items()} for row in rows]
    frame = polars.DataFrame(into, schema=columns.schema(Outer), strict=True)
    back = [
        {name: columns.decode(row[name], kind) for name, kind in types.items()} for row in frame.iter_rows(named=True)
    ]
    assert same(rows, back)


@pytest.mark.parametrize("kind", RESULTS)
@settings(max_examples=5)
@given(data=st.data())
def test_records_of_every_kind_come_back_from_parquet_as_they_went_in(tmp_path_factory, kind, data):
    """NaN and infinities, empty lists, missing values and odd letters included."""
    common = {name: values(field.annotation) for name, field in StageRecord.model_fields.items() if name != "result"}
    common |= {
        "kind": st.just(kind),
        "status": st.sampled_from(["done", "skipped", "failed"]),
        "store_schema": st.just(1),
    }
    rows = data.draw(
        st.lists(st.fixed_dictionaries(common | {"result": values(RESULTS[kind])}), min_size=1, max_size=3)
    )
    for row in rows:
        if row["status"] != "done":
            row["result"] = None
    records = [StageRecord.model_construct(**row | {"result": _result(kind, row["result"])}) for row in rows]
    back = there_and_back(kind, records, tmp_path_factory.mktemp("parquet") / "record.parquet")
    for record, other in zip(records, back, strict=True):
        assert type(other.result) is (RESULTS[kind] if record.status == "done" else type(None))
        assert same(record.model_dump(warnings=False), other.model_dump())


def _result(kind: str, content: Any) -> Record | None:
    return None if content is None else RESULTS[kind].model_validate(content)


def test_records_of_the_tiny_study_come_back_from_parquet_as_they_went_in(finished, tmp_path):
    for kind in {key[0] for key in finished.records}:
        records = [record for key, record in finished.records.items() if key[0] == kind]
        assert there_and_back(kind, records, tmp_path / f"{kind}.parquet") == records
