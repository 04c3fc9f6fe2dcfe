"""Conditions on the numbers of a report: ``robust_accuracy < 0.3``, for machines that refuse a model.

condition   = comparison, or conditions joined by and, or, not and brackets
comparison  = side (< | <= | > | >= | == | !=) side
side        = a name of ``numbers``, or a number: 0.3, 3e-1, 30%, 1/3, -0.02
"""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Callable, Mapping

from pinchpoint.errors import ConfigError
from pinchpoint.records import AuditReport, Share
from pinchpoint.records.base import NORMS
from pinchpoint.utils.numbers import number

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
_DEEPEST = 50
_NORMS = tuple(f"_{norm}" for norm in NORMS)
_TOKEN = re.compile(r"\s*(<=|>=|==|!=|<|>|\(|\)|[A-Za-z_][\w.]*|-?\d[\d.]*(?:[eE][-+]?\d+)?(?:\s*/\s*\d+|\s*%)?|\S)")


def numbers(report: AuditReport) -> dict[str, float]:
    """The numbers a condition may name.

    ``robust_accuracy``, ``universal_accuracy`` and ``certified_accuracy`` are the lowest over threats; with ``_linf``,
    ``_l2`` or ``_l1`` behind them those of one. ``difference_...`` are those of ``--against``: second minus first. Each
    with ``_low`` or ``_high`` behind it is an end of its 95 % interval.
    """
    found = {"neuron": report.profile.neuron, "spectral": report.profile.spectral} | _ends(
        "clean_accuracy", report.clean
    )
    for threat in report.threats:
        shares = {"robust": threat.robust, "universal": threat.universal, "certified": threat.certified}
        for name, one in shares.items():
            if one is not None:
                key = f"{name}_accuracy"
                found |= _ends(f"{key}_{threat.norm}", one)
                if one.value <= found.get(key, 1.0):
                    found |= _ends(key, one)
    for bounds in report.bounds:
        found[f"lipschitz_{bounds.norm}"] = bounds.lipschitz
    for row in report.comparison.rows if report.comparison else ():
        key = f"difference_{row.metric}" + ("" if row.norm is None else f"_{row.norm}")
        found |= {key: row.difference, f"{key}_low": row.low, f"{key}_high": row.high}
    return found


def _ends(key: str, one: Share) -> dict[str, float]:
    return {key: one.value, f"{key}_low": one.low, f"{key}_high": one.high}


def check(condition: str) -> None:
    """Refuse what is no condition, before any work is done.

    Raises:
        ConfigError: where it does not follow the grammar, or names what no report has.
    """
    _Reader(condition, dict.fromkeys(_names(), 0.0)).whole()


def _names() -> list[str]:
    """Every name that a report may have a number for."""
    threats = [f"{name}_accuracy{norm}" for name in ("robust", "universal", "certified") for norm in ("", *_NORMS)]
    bounds = [f"lipschitz{norm}" for norm in _NORMS]
    differences = ["difference_clean_accuracy", *(f"difference_robust_accuracy{norm}" for norm in _NORMS)]
    with_ends = [f"{name}{end}" for name in ("clean_accuracy", *threats, *differences) for end in ("", "_low", "_high")]
    return ["neuron", "spectral", *bounds, *with_ends]


def holds(condition: str, known: Mapping[str, float]) -> bool:
    """Whether it is so.

    Raises:
        ConfigError: where it is no condition, or names a number that was not measured.

    >>> holds("robust_accuracy < 30% and not clean_accuracy < 0.5", {"robust_accuracy": 0.2, "clean_accuracy": 0.9})
    True
    """
    return _Reader(condition, known).whole()


class _Reader:
    """Reads from left to right, one token ahead."""

    def __init__(self, text: str, known: Mapping[str, float]) -> None:
        self._text, self._known = text, known
        self._tokens = _TOKEN.findall(text)
        self._place = self._depth = 0

    def whole(self) -> bool:
        found = self._either()
        if self._next is not None:
            raise self._wrong(self._next)
        return found

    @property
    def _next(self) -> str | None:
        return self._tokens[self._place] if self._place < len(self._tokens) else None

    def _take(self) -> str:
        token = self._next
        if token is None:
            raise self._wrong("its end")
        self._place += 1
        return token

    def _either(self) -> bool:
        found = self._both()
        while self._next == "or":
            self._place += 1
            right = self._both()
            found = found or right
        return found

    def _both(self) -> bool:
        found = self._one()
        while self._next == "and":
            self._place += 1
            right = self._one()
            found = found and right
        return found

    def _one(self) -> bool:
        self._depth += 1
        if self._depth > _DEEPEST:
            rule = f"a condition nests at most {_DEEPEST} brackets and nots"
            raise ConfigError(rule, self._text, "write it with fewer")
        found = self._inside()
        self._depth -= 1
        return found

    def _inside(self) -> bool:
        if self._next == "not":
            self._place += 1
            return not self._one()
        if self._next == "(":
            self._place += 1
            found = self._either()
            token = self._take()
            if token != ")":
                raise self._wrong(token)
            return found
        left, sign = self._side(), self._take()
        if sign not in _COMPARE:
            raise self._wrong(sign)
        return _COMPARE[sign](left, self._side())

    def _side(self) -> float:
        token = self._take()
        if re.match(r"-?\d", token):
            try:
                value = number(token.removesuffix("%"))
            except (ValueError, ZeroDivisionError, OverflowError):
                raise self._wrong(token) from None
            return value / 100 if token.endswith("%") else value
        if not re.fullmatch(r"[A-Za-z_][\w.]*", token) or token in ("and", "or", "not"):
            raise self._wrong(token)
        if token not in self._known:
            near = difflib.get_close_matches(token, self._known, n=1)
            remedy = f"perhaps {near[0]} is meant" if near else f"use one of {', '.join(sorted(self._known))}"
            raise ConfigError("a condition names what was measured", token, remedy)
        return self._known[token]

    def _wrong(self, token: str) -> ConfigError:
        return ConfigError(
            "a condition compares numbers, joined by and, or, not",
            f"{token} in {self._text!r}",
            'write for example "robust_accuracy < 0.3"',
        )
