"""Numbers as people write them: budgets are parts of 255."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction

from pinchpoint.errors import ConfigError, ModelError, ThreatError, brief

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


NORMALISATIONS = "none, imagenet or mean=0.5,0.5,0.5,std=0.25,0.25,0.25"
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_LARGEST_SCALE = 1e30
"""Of means, stds and their inverses: far beyond any data, and far from where float32 ends."""


def normalisation(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std of ``mean=...,std=...`` or ``imagenet``; None for ``none``.

    Raises:
        ConfigError: for anything else, and for numbers that normalise nothing.

    >>> normalisation("mean=.5,std=1/4"), normalisation("none")
    (((0.5,), (0.25,)), None)
    """
    if text in ("none", "imagenet"):
        return _IMAGENET if text == "imagenet" else None
    before, std_given, std_text = text.partition("std=")
    mean_given, mean_text = before.startswith("mean="), before.removeprefix("mean=")
    try:
        if not (mean_given and std_given and mean_text[-1:] in (",", ";", " ")):
            raise ValueError(text)
        mean, std = (
            tuple(number(part) for part in re.split(r"[\s,]+", numbers))
            for numbers in (mean_text[:-1].rstrip(" ,;"), std_text.strip())
        )
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ConfigError(
            f"a normalisation is {NORMALISATIONS}", text or "an empty word", "write one of those"
        ) from None
    try:
        check_normalisation(mean, std)
    except ModelError as error:
        raise ConfigError(error.rule, error.value, error.remedy) from None
    return mean, std


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse what normalises nothing: unequal lengths, a std of zero or less, numbers that float32 does not hold.

    Raises:
        ModelError: for that.

    >>> check_normalisation((0.5,), (0.25,))
    """
    positive = all(1 / _LARGEST_SCALE <= value <= _LARGEST_SCALE for value in std)
    if len(mean) == len(std) > 0 and positive and all(abs(value) <= _LARGEST_SCALE for value in mean):
        return
    raise ModelError(
        f"mean and std need equal lengths and every std must be positive, all within {_LARGEST_SCALE:g}",
        f"mean {brief(tuple(mean))} and std {brief(tuple(std))}",
        "correct them",
    )


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
