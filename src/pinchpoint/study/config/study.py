"""A study is a YAML file: a base configuration, families of models along axes, seeds, and what is claimed of them.

    study: demo
    seeds: [0, 1, 2]
    base:
      data: {name: digits}
      model: {hidden: [128, 128]}
    families:
      - name: group_lasso
        view: neuron
        grid: {penalty.group_lasso: [0, 0.001, 0.01]}

It is validated whole before anything runs. Keys of an axis are paths into ``base``. Axes of one family multiply: ``list``
outermost, then ``zip``, then ``grid``, whose last key runs fastest.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from pinchpoint.errors import ConfigError
from pinchpoint.study.config.axes import check_count, rows_of
from pinchpoint.study.config.cell import Cell
from pinchpoint.study.config.cell_cache import Maker, look_up
from pinchpoint.study.config.claims import ClaimConfig
from pinchpoint.study.config.scales import scaled
from pinchpoint.utils.config import StrictModel, mapping, overridden, read_text, validate

Level = tuple[int, str, Cell]
"""Number, label and configuration."""


class FamilyConfig(StrictModel):
    """Models of rising compressibility, or along any other axis. ``fixed`` overrides ``base``, the axes override both."""

    model_config = ConfigDict(extra="forbid", frozen=True, coerce_numbers_to_str=True)  # labels: [full, 32, 16]

    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    view: Literal["neuron", "spectral"] = Field(description="the compressibility by which its models are ranked")
    fixed: dict[str, Any] = Field(default={})
    grid: dict[str, list[Any]] = Field(default={}, description="paths and their values, multiplied")
    zipped: dict[str, list[Any]] = Field(default={}, alias="zip", description="paths and values that go together")
    listed: tuple[dict[str, Any], ...] = Field(
        default=(), alias="list", description="levels written out, each a mapping of paths"
    )
    labels: tuple[str, ...] | None = Field(default=None, description="one a level; made from the values where null")

    @model_validator(mode="after")
    def _not_empty(self) -> FamilyConfig:
        levels = len(self.rows)
        if self.labels is not None and len(self.labels) != levels:
            raise ConfigError(
                f"family '{self.name}' needs one label a level, {levels} in all",
                len(self.labels),
                f"give {levels} labels, or leave labels out",
            )
        return self

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """What each level overrides.

        Raises:
            ConfigError: where an axis is empty, a key is given twice, or zipped lists differ in length.
        """
        return rows_of(self.name, self.listed, self.zipped, self.grid)


class StudyConfig(StrictModel):
    """A whole study."""

    study: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    title: str = ""
    paper: str = Field(default="", description="what of the paper it repeats, or 'beyond'")
    about: str = Field(default="", description="what it asks, how it differs from the paper, what is to be downloaded")
    seeds: tuple[int, ...]
    base: dict[str, Any] = Field(default={}, description="a cell, see the definition Cell")
    families: tuple[FamilyConfig, ...]
    claims: tuple[ClaimConfig, ...] = ()

    _levels: dict[str, list[Level]] = PrivateAttr(default_factory=dict)
    _maker: Maker | None = PrivateAttr(default=None)

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
        claimed = [claim.id for claim in self.claims]
        if len(set(claimed)) != len(claimed):
            raise ConfigError("claims need distinct ids", claimed, "rename one")
        check_count("a study", len(self.seeds) * sum(len(family.rows) for family in self.families))
        judged: dict[frozenset[object], str] = {}
        seen: set[int] = set()
        for family in self.families:
            for level, _, cell in self.levels(family):
                if id(cell.audit) in seen:
                    continue
                seen.add(id(cell.audit))
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
        for claim in self.claims:
            claim.check({family.name: [label for _, label, _ in self.levels(family)] for family in self.families})
        return self

    def levels(self, family: FamilyConfig) -> list[Level]:
        """Number, label and configuration of each level of a family.

        Raises:
            ConfigError: where a key is unknown or a value does not fit.
        """
        if family.name not in self._levels:
            self._levels[family.name] = list(self._made(family))
        return self._levels[family.name]

    def surrogate(self, cell: Cell) -> Cell | None:
        """The cell whose model lends its examples to this one's transfer attack."""
        if cell.surrogate is None:
            return None
        content = cell.model_dump(mode="json", exclude={"surrogate": True, "audit": {"stages"}})
        return make_cell(content, cell.surrogate.set, "surrogate.set")

    def _made(self, family: FamilyConfig) -> Iterator[Level]:
        if self._maker is None:
            self._maker = Maker(self.base)
        for level, row in enumerate(family.rows):
            cell = self._maker.cell({**family.fixed, **row}, f"family '{family.name}'")
            if family.labels is not None:
                yield level, family.labels[level], cell
            else:
                yield level, ", ".join(f"{key.rpartition('.')[2]} {_show(look_up(cell, key))}" for key in row), cell


def read(path: Path, *, scale: str | None = None, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """Read and validate a study file.

    Args:
        path: the file.
        scale: one of the file's ``scales``, laid over the rest.
        overrides: values at dotted paths: of the file (``seeds``, ``base.train.epochs``, ``families.NAME.grid``), or of
            ``base`` (``train.epochs``).

    Raises:
        ConfigError: where the file is missing, is not YAML, holds unknown keys or values that do not fit.
    """
    return parse(read_text(path, "a study file"), str(path), scale=scale, overrides=overrides)


def parse(
    text: str, where: str = "the study", *, scale: str | None = None, overrides: Mapping[str, Any] | None = None
) -> StudyConfig:
    """Validate a study given as YAML text; see ``read``."""
    content = scaled(mapping(text, where, "study, seeds, base and families"), scale, overrides or {}, where)
    with no_collecting():
        return validate(StudyConfig, content, where)


def make_cell(base: Mapping[str, Any], overrides: Mapping[str, Any], where: str = "the configuration") -> Cell:
    """``base`` with dotted paths overridden, validated.

    >>> make_cell({"model": {"hidden": [32]}}, {"penalty.group_lasso": "1e-3"}).penalty.group_lasso
    0.001
    """
    return validate(Cell, overridden(base, overrides, where), where)


def _show(value: Any) -> str:
    if value is None:
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


@contextmanager
def no_collecting() -> Iterator[None]:
    """A million small objects that all stay: looking for garbage among them takes longer than making them."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
