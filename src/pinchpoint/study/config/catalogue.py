"""The studies that come with the package: one file for each experiment of the paper, and those beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pinchpoint.errors import ConfigError
from pinchpoint.study.config.study import StudyConfig, parse
from pinchpoint.utils.config import mapping
from pinchpoint.utils.study_files import scaled_studies, study_files


def names() -> list[str]:
    """All of them.

    >>> "demo" in names()
    True
    """
    return sorted(study_files())


def reproducible() -> list[str]:
    """Those of the paper's experiments, and beyond: what has a scale."""
    return scaled_studies()


def catalogue(name: str, scale: str | None = None, overrides: Mapping[str, Any] | None = None) -> StudyConfig:
    """A study that comes with the package, by name, at one of its scales.

    Raises:
        ConfigError: where there is none of that name, or it has no such scale.

    >>> catalogue("demo").seeds
    (0, 1, 2)
    """
    return parse(_text(name), f"{name}.yaml", scale=scale, overrides=overrides)


def scales(name: str) -> list[str]:
    """The scales of a study that comes with the package; none where it has one size."""
    return list(mapping(_text(name), f"{name}.yaml", "study").get("scales") or {})


def _text(name: str) -> str:
    files = study_files()
    if name not in files:
        known = ", ".join(sorted(files))
        raise ConfigError("a study of the catalogue must be known by name", name, f"use one of: {known}")
    text: str = files[name].read_text(encoding="utf-8")
    return text
