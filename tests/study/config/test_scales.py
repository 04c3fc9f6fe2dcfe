"""Scales and overrides: the chosen scale over the file, the command line over both."""

from __future__ import annotations

import copy

import pytest
import yaml

from oracles.as_user import refused
from pinchpoint.errors import ConfigError
from pinchpoint.study import parse
from pinchpoint.study.config.scales import scaled

FILE = {
    "study": "s",
    "seeds": [0, 1, 2],
    "base": {"train": {"epochs": 40, "batch_size": 8}, "model": {"hidden": [8]}},
    "families": [
        {
            "name": "one",
            "view": "neuron",
            "fixed": {"penalty.l1": 1},
            "grid": {"model.rank": [1, 2, 3]},
            "labels": ["1", "2", "3"],
        },
        {"name": "two", "view": "spectral", "zip": {"model.rank": [4, 5]}},
    ],
    "claims": [{"id": "c", "says": "x"}],
    "scales": {
        "quick": {
            "seeds": [0],
            "base": {"train": {"epochs": 2}},
            "families": {"one": {"grid": {"model.rank": [1]}, "labels": None}, "two": None},
        },
        "paper": {},
        "third": {"base": {"model": None}, "claims": {"c": {"says": "y"}}},
    },
}


def cut(scale: str | None, **overrides: object) -> dict:
    before = copy.deepcopy(FILE)
    found = scaled(FILE, scale, {key.replace("__", "."): value for key, value in overrides.items()}, "s.yaml")
    assert before == FILE, "the file's content stays as it was"
    assert "scales" not in found
    return found


def test_without_a_scale_and_at_an_empty_one_the_file_is_what_it_says():
    assert cut(None) == cut("paper") == {key: value for key, value in FILE.items() if key != "scales"}


def test_a_scale_is_laid_over_the_file():
    found = cut("quick")
    assert found["seeds"] == [0]
    assert found["base"] == {"train": {"epochs": 2, "batch_size": 8}, "model": {"hidden": [8]}}
    (one,) = found["families"]
    assert one == {
        "name": "one",
        "view": "neuron",
        "fixed": {"penalty.l1": 1},
        "grid": {"model.rank": [1]},
        "labels": None,
    }
    third = cut("third")
    assert third["base"]["model"] is None
    assert third["claims"] == [{"id": "c", "says": "y"}]


def test_an_axis_that_a_scale_gives_replaces_the_one_that_was_there():
    content = copy.deepcopy(FILE)
    content["scales"]["quick"]["families"] = {"one": {"grid": {"threads": [1]}, "fixed": {}}}
    (one, _) = scaled(content, "quick", {}, "s.yaml")["families"]
    assert (one["grid"], one["fixed"]) == ({"threads": [1]}, {})


def test_overrides_are_paths_into_the_file_or_its_base_and_come_last():
    assert cut("quick", seeds=[7])["seeds"] == [7]
    assert cut("quick", train__epochs=9)["base"]["train"] == {"epochs": 9, "batch_size": 8}
    assert cut(None, base__train__epochs=9) == cut(None, train__epochs=9)
    assert cut(None, **{"data.name": "digits"})["base"]["data"] == {"name": "digits"}
    found = cut(None, **{"families.one.grid.model.rank": [6], "families.two.title": "Two"})
    assert found["families"][0]["grid"] == {"model.rank": [6]}
    assert found["families"][1]["title"] == "Two"


@pytest.mark.parametrize(
    ("scale", "overrides", "said"),
    [
        ("big", {}, "a scale of s.yaml must be one of its scales, but got big; use quick or paper or third."),
        (
            None,
            {"families.three.title": "x"},
            "what is changed by name must be there, but got three; use one of: one, two.",
        ),
        (
            None,
            {"seeds.0": 1},
            "s.yaml: 'seeds.0' must be a path into the configuration, but got seeds; check the key.",
        ),
        (
            None,
            {"train.epochs.x": 1},
            "s.yaml: 'base.train.epochs.x' must be a path into the configuration, but got epochs; check the key.",
        ),
    ],
    ids=["a scale", "a family", "into a list", "into a number"],
)
def test_what_leads_nowhere_is_one_sentence(scale, overrides, said):
    with refused(ConfigError, said):
        scaled(FILE, scale, overrides, "s.yaml")


@pytest.mark.parametrize("scales", [["quick"], "quick", {"quick": None}, {"quick": [1]}, 3], ids=repr)
def test_scales_that_are_none_are_one_sentence(edited, scales):
    with pytest.raises(ConfigError) as caught:
        parse(edited({"scales": scales}), "s.yaml", scale="quick")
    assert str(caught.value).startswith("s.yaml: scales must be mappings by name, but got ")


@pytest.mark.parametrize(
    "overrides",
    [
        {"families": 3},
        {"families": None},
        {"families.lasso": 3},
        {"families.lasso.grid": 3},
        {"families.lasso.labels": "x"},
        {"families.lasso.grid.": [1]},
        {"": 1},
        {".": 1},
        {"base": 3},
        {"base": None},
        {"train": 3},
        {"train": None},
        {"seeds": "x"},
        {"seeds": None},
        {"study": [1]},
        {"claims": 3},
        {"claims.x": 3},
        {"scales": 3},
        {"nonsense": 1},
        {"train.nonsense": 1},
        {"families..x": 1},
        {"base.": 1},
        {"families.lasso.name": None},
        {"audit.threats": 3},
    ],
    ids=str,
)
def test_overrides_that_make_no_sense_are_one_sentence(edited, overrides):
    with pytest.raises(ConfigError) as caught:
        parse(edited({}), "s.yaml", overrides=overrides)
    said = str(caught.value)
    assert "\n" not in said
    assert ", but got " in said
    assert said.endswith(".")


def test_scales_of_a_file_are_validated_as_what_they_make(edited):
    text = edited({"scales": {"quick": {"base": {"train": {"epoch": 3}}}}})
    assert parse(text)
    with pytest.raises(ConfigError, match=r"every key must be known, but got train\.epoch; perhaps epochs is meant"):
        parse(text, scale="quick")
    assert yaml.safe_load(text)["scales"]
