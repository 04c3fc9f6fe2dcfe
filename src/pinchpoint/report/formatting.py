"""How values are written, for every page."""

from __future__ import annotations

import math
from typing import Any

"""How a norm is written for readers."""


def finite(value: Any) -> float | None:
    """A finite float, or None.

    >>> finite(0.5), finite(float("nan")), finite("much")
    (0.5, None, None)
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def written(value: float | None) -> str:
    """A number as a table shows it: about three significant digits, a dash where there is none.

    >>> written(0.51234), written(12345.6), written(3.2e7), written(1e-5), written(None)
    ('0.512', '12,346', '3.2e+07', '1e-05', '–')
    """
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1e6 or 0 < size < 5e-4:
        return f"{value:.3g}"
    if size >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 9.995 else f"{value:.2f}" if size >= 0.9995 else f"{value:.3f}"
