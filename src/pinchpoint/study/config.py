"""A study is a YAML file: a base configuration, families of grids, and seeds. It is validated whole before anything runs.

    study: demo
    seeds: [0, 1, 2]
    base:
      data: {name: digits}
      model: {hidden: [128, 128]}
    families:
      - name: group_lasso
        view: neuron
        grid: {penalty.group_lasso: [0, 0.001, 0.01]}

A grid's keys are paths into ``base``; with several keys the grid is their product, the last key running fastest.
"""

from __future__ import annotations

import copy
import difflib
import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

from pinchpoint.audit import AuditConfig
from pinchpoint.compress import L1, GroupLasso, NuclearNorm, Penalty, Sum
from pinchpoint.errors import ConfigError, PinchpointError
from pinchpoint.learn import DataConfig, ModelConfig, TrainConfig
from pinchpoint.records import SCHEMA_VERSION, Member

_Model = TypeVar("_Model", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PenaltyConfig(_Strict):
    """Strength of each penalty; 0 leaves it out."""

    l1: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    group_lasso: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    nuclear_norm: float = Field(default=0.0, ge=0, allow_inf_nan=False)

    def build(self) -> Penalty | Sum | None:
        """The penalties to train with, or None."""
        kinds = ((self.l1, L1), (self.group_lasso, GroupLasso), (self.nuclear_norm, NuclearNorm))
        parts = [kind(strength) for strength, kind in kinds if strength > 0]
        return Sum(parts) if len(parts) > 1 else parts[0] if parts else None


class Cell(_Strict):
    """Everything one run depends on, but the seed. ``device`` may be ``auto``, ``cpu``, ``cuda`` or e.g. ``cuda:1``."""

    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    penalty: PenaltyConfig = PenaltyConfig()
    constant_frobenius: bool = False
    train: TrainConfig = TrainConfig()
    audit: AuditConfig = AuditConfig()
    device: str = "auto"
    threads: int = Field(
        default=1, ge=1, le=1024, description="threads of a run; part of its id, since they change rounding"
    )

    @field_validator("device")
    @classmethod
    def _known(cls, device: str) -> str:
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", device):
            raise ValueError("Input should be auto, cpu, cuda or cuda:N")
        return device

    def id(self, seed: int) -> str:
        """A hash of the configuration, the seed and the schema: the same work has the same id."""
        content = {"schema": SCHEMA_VERSION, "cell": self.model_dump(mode="json"), "seed": seed}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


class FamilyConfig(_Strict):
    """Models of rising compressibility: ``fixed`` overrides ``base``, ``grid`` runs from none to strong."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)  # labels: [full, 32, 16]

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    view: Literal["neuron", "spectral"]
    fixed: dict[str, Any] = {}
    grid: dict[str, list[Any]]
    labels: list[str] | None = Field(default=None, description="one a level; made from the values where null")

    @model_validator(mode="after")
    def _not_empty(self) -> FamilyConfig:
        empty = [key for key, values in self.grid.items() if not values]
        if not self.grid or empty:
            seen = f"no value for {empty[0]}" if empty else "no key"
            raise ConfigError(
                f"the grid of family '{self.name}' must hold values", seen, "list one value or more a key"
            )
        levels = math.prod(len(values) for values in self.grid.values())
        if self.labels is not None and len(self.labels) != levels:
            raise ConfigError(
                f"family '{self.name}' needs one label a level, {levels} in all",
                len(self.labels),
                f"give {levels} labels, or leave labels out",
            )
        return self


class StudyConfig(_Strict):
    """A whole study."""

    study: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    seeds: tuple[int, ...]
    base: dict[str, Any] = {}
    families: tuple[FamilyConfig, ...]

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
            raise ConfigError(
                "seeds must be one or more distinct numbers from 0 to 2**32 - 1", list(seeds), "use [0, 1, 2]"
            )
        return seeds

    @model_validator(mode="after")
    def _whole(self) -> StudyConfig:
        names = [family.name for family in self.families]
        if not names or len(set(names)) != len(names):
            raise ConfigError("a study needs families with distinct names", names, "rename or add one")
        judged: dict[frozenset[object], str] = {}
        for family in self.families:
            for level, _, cell in self.levels(family):
                threats = cell.audit.threats
                budgets = ", ".join(f"{threat.norm} {threat.eps:g}" for threat in threats)
                key = frozenset((threat.norm, threat.eps, threat.universal_eps) for threat in threats)
                judged.setdefault(key, f"{budgets} at level {level} of family '{family.name}'")
        if len(judged) > 1:
            raise ConfigError(
                "all models of a study must be judged under the same norms and budgets",
                " and ".join(list(judged.values())[:2]),
                "list further budgets in curve, or make it two studies",
            )
        return self

    def levels(self, family: FamilyConfig) -> Iterator[tuple[int, str, Cell]]:
        """Number, label and configuration of each level of a family's grid.

        Raises:
            ConfigError: where a key is unknown or a value does not fit.
        """
        for level, values in enumerate(itertools.product(*family.grid.values())):
            overrides = dict(zip(family.grid, values, strict=True))
            cell = make_cell(self.base, {**family.fixed, **overrides}, where=f"family '{family.name}'")
            made = ", ".join(f"{key.rpartition('.')[2]} {_show(_look_up(cell, key))}" for key in family.grid)
            yield level, made if family.labels is None else family.labels[level], cell

    def plan(self) -> list[Task]:
        """Every run of the study, once, in the order of families, levels and seeds (seeds outermost)."""
        tasks: dict[str, Task] = {}
        for seed, family in itertools.product(self.seeds, self.families):
            for level, label, cell in self.levels(family):
                run = cell.id(seed)
                member = Member(family=family.name, level=level, label=label, seed=seed, run=run)
                tasks.setdefault(run, Task(run, cell, seed, [])).members.append(member)
        return list(tasks.values())


@dataclass(frozen=True)
class Task:
    """One run to do: its id, configuration and seed, and the places in the study it fills."""

    id: str
    cell: Cell
    seed: int
    members: list[Member]

    @property
    def label(self) -> str:
        """Short name for people."""
        first = self.members[0]
        return f"{first.family}: {first.label}, seed {self.seed}"


def read(path: Path) -> StudyConfig:
    """Read and validate a study file.

    Raises:
        ConfigError: where the file is missing, is not YAML, holds unknown keys or values that do not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("a study file must be a readable text file", f"{path} ({error})", "check the path") from None
    return parse(text, str(path))


def parse(text: str, where: str = "the study") -> StudyConfig:
    """Validate a study given as YAML text."""
    try:
        content = yaml.load(text, Loader=_UniqueKeys)
    except _YAML_ERRORS as error:
        mark = getattr(error, "problem_mark", None)
        said = (getattr(error, "context", None), getattr(error, "problem", None))
        problem = ", ".join(filter(None, said)) or str(error)
        seen = f"line {mark.line + 1}, column {mark.column + 1}: {problem}" if mark else problem
        raise ConfigError(f"{where} must be YAML", seen, "mend the file there") from None
    if not isinstance(content, dict):
        seen = "nothing" if content is None else f"a {type(content).__name__}"
        raise ConfigError(f"{where} must be a mapping with study, seeds, base and families", seen, "see the README")
    return _validate(StudyConfig, content, where)


def make_cell(base: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "the configuration") -> Cell:
    """``base`` with dotted paths overridden, validated.

    >>> make_cell({"model": {"hidden": [32]}}, {"penalty.group_lasso": "1e-3"}).penalty.group_lasso
    0.001
    """
    content: dict[str, Any] = copy.deepcopy(dict(base))
    for path, value in overrides.items():
        *parents, last = path.split(".")
        node = content
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise ConfigError(f"{where}: '{path}' must be a path into the configuration", parent, "check the key")
        node[last] = copy.deepcopy(value)
    return _validate(Cell, content, where)


def _validate(kind: type[_Model], content: object, where: str) -> _Model:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        problems = error.errors()
        # a misspelt key explains a missing one
        problem = next((one for one in problems if one["type"] == "extra_forbidden"), problems[0])
        inner = problem.get("ctx", {}).get("error")
        place = ".".join(str(part) for part in problem["loc"])
        if isinstance(inner, PinchpointError):
            at = f"{where}, {place}" if place else where
            raise ConfigError(f"{at}: {inner.rule}", inner.value, inner.remedy) from None
        if problem["type"] == "extra_forbidden":
            known = _keys_at(kind, problem["loc"][:-1])
            close = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1)
            remedy = f"perhaps {close[0]} is meant" if close else f"known here: {', '.join(known) or 'none'}"
            raise ConfigError(f"{where}: every key must be known", place, remedy) from None
        value = "nothing" if problem["type"] == "missing" else repr(problem["input"])
        raise ConfigError(
            f"{where}: {place}: {inner or _PLAIN.get(problem['type'], problem['msg'])}", value, _remedy(problem)
        ) from None


