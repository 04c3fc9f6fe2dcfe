"""The study files that come with the package, found without importing anything that runs them."""

from __future__ import annotations

import re
from importlib import resources
from importlib.resources.abc import Traversable


def study_files() -> dict[str, Traversable]:
    """The files by the names of their studies.

    >>> "demo" in study_files()
    True
    """
    return {file.name.removesuffix(".yaml"): file for file in _folder().iterdir() if file.name.endswith(".yaml")}


def _folder() -> Traversable:
    return resources.files("pinchpoint") / "study" / "paper"


def scaled_studies() -> list[str]:
    """Those that have scales, and so can be reproduced by name.

    >>> "demo" in scaled_studies()
    False
    """
    texts = {name: file.read_text(encoding="utf-8") for name, file in study_files().items()}
    return sorted(name for name, text in texts.items() if re.search(r"^scales:", text, re.MULTILINE))
