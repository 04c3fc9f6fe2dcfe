"""Which versions and which machine made a result."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version

import numpy as np
import torch

from pinchpoint.version import __version__


def versions() -> dict[str, str]:
    """Versions that can change a number."""
    return {
        "pinchpoint": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "scikit-learn": version("scikit-learn"),
    }


def machine() -> str:
    """Operating system and processor."""
    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
