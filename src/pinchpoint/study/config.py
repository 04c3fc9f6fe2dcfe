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

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from pinchpoint.audit import AuditConfig
from pinchpoint.configfile import mapping, overridden, read_text, validate
from pinchpoint.errors import ConfigError
from pinchpoint.recipe import Recipe
from pinchpoint.records import SCHEMA_VERSION, Member


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(Recipe):
    """Everything one run depends on, but the seed: how its model is made, and how it is judged."""

    audit: AuditConfig = AuditConfig()

    def id(self, seed: int) -> str:
        """A hash of the configuration, the seed and the schema: the same work has the same id."""
        content = {"schema": SCHEMA_VERSION, "cell": self.identity(), "seed": seed}
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
    return parse(read_text(path, "a study file"), str(path))


def parse(text: str, where: str = "the study") -> StudyConfig:
    """Validate a study given as YAML text."""
    return validate(StudyConfig, mapping(text, where, "study, seeds, base and families"), where)


def make_cell(base: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "the configuration") -> Cell:
    """``base`` with dotted paths overridden, validated.

    >>> make_cell({"model": {"hidden": [32]}}, {"penalty.group_lasso": "1e-3"}).penalty.group_lasso
    0.001
    """
    return validate(Cell, overridden(base, overrides, where), where)


def _look_up(cell: Cell, path: str) -> Any:
    value: Any = cell
    for part in path.split("."):
        value = value[part] if isinstance(value, dict) else getattr(value, part)
    return value


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
