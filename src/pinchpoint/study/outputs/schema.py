"""JSON schemas of study files, of summaries and of audits, for editors and other programs.

They come from the same models that validate, so an editor with a YAML language server completes keys and marks what
``pinchpoint study plan`` would refuse. Its first line says where the schema is:

    # yaml-language-server: $schema=docs/schema/study.json

Two things are looser in the schema: ``base`` and scales may hold parts of sections, since other places fill in the rest; and
what only several keys together make wrong is for ``pinchpoint study plan`` to say.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pinchpoint.records import AuditReport, Summary
from pinchpoint.study.config.cell import Cell
from pinchpoint.study.config.study import StudyConfig
from pinchpoint.study.outputs.files import write_whole

Schema = dict[str, Any]
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
_TEXTS = ("FamilyConfig", "Side")
"""Sections in which a number counts as text."""

_FRACTIONS = {"AdversarialConfig": ("eps", "step_size"), "ThreatConfig": ("eps", "universal_eps", "curve")}
"""Numbers that may be written 8/255."""

_NUMBER = r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"
_FRACTION = r"^ *[0-9.]+([eE][-+]?[0-9]+)? *(/ *[0-9.]+ *)?$"


def study_schema() -> Schema:
    """Of study files, scales and dotted paths included.

    >>> sorted(study_schema()["properties"]["scales"]["additionalProperties"])
    ['$ref']
    """
    cells, study = _cells(), StudyConfig.model_json_schema()
    definitions: Schema = study.pop("$defs")
    for name in _TEXTS:
        definitions[name] = _everywhere(definitions[name], _number_too)
    values = cells["Values"]["properties"]
    axis = {path: {"type": "array", "items": {"$ref": f"#/$defs/Values/properties/{path}"}} for path in values}
    cells["Axis"] = {"type": "object", "properties": axis, "additionalProperties": False}
    family = definitions["FamilyConfig"]["properties"]
    for key, name in (("fixed", "Values"), ("grid", "Axis"), ("zip", "Axis")):
        family[key] = _reference(name, family[key])
    family["list"]["items"] = _reference("Values", {})

    def change(node: Schema) -> Schema:
        name = str(node.get("$ref", "")).rpartition("/")[2]
        return _partial(_reference(f"{name}Change", node) if name in definitions else node)

    changes = {f"{name}Change": _everywhere(definition, change) for name, definition in definitions.items()}
    properties = study["properties"]
    properties["base"] = _reference("Cell", properties["base"])
    scale = copy.deepcopy(properties)
    for key, name in (("families", "FamilyConfig"), ("claims", "ClaimConfig")):
        by_name = {"anyOf": [_reference(f"{name}Change", {}), {"type": "null"}]}
        scale[key] = {"anyOf": [scale[key], {"type": "object", "additionalProperties": by_name}]}
    properties["scales"] = {
        "description": "by name: what a scale changes; families and claims by name, null leaves one out",
        "type": "object",
        "additionalProperties": _reference("Scale", {}),
    }
    changes["Scale"] = {"type": "object", "properties": scale, "additionalProperties": False}
    whole = {"$schema": _DRAFT, **study, "title": "Pinchpoint study", "$defs": definitions | changes | cells}
    found: Schema = _everywhere(whole, _scientific)
    return found


def summary_schema() -> Schema:
    """Of summary.json."""
    schema = Summary.model_json_schema(mode="serialization")
    return {"$schema": _DRAFT, **schema, "title": "Pinchpoint summary"}


def audit_schema() -> Schema:
    """Of audit.json."""
    schema = AuditReport.model_json_schema(mode="serialization")
    return {"$schema": _DRAFT, **schema, "title": "Pinchpoint audit"}


SCHEMAS: dict[str, Callable[[], Schema]] = {"study": study_schema, "summary": summary_schema, "audit": audit_schema}


def text_of(schema: Schema) -> str:
    """As it is written."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


def write(folder: Path) -> list[Path]:
    """study.json, summary.json and audit.json.

    Raises:
        StoreError: where the folder cannot be written.
    """
    return [_write(folder / f"{name}.json", text_of(make())) for name, make in SCHEMAS.items()]


def _write(path: Path, text: str) -> Path:
    return write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _cells() -> Schema:
    """A cell and its sections, all of them possibly partial; and ``Values``, every dotted path into a cell."""
    cell: Schema = Cell.model_json_schema()
    definitions: Schema = {**cell.pop("$defs"), "Cell": cell}
    required: list[str] = definitions["ThreatConfig"]["required"]
    definitions = {name: _everywhere(definition, _partial) for name, definition in definitions.items()}
    definitions["ThreatConfig"]["required"] = required  # lists are not merged, so theirs are whole
    for name, keys in _FRACTIONS.items():
        properties = definitions[name]["properties"]
        properties |= {key: _everywhere(properties[key], _fraction_too) for key in keys}
    definitions["SurrogateConfig"]["properties"]["set"] = _reference("Values", {})
    paths: dict[str, list[Schema]] = {}
    for path, found in _paths(definitions["Cell"], definitions):
        known = paths.setdefault(path, [])
        if found not in known:
            known.append(found)
    values = {path: found[0] if len(found) == 1 else {"anyOf": found} for path, found in paths.items()}
    definitions["Values"] = {"type": "object", "properties": values, "additionalProperties": False}
    return definitions


def _paths(node: Schema, definitions: Schema) -> Iterator[tuple[str, Schema]]:
    """Dotted paths to all that lies below, with what may stand there; values are not described twice."""
    if "$ref" in node:
        name = node["$ref"].rpartition("/")[2]
        if name != "Values":
            yield from _paths(definitions[name], definitions)
    for option in node.get("anyOf", []):
        yield from _paths(option, definitions)
    for key, below in node.get("properties", {}).items():
        yield key, {name: value for name, value in below.items() if name not in ("title", "default")}
        yield from ((f"{key}.{path}", found) for path, found in _paths(below, definitions))


def _everywhere(node: Any, change: Callable[[Schema], Schema]) -> Any:
    """A schema with every part of it changed, the innermost first."""
    if isinstance(node, list):
        return [_everywhere(item, change) for item in node]
    if not isinstance(node, dict):
        return node
    return change({key: _everywhere(item, change) for key, item in node.items()})


def _partial(node: Schema) -> Schema:
    """Nothing is required, and several options may then fit."""
    kept = {key: value for key, value in node.items() if key != "required" or not isinstance(value, list)}
    return {"anyOf" if key == "oneOf" else key: value for key, value in kept.items()}


def _scientific(node: Schema) -> Schema:
    """To a YAML reader of version 1.1, 3e-5 is text, for want of a point; it is taken as the number it means."""
    return {**node, "type": ["number", "string"], "pattern": _NUMBER} if node.get("type") == "number" else node


def _fraction_too(node: Schema) -> Schema:
    return {**node, "type": ["number", "string"], "pattern": _FRACTION} if node.get("type") == "number" else node


def _number_too(node: Schema) -> Schema:
    """Where numbers count as text: labels: [full, 32, 16]."""
    free = node.get("type") == "string" and "enum" not in node and "const" not in node
    return {**node, "type": ["string", "number"]} if free else node


def _reference(name: str, beside: Schema) -> Schema:
    """A definition by name, with the description that stood there."""
    kept = {key: value for key, value in beside.items() if key in ("description", "default")}
    return {"$ref": f"#/$defs/{name}", **kept}
