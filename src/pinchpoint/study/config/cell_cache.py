"""Cells made quickly: a section is validated once for all cells that have it alike, and then shared by them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ValidationError, create_model, field_validator

from pinchpoint.errors import PinchpointError
from pinchpoint.study.config.cell import Cell
from pinchpoint.utils.config import overridden, validate

_FIELDS = set(Cell.model_fields)


def _part(name: str) -> type[BaseModel]:
    """A model of one section alone, checked as the cell checks it."""
    checks: dict[str, Any] = {
        key: field_validator(name, mode=check.info.mode)(classmethod(check.func.__func__))  # type: ignore[attr-defined]
        for key, check in Cell.__pydantic_decorators__.field_validators.items()
        if name in check.info.fields
    }
    field = Cell.model_fields[name]
    return create_model(f"Part_{name}", __validators__=checks, **{name: (field.annotation, field)})  # type: ignore[call-overload,no-any-return]


_PARTS = {name: _part(name) for name in Cell.model_fields}


class Maker:
    """Makes cells from one base. Cells with equal sections share the object, which ``graph.Hasher`` relies on."""

    def __init__(self, base: Mapping[str, Any]) -> None:
        self.base = base
        self._sections: dict[tuple[str, str], Any] = {}
        self._alike: dict[tuple[str, ...], Cell] = {}

    def cell(self, overrides: Mapping[str, Any], where: str) -> Cell:
        """``base`` with dotted paths overridden, validated.

        Raises:
            ConfigError: where a key is unknown or a value does not fit.
        """
        mine: dict[str, dict[str, Any]] = {}
        for path, value in overrides.items():
            mine.setdefault(path.partition(".")[0], {})[path] = value
        if not (mine.keys() | self.base.keys()) <= _FIELDS:
            return self._slowly(overrides, where)
        try:
            own = {name: self._section(name, paths, where) for name, paths in mine.items()}
            pattern = self._alike.get(tuple(mine))
            if pattern is None:
                rest = {name: self._section(name, {}, where) for name in _PARTS.keys() - mine.keys()}
                pattern = self._alike[tuple(mine)] = Cell.model_construct(set(), **rest, **own)
            made = pattern.model_copy(update=own)
            made._fits()  # type: ignore[operator]
            made._whole()  # type: ignore[operator]
        except (PinchpointError, ValidationError, ValueError):
            return self._slowly(overrides, where)  # which says what is wrong
        return made

    def _section(self, name: str, overrides: dict[str, Any], where: str) -> Any:
        key = name, repr(overrides) if overrides else ""
        if key not in self._sections:
            base = {name: self.base[name]} if name in self.base else {}
            part = validate(_PARTS[name], overridden(base, overrides, where), where)
            self._sections[key] = getattr(part, name)
        return self._sections[key]

    def _slowly(self, overrides: Mapping[str, Any], where: str) -> Cell:
        return validate(Cell, overridden(self.base, overrides, where), where)


def look_up(cell: Cell, path: str) -> Any:
    """The value at a dotted path."""
    value: Any = cell
    for part in path.split("."):
        if value is None:
            return None
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value
