"""One file, several sizes: a scale of a study file laid over the rest, and overrides from a command line."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pinchpoint.errors import ConfigError
from pinchpoint.study.config.cell import Cell
from pinchpoint.utils.config import overridden


def scaled(content: Mapping[str, Any], scale: str | None, overrides: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The content of a study file without ``scales``, the chosen one laid over it, then the overrides.

    Mappings are merged key by key; families and claims are named; what is null there is left out. An axis that is given
    replaces the one that was there.

    Raises:
        ConfigError: for a scale the file does not have, and an override that leads nowhere.

    >>> scaled({"seeds": [0, 1], "scales": {"quick": {"seeds": [0]}}}, "quick", {"train.epochs": 2}, "the file")
    {'seeds': [0], 'base': {'train': {'epochs': 2}}}
    """
    whole = copy.deepcopy(dict(content))
    scales = whole.pop("scales", None) or {}
    if not isinstance(scales, dict) or not all(isinstance(value, dict) for value in scales.values()):
        raise ConfigError(f"{where}: scales must be mappings by name", scales, "write scales: {quick: {...}}")
    if scale is not None and scale not in scales:
        raise ConfigError(
            f"a scale of {where} must be one of its scales", scale, f"use {' or '.join(scales) or 'none'}"
        )
    if scale is not None:
        whole = _over(whole, scales[scale], ())
    for path, value in overrides.items():
        first = path.split(".")[0]
        path = f"base.{path}" if first in Cell.model_fields and first not in whole else path
        if first == "families":
            whole = _over(whole, _nested(path.split(".")[:3], value, path.split(".")[3:]), ())
        else:
            whole = overridden(whole, {path: value}, where)
    return whole


_NAMED = {"families": "name", "claims": "id"}
_REPLACED = {"grid", "zip", "fixed"}


def _over(under: dict[str, Any], over: Mapping[str, Any], place: tuple[str, ...]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        if not place and key in _NAMED and isinstance(value, Mapping):
            merged[key] = _by_name(merged.get(key) or [], value, _NAMED[key])
        elif isinstance(value, Mapping) and isinstance(merged.get(key), dict) and key not in _REPLACED:
            merged[key] = _over(merged[key], value, (*place, key))
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _by_name(entries: Any, over: Mapping[str, Any], name: str) -> list[Any]:
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return list(entries) if isinstance(entries, list) else [entries]  # validation says what is wrong
    known = {str(entry.get(name)): entry for entry in entries}
    for key, value in over.items():
        if key not in known:
            raise ConfigError("what is changed by name must be there", key, f"use one of: {', '.join(known)}")
        if value is None:
            del known[key]
        elif not isinstance(value, Mapping):
            raise ConfigError(f"what changes {key} must be a mapping", value, f"write {key}: {{...}}, or null")
        else:
            known[key] = _over(known[key], value, ("entry",))
    return list(known.values())


def _nested(parents: list[str], value: Any, inside: list[str]) -> dict[str, Any]:
    """families.NAME.grid.model.rank=[1] is the key model.rank of that grid."""
    if inside:
        value = {".".join(inside): value}
    for parent in reversed(parents):
        value = {parent: value}
    assert isinstance(value, dict)
    return value
