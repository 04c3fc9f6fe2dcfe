"""Tick labels of logarithmic axes, written the way people write numbers. Formatting only."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _text(factor: int, exponent: int) -> str:
    if -3 <= exponent <= 3:
        return f"{factor * 10.0**exponent:,.{max(-exponent, 0)}f}"
    power = f"10{str(exponent).translate(_RAISED)}"
    return power if factor == 1 else f"{factor}·{power}"


def log_axis(values: Iterable[float | None], *, decades: float | None = None, room: float = 0.1) -> dict[str, Any]:
    """A logarithmic plotly axis that shows all positive values, or only the highest ``decades`` of them.

    >>> log_axis([2.0, 30.0], room=0)["ticktext"]
    ['1', '2', '5', '10', '20', '50']
    >>> log_axis([0.0002, 1.0], decades=3)["ticktext"]
    ['0.001', '0.01', '0.1', '1']
    """
    axis: dict[str, Any] = {"type": "log"}
    known = [value for value in values if value is not None and value > 0]
    if not known:
        return axis
    low, high = math.log10(min(known)) - room, math.log10(max(known)) + room
    if decades is not None:
        low = max(low, high - decades)
    factors = (1, 2, 5) if high - low < 2 else (1,)
    step = max(1, round((high - low) / 6))
    places = [
        (factor, exponent)
        for exponent in range(math.floor(low), math.ceil(high) + 1, 1)
        if exponent % step == 0
        for factor in factors
        if math.floor(low) <= exponent + math.log10(factor) <= math.ceil(high) + 0.01
    ]
    places = [place for place in places if low - 0.5 <= place[1] + math.log10(place[0]) <= high + 0.5]
    axis["range"] = [low, high]
    axis["tickvals"] = [float(f"{factor}e{exponent}") for factor, exponent in places]
    axis["ticktext"] = [_text(factor, exponent) for factor, exponent in places]
    return axis
