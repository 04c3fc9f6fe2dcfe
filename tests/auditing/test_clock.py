"""A clock that is wound by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.auditing.clock import Clock, TimeUp, seconds, until
from pinchpoint.errors import ConfigError


class Hand:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("text", "value"), [("30", 30), ("30s", 30), ("2m", 120), (" 0.5 h ", 1800)])
def test_times(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "ten", "0", "-5m", "5d", "1e3"])
def test_no_times(text: str) -> None:
    rule = "a time is a number of seconds, minutes or hours above zero"
    with refused(ConfigError, f"{rule}, but got {text}; write 90s, 10m or 1h."):
        seconds(text)


def test_phases_are_timed_and_told() -> None:
    hand, heard = Hand(), list[tuple[str, str]]()
    clock = Clock(10.0, lambda name, known: heard.append((name, known)), hand)
    with clock.phase("a"):
        hand.now = 3.0
        clock.say("half")
    with clock.phase("a"):
        hand.now = 4.0
    clock.done("a", "all of it")
    clock.left_out("b", "no time")
    assert clock.left == 6.0
    assert clock.part(0.5) == 3.0
    assert clock.part(0.5, 1.0) == 1.0
    assert clock.timing().phases == {"a": 4.0}
    assert [(one.name, one.done) for one in clock.phases] == [("a", True), ("b", False)]
    assert heard == [("a", ""), ("a", "half"), ("a", "")]


def test_a_model_is_not_called_when_the_time_is_up() -> None:
    hand, model = Hand(), nn.Linear(2, 2)
    clock, calls = Clock(10.0, now=hand), 0

    def work() -> None:
        nonlocal calls
        with until(clock, 2.0, model):
            while calls < 10:
                hand.now += 3.0
                model(torch.zeros(1, 2))
                calls += 1

    with pytest.raises(TimeUp):
        work()
    assert (calls, hand.now) == (2, 9.0)  # two seconds are kept
    model(torch.zeros(1, 2))
    with until(Clock(), 2.0, model):
        model(torch.zeros(1, 2))
    assert Clock().left == math.inf
