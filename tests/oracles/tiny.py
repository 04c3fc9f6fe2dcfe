"""The tiny study as commands do it: undisturbed, once; and what of it does not depend on the clock."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from oracles.console import Said

TINY = Path(__file__).parent.parent / "study" / "tiny.yaml"


@dataclass(frozen=True)
class Undisturbed:
    """The tiny study, run to its end by one command. Not to be changed."""

    folder: Path
    said: Said

    @property
    def summary(self) -> Any:
        return json.loads((self.folder / "summary.json").read_text())

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.folder / "stages", folder / "stages")
        return folder


def timeless(value: Any) -> Any:
    """Without what depends on the clock."""
    if isinstance(value, dict):
        return {key: timeless(item) for key, item in value.items() if key != "seconds"}
    return [timeless(item) for item in value] if isinstance(value, list) else value


def records(folder: Path) -> dict[Path, int]:
    """Records of the finished stages, and when each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("stages/*/*/record.parquet")}


MINI = {
    "study": "mini",
    "seeds": [0],
    "base": {
        "data": {"name": "digits", "limit_train": 200},
        "model": {"hidden": [8]},
        "train": {"epochs": 1},
        "audit": {"stages": ["attack"], "threats": [{"norm": "linf", "eps": 0.05}], "steps": 2, "samples": 10},
        "device": "cpu",
    },
    "families": [{"name": "rank", "view": "spectral", "grid": {"model.rank": [None, 2]}}],
}
"""A study of two models that take a second."""