def _remedy(problem: ErrorDetails) -> str:
    """What to write instead, where pydantic knows it."""
    limits = problem.get("ctx", {})
    if "expected" in limits:
        return f"use {limits['expected']}"
    for key, words in (("ge", "at least"), ("gt", "more than"), ("le", "at most"), ("lt", "less than")):
        if key in limits:
            return f"use {words} {limits[key]:g}"
    return "add it" if problem["type"] == "missing" else "correct it in the file"


_PLAIN = {
    "tuple_type": "Input should be a list",
    "list_type": "Input should be a list",
    "dict_type": "Input should be a mapping",
    "model_type": "Input should be a mapping",
    "string_type": "Input should be text (put it in quotes)",
    "string_pattern_mismatch": "Input should be letters, digits, - and _",
}
"""Where pydantic speaks of Python, what a study file is told instead."""


def _keys_at(kind: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names of the fields of the model at a place."""
    for part in location:
        if isinstance(part, int) or part not in kind.model_fields:
            continue
        annotation: Any = kind.model_fields[part].annotation
        candidates = [annotation, *getattr(annotation, "__args__", ())]
        models = [one for one in candidates if isinstance(one, type) and issubclass(one, BaseModel)]
        if not models:
            return []
        kind = models[0]
    return list(kind.model_fields)


def _look_up(cell: Cell, path: str) -> Any:
    value: Any = cell
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


class _UniqueKeys(yaml.SafeLoader):
    """YAML that refuses a key given twice instead of keeping the last."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.composer.ComposerError(None, None, f"key '{key.value}' is given twice", key.start_mark)
                seen.add(key.value)
        return node


# what PyYAML lets through for values such as 2020-13-45, !!int x, !!timestamp x, !!bool x, and for endless nesting
_YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError)
