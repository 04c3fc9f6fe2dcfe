"""One family of errors. Each states the rule, the value seen and the remedy, in one sentence.

>>> raise ThreatError("eps must be zero or more", -0.1, "give the budget in input units, for example 8/255")
Traceback (most recent call last):
    ...
pinchpoint.errors.ThreatError: eps must be zero or more, but got -0.1; give the budget in input units, for example 8/255.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pinchpoint.version import __version__

_LONGEST_VALUE = 200
_LARGEST_WHOLE = 2**1024


def printable(text: str) -> str:
    """Text whose control characters, marks of direction and lone surrogates are written out: a file's words move no cursor.

    >>> printable("\x1b[31mred")
    '\\\\x1b[31mred'
    """
    if text.isprintable():
        return text
    return "".join(
        sign if sign.isprintable() or sign == "\n" else sign.encode("unicode_escape").decode("ascii") for sign in text
    )


def brief(value: object) -> str:
    """A value on one line, cut to 200 signs; the work is bounded too, however large or nested the value is.

    >>> brief([1, "a"]), brief(10**400)
    ("[1, 'a']", 'a whole number of 1329 bits')
    """
    signs = ""
    for piece in (value[: 100 * _LONGEST_VALUE],) if isinstance(value, str) else _pieces(value):
        signs += piece
        if not isinstance(value, str) and len(signs) > _LONGEST_VALUE:
            break
    shown = printable(" ".join(signs.split()))
    return shown if len(shown) <= _LONGEST_VALUE else shown[: _LONGEST_VALUE - 3] + "..."


def _pieces(value: object) -> Iterator[str]:
    """``repr(value)`` piece by piece, each of them short or made at a bounded cost."""
    kinds: dict[type, str] = {list: "[]", tuple: "()", set: "{}", dict: "{}"}
    brackets = kinds.get(type(value))
    if isinstance(value, str | bytes):
        yield repr(value[: _LONGEST_VALUE + 1])
    elif isinstance(value, int) and abs(value) >= _LARGEST_WHOLE:
        yield f"a whole number of {value.bit_length()} bits"
    elif brackets is None or not value:
        yield repr(value)
    else:
        assert isinstance(value, list | tuple | set | dict)
        yield brackets[0]
        for number, item in enumerate(value):
            if number:
                yield ", "
            yield from _pieces(item)
            if isinstance(value, dict):
                yield ": "
                yield from _pieces(value[item])
        yield ",)" if isinstance(value, tuple) and len(value) == 1 else brackets[1]


class PinchpointError(ValueError):
    """A mistake in what the user gave. The command line prints it and exits with status 2.

    Args:
        rule: what must hold.
        value: what was seen instead; strings are shown as they are, everything else by ``repr``.
        remedy: what to do about it.
    """

    def __init__(self, rule: str, value: object, remedy: str) -> None:
        self.rule, self.value, self.remedy = printable(rule), brief(value), printable(remedy)
        super().__init__(f"{self.rule}, but got {self.value}; {self.remedy}.")

    def __reduce__(self) -> tuple[type[PinchpointError], tuple[Any, ...]]:
        """Errors cross process borders whole."""
        return type(self), (self.rule, self.value, self.remedy)


class PinchpointWarning(UserWarning):
    """A result that must not be read without the sentence it comes with."""


class ConfigError(PinchpointError):
    """A configuration file or option that does not hold together."""


class DataError(PinchpointError):
    """A data set that is unknown, missing or malformed."""


class ModelError(PinchpointError):
    """A model or tensor that an operation cannot take."""


class DivergedError(ModelError):
    """A training whose loss stopped being finite; its model has the last good weights, those of ``epoch`` (0: the first)."""

    def __init__(self, rule: str, value: object, remedy: str, epoch: int = 0) -> None:
        super().__init__(rule, value, remedy)
        self.epoch = epoch

    def __reduce__(self) -> tuple[type[PinchpointError], tuple[Any, ...]]:
        """Errors cross process borders whole."""
        return type(self), (self.rule, self.value, self.remedy, self.epoch)


class ContradictionError(PinchpointError):
    """A certified number that something else refutes: a fault of Pinchpoint's own, never of the user's."""

    def __init__(self, rule: str, value: object, remedy: str = "") -> None:
        request = (
            f"this is a fault of pinchpoint {__version__}: please report it with the model, and trust no bound of it"
        )
        super().__init__(rule, value, remedy or request)


class CheckpointError(PinchpointError):
    """A checkpoint that is missing, truncated or does not match its configuration."""


class ThreatError(PinchpointError):
    """A threat model that makes no sense."""


class StoreError(PinchpointError):
    """A store of records that is empty, unreadable or cannot be written."""
