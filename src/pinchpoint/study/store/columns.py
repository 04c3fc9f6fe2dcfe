"""Records as Parquet columns: the schema follows from the record's type, so every file of a kind has the same one."""

from __future__ import annotations

import functools
import json
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin

import polars
from pydantic import BaseModel

_PLAIN: dict[Any, Any] = {str: polars.String, int: polars.Int64, float: polars.Float64, bool: polars.Boolean}


def dtype(annotation: Any) -> polars.DataType:
    """The column type of a field: records are structs, mappings lists of (key, value), anything else is JSON text.

    >>> dtype(list[float]), dtype(dict[str, int] | None)
    (List(Float64), List(Struct({'key': String, 'value': Int64})))
    """
    annotation = _bare(annotation)
    if annotation in _PLAIN:
        return _PLAIN[annotation]()  # type: ignore[no-any-return]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return polars.Struct(schema(annotation))
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return polars.String()
    if origin in (list, tuple):
        return polars.List(dtype(arguments[0]))
    if origin is dict and arguments[1] is not Any:
        return polars.List(polars.Struct({"key": polars.String(), "value": dtype(arguments[1])}))
    return polars.String()


@functools.cache
def schema(record: type[BaseModel]) -> dict[str, polars.DataType]:
    """The columns of a record, in order."""
    return {name: dtype(field.annotation) for name, field in record.model_fields.items()}


def encode(value: Any, annotation: Any) -> Any:
    """A dumped value as its column wants it."""
    change = _changes(_bare(annotation))[0]
    return value if value is None or change is None else change(value)


def decode(value: Any, annotation: Any) -> Any:
    """The other way."""
    change = _changes(_bare(annotation))[1]
    return value if value is None or change is None else change(value)


def changes(annotation: Any) -> bool:
    """Whether values of the type look different in their column."""
    return _changes(_bare(annotation))[1] is not None


_Change = Callable[[Any], Any]


@functools.cache
def _changes(annotation: Any) -> tuple[_Change | None, _Change | None]:
    """How values of a type go into columns and come back; None where they stay as they are."""
    if annotation in _PLAIN:
        return None, None
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {name: _changes(_bare(field.annotation)) for name, field in annotation.model_fields.items()}
        return _for_fields(fields, 0), _for_fields(fields, 1)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return None, None
    if origin in (list, tuple):
        into, back = _changes(_bare(arguments[0]))
        return _for_each(into), _for_each(back)
    if origin is dict and arguments[1] is not Any:
        into, back = _changes(_bare(arguments[1]))
        return functools.partial(_pairs, into), functools.partial(_mapping, back)
    return json.dumps, json.loads


def _for_fields(fields: Mapping[str, tuple[_Change | None, _Change | None]], way: int) -> _Change | None:
    wanted = {name: change for name, ways in fields.items() if (change := ways[way]) is not None}
    if not wanted:
        return None

    def changed(value: Mapping[str, Any]) -> dict[str, Any]:
        new = dict(value)
        for name, change in wanted.items():
            if new.get(name) is not None:
                new[name] = change(new[name])
        return new

    return changed


def _for_each(change: _Change | None) -> _Change | None:
    return None if change is None else lambda values: [change(value) for value in values]


def _pairs(change: _Change | None, value: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"key": key, "value": item if change is None else change(item)} for key, item in value.items()]


def _mapping(change: _Change | None, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: pair["value"] if change is None else change(pair["value"]) for pair in pairs}


def _bare(annotation: Any) -> Any:
    """Without ``| None``: every column may be empty."""
    if get_origin(annotation) in (Union, types.UnionType):
        rest = [one for one in get_args(annotation) if one is not type(None)]
        if len(rest) == 1:
            return rest[0]
    return annotation
