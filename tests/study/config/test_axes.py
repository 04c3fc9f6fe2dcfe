"""Axes of a family against nested loops written out."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.study import parse
from pinchpoint.study.config.axes import rows_of

values = st.lists(st.integers(0, 9), min_size=1, max_size=3)
listed = st.lists(st.dictionaries(st.sampled_from("ab"), st.integers(0, 9), min_size=1), max_size=3)
lengths = st.integers(1, 3)


@given(listed, st.integers(0, 2), lengths, st.data(), st.dictionaries(st.sampled_from("efg"), values))
def test_rows_are_those_of_nested_loops(levels, keys, length, data, grid):
    column = st.lists(st.integers(0, 9), min_size=length, max_size=length)
    zipped = {key: data.draw(column) for key in "cd"[:keys]}
    if not (levels or zipped or grid):
        return
    expected = []
    for outer in levels or [{}]:
        for place in range(length if zipped else 1):
            middle = {key: column[place] for key, column in zipped.items()}
            inner = [{}]
            for key, choices in grid.items():
                inner = [{**row, key: value} for row in inner for value in choices]
            expected += [{**outer, **middle, **row} for row in inner]
    assert rows_of("f", levels, zipped, grid) == expected


@pytest.mark.parametrize(
    ("levels", "zipped", "grid", "said"),
    [
        ([], {}, {}, "the grid of family 'f' must hold values, but got no key; list one value or more a key."),
        (
            [],
            {},
            {"a": []},
            "the grid of family 'f' must hold values, but got no value for a; list one value or more a key.",
        ),
        (
            [{}],
            {},
            {},
            "the grid of family 'f' must hold values, but got no value for list; list one value or more a key.",
        ),
        (
            [],
            {"a": [1]},
            {"a": [1]},
            "a key of family 'f' belongs to one axis, but got a in two; leave it in list, zip or grid.",
        ),
        (
            [{"a": 1}],
            {},
            {"a": [1]},
            "a key of family 'f' belongs to one axis, but got a in two; leave it in list, zip or grid.",
        ),
        (
            [{"a": 1}],
            {"a": [1]},
            {},
            "a key of family 'f' belongs to one axis, but got a in two; leave it in list, zip or grid.",
        ),
        (
            [],
            {"a": [1], "b": [1, 2]},
            {},
            "zipped values of family 'f' must be equally many, but got a 1, b 2; add or remove some.",
        ),
    ],
    ids=["nothing", "an empty key", "an empty level", "zip and grid", "list and grid", "list and zip", "lengths"],
)
def test_axes_that_make_no_sense(levels, zipped, grid, said):
    with refused(ConfigError, said):
        rows_of("f", levels, zipped, grid)


def test_axes_of_a_file_make_levels_and_labels(edited):
    family = {
        "name": "f",
        "view": "neuron",
        "zip": {"model.hidden": [[8], [9]], "model.rank": [2, 3]},
        "grid": {"penalty.l1": [0, 0.5]},
    }
    config = parse(edited({"families/0": family}))
    levels = config.levels(config.families[0])
    assert [label for _, label, _ in levels] == [
        "hidden (8,), rank 2, l1 0",
        "hidden (8,), rank 2, l1 0.5",
        "hidden (9,), rank 3, l1 0",
        "hidden (9,), rank 3, l1 0.5",
    ]
    assert [(cell.model.hidden, cell.model.rank) for _, _, cell in levels[1:3]] == [((8,), 2), ((9,), 3)]
    written = parse(
        edited({"families/0": {"name": "f", "view": "neuron", "list": [{"penalty.l1": 1}, {"threads": 3}]}})
    )
    cells = [cell for _, _, cell in written.levels(written.families[0])]
    assert [(cell.penalty.l1, cell.threads) for cell in cells] == [(1.0, 1), (0.0, 3)]
