"""One family of errors. Each states the rule, the value seen and the remedy, in one sentence.

>>> raise ThreatError("eps must be zero or more", -0.1, "give the budget in input units, for example 8/255")
Traceback (most recent call last):
    ...
pinchpoint.errors.ThreatError: eps must be zero or more, but got -0.1; give the budget in input units, for example 8/255.
"""

from __future__ import annotations

from typing import Any

from pinchpoint.version import __version__

_LONGEST_VALUE = 200


class PinchpointError(ValueError):
    """A mistake in what the user gave. The command line prints it and exits with status 2.

    Args:
        rule: what must hold.
        value: what was seen instead; strings are shown as they are, everything else by ``repr``.
        remedy: what to do about it.
    """

    def __init__(self, rule: str, value: object, remedy: str) -> None:
        shown = " ".join((value if isinstance(value, str) else repr(value)).split())
        if len(shown) > _LONGEST_VALUE:
            shown = shown[: _LONGEST_VALUE - 3] + "..."
        self.rule, self.value, self.remedy = rule, shown, remedy
        super().__init__(f"{rule}, but got {shown}; {remedy}.")

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
