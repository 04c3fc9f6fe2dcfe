"""The tiny study: to be changed, and done once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from oracles.console import pinch
from oracles.tiny import TINY, Undisturbed

Write = Callable[..., Path]


@pytest.fixture
def study(tmp_path) -> Write:
    """Writes the tiny study to a file, with some top-level keys or sections of base replaced."""

    def write(base: dict[str, Any] | None = None, **changes: Any) -> Path:
        content = yaml.safe_load(TINY.read_text()) | changes
        content["base"] |= base or {}
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return path

    return write


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed") / "tiny"
    return Undisturbed(folder, pinch("study", "run", TINY, "--out", folder, "--workers", 1))
