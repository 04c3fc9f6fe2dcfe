"""The studies that come with the package: one file for each experiment of the paper, and those beyond it."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Any

from pinchpoint.errors import ConfigError
from pinchpoint.study.config.study import StudyConfig, parse
from pinchpoint.utils.config import mapping


def names() -> list[str]:
    """All of them.

    >>> "demo" in names()
    True
    """
    return sorted(_files())


def reproducible() -> list[str]:
    """Those of the paper's experiments, and beyond: what has a scale."""
    return [name for name in names() if scales(name)]


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
    files = _files()
    if name not in files:
        known = ", ".join(sorted(files))
        raise ConfigError("a study of the catalogue must be known by name", name, f"use one of: {known}")
    text: str = files[name].read_text(encoding="utf-8")
    return text


def _files() -> dict[str, Any]:
    folder = resources.files("pinchpoint.study") / "paper"
    return {file.name.removesuffix(".yaml"): file for file in folder.iterdir() if file.name.endswith(".yaml")}
