"""Conditions: against Python's own evaluation of the same expression, and what is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.as_user import refused
from pinchpoint.auditing.conditions import check, holds, numbers
from pinchpoint.errors import ConfigError
from report import audit_factory

NAMES = {"robust_accuracy": 0.25, "clean_accuracy": 0.9, "lipschitz_l2": 12.5, "difference_clean_accuracy": -0.5}
sides = st.one_of(
    st.sampled_from(sorted(NAMES)), st.floats(-20, 20).map(lambda value: f"{value:.3g}"), st.integers(-20, 20).map(str)
)
comparisons = st.tuples(sides, st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), sides).map(" ".join)
conditions = st.recursive(
    comparisons,
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(" ".join),
        inner.map(lambda text: f"not {text}"),
        inner.map(lambda text: f"({text})"),
    ),
    max_leaves=6,
)


@given(conditions)
def test_as_python_reads_it(text: str) -> None:
    assert holds(text, NAMES) == eval(text, {"__builtins__": {}}, NAMES)
    check(text)  # these are names that a report may have


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("x < 30%", True),
        ("x<1/5", False),
        ("x == 25 %", True),
        ("x >= 1/4", True),
        ("x < -2%", False),
        ("x>-1/5", True),
    ],
)
def test_percent_and_fractions(text: str, value: bool) -> None:
    assert holds(text, {"x": 0.25}) is value


@pytest.mark.parametrize(
    ("text", "token"),
    [
        ("", "its end"),
        ("robust_accuracy", "its end"),
        ("robust_accuracy <", "its end"),
        ("1 < 2 3", "3"),
        ("neuron = 1", "="),
        ("(neuron < 1", "its end"),
        ("neuron < 1)", ")"),
        ("neuron < 1/0", "1/0"),
        ("neuron < 1.2.3", "1.2.3"),
        ("neuron('os') < 1", "("),
        ("neuron and spectral", "and"),
        ("neuron < --1", "-"),
        ("neuron < -spectral", "-"),
        ("neuron < 2 -1", "-1"),
    ],
)
def test_what_is_no_condition(text: str, token: str) -> None:
    remedy = 'write for example "robust_accuracy < 0.3".'
    with refused(
        ConfigError, f"a condition compares numbers, joined by and, or, not, but got {token} in {text!r}; {remedy}"
    ):
        check(text)


def test_a_number_that_was_not_measured() -> None:
    with refused(
        ConfigError, "a condition names what was measured, but got robust_acuracy; perhaps robust_accuracy is meant."
    ):
        holds("robust_acuracy < 1", NAMES)


def test_numbers_have_the_ends_of_their_intervals() -> None:
    report = audit_factory.report()
    known = numbers(report)
    weakest = min(report.threats, key=lambda threat: threat.robust.value)
    assert known["robust_accuracy"] == weakest.robust.value
    assert (known["robust_accuracy_low"], known["robust_accuracy_high"]) == (weakest.robust.low, weakest.robust.high)
    assert (known["clean_accuracy_low"], known["clean_accuracy_high"]) == (report.clean.low, report.clean.high)
    assert report.comparison is not None
    for row in report.comparison.rows:
        key = f"difference_{row.metric}" + ("" if row.norm is None else f"_{row.norm}")
        assert (known[key], known[f"{key}_low"], known[f"{key}_high"]) == (row.difference, row.low, row.high)
    written = [name for name in known if "difference_universal" not in name]  # which audits do not compare
    check(" and ".join(f"{name} < 1" for name in written))
