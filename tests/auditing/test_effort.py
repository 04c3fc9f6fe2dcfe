"""How much is done: what the time allows, and in which layout."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pinchpoint.attack.gradient import at_once, graph_bytes
from pinchpoint.auditing.effort import TUNED, Effort, laid_out, pass_seconds

whole = Effort.of((3, 32, 32))


@given(st.floats(-1e5, 1e5), st.floats(1e-5, 10.0), st.integers(1, 3))
def test_more_time_is_never_less_effort(seconds: float, passing: float, threats: int) -> None:
    """Also where there is none left at all, which must not take for ever."""
    more = whole.within(seconds + abs(seconds), passing, threats)
    some = whole.within(seconds, passing, threats)
    for name in ("looked", "steps", "search_steps", "plane", "universal_steps", "checked", "tried"):
        assert getattr(some, name) <= getattr(more, name) <= getattr(whole, name)
    cost = passing * threats * some.looked * (some.steps + 2 * some.search_steps)
    assert cost <= 0.3 * seconds or (some.looked, some.steps) == (16, 12)  # the least there is
    if some.tried:
        assert some.trial_seconds(some.tried, threats) <= 0.4 * seconds * (1 + 1e-9)


def test_without_a_budget_nothing_is_spared() -> None:
    assert whole.within(math.inf, 0.0, 2) == whole
    assert Effort(pass_seconds=0.5).trial_seconds(0, 1) == TUNED


def test_depthwise_convolutions_see_channels_last_and_answer_the_same() -> None:
    torch.manual_seed(0)
    seen = []
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Flatten(), nn.Linear(144, 3))
    model[0].register_forward_pre_hook(
        lambda module, given: seen.append(given[0].is_contiguous(memory_format=torch.channels_last))
    )
    x = torch.rand(2, 4, 8, 8)
    before = model(x)
    with laid_out(model, x):
        assert torch.allclose(model(x), before, atol=1e-6)
    model(x)
    assert seen == [False, True, False]
    with laid_out(nn.Conv2d(4, 4, 3), x):
        pass


def test_seconds_of_a_pass() -> None:
    assert 0 < pass_seconds(nn.Linear(4, 3), torch.rand(8, 4), torch.zeros(8, dtype=torch.long)) < 1.0


def test_what_a_pass_keeps() -> None:
    model = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 10))
    x = torch.rand(7, 1000)
    # the second layer's input is the rectifier's output: kept once; weights are not counted, nor more than one sample
    assert graph_bytes(model, x) == 4 * (1000 + 1000)
    assert model[0].weight.grad is None
    assert at_once(torch.zeros(1, 3, 4096, 4096), 10) == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_hopeless_radii_are_zero_and_others_are_not(norm: str) -> None:
    from pinchpoint.auditing.config import AuditConfig, ThreatConfig
    from pinchpoint.auditing.steps import bound

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(12, 6)
    y = model(x).argmax(1)
    y[:5] = (y[:5] + 1) % 3  # the first ones are wrong, and have no radius at any budget
    config = AuditConfig(bound_seconds=60.0, bound_steps=5)  # steps end it, not the time
    every = bound(model, x, y, ThreatConfig(norm=norm, eps=0.01), config)
    assert every.bounds.median_radius == sorted(every.radii[5:])[3]
    hoped = torch.arange(5, 9)
    some = bound(model, x, y, ThreatConfig(norm=norm, eps=0.01), config, hoped=hoped)
    assert (some.radii, some.bounds.median_radius) == (every.radii, every.bounds.median_radius)
    far = 100 * max(every.radii)
    some = bound(model, x, y, ThreatConfig(norm=norm, eps=far), config, hoped=hoped)
    assert (some.radii, some.bounds.median_radius) == ([*[0.0] * 5, *every.radii[5:9], *[0.0] * 3], None)
    none = bound(model, x, y, ThreatConfig(norm=norm, eps=far), config, hoped=hoped[:0])
    assert (none.radii, none.bounds.median_radius) == ([0.0] * 12, None)
