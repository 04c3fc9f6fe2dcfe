"""No bound is false, whatever the forward pass looks like: generated networks."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oracles.forward_passes import judge


@pytest.mark.long
@pytest.mark.parametrize("first", [0, 15, 30, 45])
def test_no_generated_network_refutes_its_bounds(first):
    """The first of the networks that ``python -m oracles.forward_passes 0 100000`` judges."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = [judge(seed) for seed in range(first, first + 15)]
    assert [fault for outcome in outcomes for fault in outcome.faults] == []
    assert sum(bool(outcome.refused) for outcome in outcomes) < 11
    assert sum(outcome.bounds for outcome in outcomes) > 20


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(st.integers(10**6, 10**9))
def test_no_network_drawn_anew_refutes_its_bounds(seed):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert judge(seed).faults == []
