"""A budget of time, and what was done in it: phase by phase, told while it happens."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pinchpoint.errors import ConfigError
from pinchpoint.records import Phase, Timing
from pinchpoint.utils.numbers import number

if TYPE_CHECKING:
    from torch import nn

Told = Callable[[str, str], None]
"""Told the phase that runs and what is known so far."""

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0}


def seconds(text: str) -> float:
    """A time as people write it.

    >>> seconds("90"), seconds("10m"), seconds("1.5h")
    (90.0, 600.0, 5400.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smh]?)\s*", text)
    try:
        length = number(found[1]) * _UNITS[found[2]] if found else 0.0
    except (ValueError, OverflowError):
        length = 0.0
    if not 0.0 < length < math.inf:
        raise ConfigError("a time is a number of seconds, minutes or hours above zero", text, "write 90s, 10m or 1h")
    return length


class Clock:
    """What is left of a budget.

    Args:
        budget: seconds; None for as long as it takes.
        told: what to call when something begins or is learnt.
        now: the time; for tests.
    """

    def __init__(
        self, budget: float | None = None, told: Told | None = None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self.budget, self._told, self._now = budget, told, now
        self._start = now()
        self._name = ""
        self.phases: list[Phase] = []
        self._seconds: dict[str, float] = {}

    @property
    def left(self) -> float:
        """Seconds that are left; infinite without a budget."""
        return math.inf if self.budget is None else self.budget - (self._now() - self._start)

    def part(self, share: float, most: float = math.inf) -> float:
        """A share of what is left, ``most`` at most."""
        return max(0.0, min(share * self.left, most))

    def say(self, known: str) -> None:
        """What has been learnt."""
        if self._told is not None:
            self._told(self._name, known)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what is done within."""
        self._name, start = name, self._now()
        self.say("")
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + self._now() - start

    def done(self, name: str, said: str) -> None:
        """A phase came to this."""
        self.phases.append(Phase(name=name, done=True, said=said))

    def left_out(self, name: str, reason: str) -> None:
        """A phase was not done."""
        self.phases.append(Phase(name=name, done=False, said=reason))

    def timing(self) -> Timing:
        """What everything took."""
        return Timing(seconds=self._now() - self._start, phases=dict(self._seconds))


class TimeUp(BaseException):
    """The time for this piece of work is over. No error: whoever is told takes what is there."""


@contextmanager
def until(clock: Clock, reserve: float, model: nn.Module) -> Iterator[None]:
    """Within, the model refuses to be called once no more than ``reserve`` seconds are left.

    Raises:
        TimeUp: then; nothing that was found in the piece of work counts.
    """

    def look(module: nn.Module, inputs: object) -> None:
        if clock.left <= reserve:
            raise TimeUp

    if math.isinf(clock.left):
        yield
        return
    handle = model.register_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
