"""What tables are made of: columns, names, and numbers rounded to the safe side."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal
from typing import TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class Column:
    """A heading, a cell for each layer, and one for the network."""

    heading: str
    cells: list[str]
    network: str = ""

    @property
    def width(self) -> int:
        return 1 + max(map(len, (*self.heading.split("\n"), *self.cells, self.network)))


def inside(names: Sequence[str]) -> str:
    """``network.`` where all layers are those of a library's network, which stands behind a normalisation."""
    first, *others = {name.partition(".")[0] for name in names}
    return "" if others or first in names else f"{first}."


def wrapped(text: str, width: int) -> str:
    """Lines that are too long go on below, indented."""
    if len(text) <= width:
        return text
    start = text[: len(text) - len(text.lstrip(" "))]
    return textwrap.fill(text, width, initial_indent="", subsequent_indent=f"{start}  ", break_long_words=False)


def some(value: _T | None, show: Callable[[_T], str]) -> str:
    return "-" if value is None else show(value)


def up(value: float) -> str:
    """Four digits, rounded up, so that an upper bound stays one.

    >>> up(1.00001), up(123456.0), up(0.0)
    ('1.001', '1.235e+05', '0')
    """
    return _digits(value, ROUND_CEILING)


def down(value: float) -> str:
    """Four digits, rounded down, so that a lower bound stays one.

    >>> down(1.99999), down(0.000123456)
    ('1.999', '1.234e-04')
    """
    return _digits(value, ROUND_FLOOR)


def _digits(value: float, rounding: str) -> str:
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    exact = Decimal(value)
    kept = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 3), rounding=rounding)
    return (
        f"{float(kept):.3e}" if not -4 < kept.adjusted() < 5 else f"{kept:f}" if kept.adjusted() < 4 else f"{kept:.0f}"
    )
