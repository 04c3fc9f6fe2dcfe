"""Errors state the rule, the value seen and the remedy, in one sentence that crosses process borders."""

from __future__ import annotations

import pickle

import pytest

from pinchpoint import errors
from pinchpoint.errors import PinchpointError

KINDS = [PinchpointError, *PinchpointError.__subclasses__()]


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_has_rule_value_and_remedy(kind):
    error = kind("eps must be zero or more", -0.1, "give a budget")
    assert str(error) == "eps must be zero or more, but got -0.1; give a budget."
    assert (error.rule, error.value, error.remedy) == ("eps must be zero or more", "-0.1", "give a budget")
    assert isinstance(error, ValueError)


def test_family_is_complete():
    names = {
        "ConfigError",
        "DataError",
        "ModelError",
        "CheckpointError",
        "ThreatError",
        "StoreError",
        "ContradictionError",
    }
    assert {kind.__name__ for kind in PinchpointError.__subclasses__()} == names
    assert names <= set(vars(errors))


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("as it is", "as it is"),
        (None, "None"),
        ((1, "a"), "(1, 'a')"),
        ("two\n  lines\tand a tab", "two lines and a tab"),
        ("x" * 200, "x" * 200),
        ("x" * 201, "x" * 197 + "..."),
        (list(range(1000)), (repr(list(range(1000)))[:197] + "...")),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_value_is_shown_on_one_line_and_cut(value, shown):
    error = PinchpointError("r", value, "do")
    assert error.value == shown
    assert str(error) == f"r, but got {shown}; do."


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_everything(kind):
    error = kind("r", "v" * 500 + "\n'", "do")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error)
    assert (again.rule, again.value, again.remedy) == (error.rule, error.value, error.remedy)
