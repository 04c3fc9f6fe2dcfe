"""Numbers as people write them: budgets are parts of 255."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from pinchpoint.errors import ThreatError

_DECIMAL = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE]([+-]?\d{1,3}))?", re.ASCII)
"""A power of ten has three digits at most: Fraction writes it out, and float64 ends at 308."""
_LONGEST = 100

_TENTHS = 5
"""255ths below which tenths of them are written."""


def number(text: str) -> float:
    """A number, or one divided by another, rounded once.

    Raises:
        ValueError, ZeroDivisionError, OverflowError: for what is none, two divisions among it.

    >>> number("8/255") == 8 / 255, number("0.1 / 255") == 1 / 2550, number("1e-3")
    (True, True, 0.001)
    """
    above, slash, below = text.replace(" ", "").partition("/")
    if not all(len(part) <= _LONGEST and _DECIMAL.fullmatch(part) for part in ((above, below) if slash else (above,))):
        raise ValueError("no number of up to 100 digits and a power of ten of up to three")
    return float(Fraction(above) / Fraction(below) if slash else Fraction(above))


def threat(text: str, norms: Sequence[str]) -> tuple[str, float]:
    """Norm and budget of ``norm:eps``; eps may be a fraction.

    Raises:
        ThreatError: where it is not written so, or the budget is negative.

    >>> threat("l2: 0.5", ("linf", "l2"))
    ('l2', 0.5)
    """
    norm, _, eps = text.partition(":")
    try:
        value = number(eps)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ThreatError("a threat is written norm:eps", text, "write for example linf:8/255 or l2:0.5") from None
    if norm not in norms:
        raise ThreatError(f"norm must be one of {', '.join(norms)}", norm, "write linf, l2 or l1")
    if value < 0:
        raise ThreatError("eps must be zero or more", value, "give the budget in input units, for example 8/255")
    return norm, value


def budget(norm: str | None, eps: float | None) -> str:
    """A budget as people write it: in l_inf as 255ths where it is whole ones, or whole tenths of a few of them.

    >>> [budget("linf", eps) for eps in (8 / 255, 0.1 / 255, 0.08, 0.2)], budget("l2", 0.5)
    (['8/255', '0.1/255', '0.08', '0.2'], '0.5')
    """
    if eps is None:
        return ""
    pixels = round(255 * eps, 1 if 255 * eps < _TENTHS else 0)
    short = f"{eps:.3g}"
    if norm == "linf" and pixels > 0 and abs(pixels - 255 * eps) < 1e-3 * min(1.0, pixels) and len(short) > len("0.2"):
        return f"{pixels:g}/255"
    return short
