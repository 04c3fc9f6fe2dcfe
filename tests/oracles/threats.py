"""Sizes of boxes."""

from __future__ import annotations

import math
from collections.abc import Sequence


def diagonal(norm: str, shape: Sequence[int]) -> float:
    """The distance between opposite corners of [0, 1]^shape: no budget needs to be larger."""
    entries = math.prod(shape)
    return {"linf": 1.0, "l2": math.sqrt(entries), "l1": float(entries)}[norm]
