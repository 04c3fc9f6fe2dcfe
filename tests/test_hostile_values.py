"""Hostile values: numbers, messages, counts, cells, links and records, each stopped at its one source."""

from __future__ import annotations

import csv
import time
from fractions import Fraction

import pytest
from pydantic import ValidationError

from pinchpoint.attack import Threat
from pinchpoint.auditing import clock, conditions
from pinchpoint.errors import ConfigError, ModelError, PinchpointError, ThreatError, brief, printable
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.sources.open_model import open_model
from pinchpoint.records import Share, Subject
from pinchpoint.report.audit.files import address
from pinchpoint.study.config import axes
from pinchpoint.study.outputs import export
from pinchpoint.utils.numbers import number


@pytest.mark.parametrize(
    "text", ["1e999999999", "1/1e999999999", "9" * 10**6, "1e-999999999", "nan", "inf", "1/2/3", ""]
)
def test_numbers_that_are_none_are_refused_at_once(text):
    begun = time.perf_counter()
    with pytest.raises(ValueError):
        number(text)
    with pytest.raises(ThreatError):
        Threat.parse(f"linf:{text}")
    with pytest.raises(ConfigError):
        clock.seconds(f"{text}s")
    assert time.perf_counter() - begun < 1.0


@pytest.mark.parametrize("text", ["8/255", "0.1/255", "1e-3", ".5", "5.", "-2"])
def test_numbers_are_rounded_once(text):
    above, _, below = text.partition("/")
    assert number(text) == float(Fraction(above) / Fraction(below or "1"))


@pytest.mark.parametrize("sign", ["(", "not "])
def test_nested_conditions_are_refused(sign):
    with pytest.raises(ConfigError, match="nests at most"):
        conditions.check(sign * 5000 + "clean_accuracy < 1")


def test_messages_cut_shared_and_deep_values():
    shared: object = [1] * 10
    for _ in range(200):
        shared = [shared] * 10
    begun = time.perf_counter()
    assert len(brief(shared)) == 200
    assert len(brief({"a": shared})) == 200
    assert len(brief("x" * 10**7)) == 200
    assert brief(10**5000) == "a whole number of 16610 bits"
    assert time.perf_counter() - begun < 1.0


@pytest.mark.parametrize("sign", ["\x1b", "\x07", "\x9b", "\u202e", "\u2066", "\ud800", "\x7f"])
def test_control_characters_are_written_out(sign):
    said = str(PinchpointError(f"a{sign}", f"b{sign}", f"c{sign}"))
    assert said.isprintable()
    assert printable(f"{sign}") == sign.encode("unicode_escape").decode()


def test_cells_are_counted_before_they_are_made():
    with pytest.raises(ConfigError, match="102,400,000"):
        axes.rows_of("f", [], {}, {str(key): range(40) for key in range(5)})


def test_networks_are_counted_before_they_are_made():
    with pytest.raises(ModelError, match="1,000,000,074,000,000,000"):
        build(ModelConfig(hidden=(10**9, 10**9)), (1, 8, 8), 10)


@pytest.mark.parametrize("text", ["=1+1", "@SUM(A1)", "+cmd", "-cmd", "\t=1", "-0.5"])
def test_cells_are_no_formulas(tmp_path, text):
    path = export.write([{"label": text}], tmp_path / "rows.csv")
    cell = list(csv.reader(path.open(newline="")))[1][0]
    assert cell == (text if text == "-0.5" else f"'{text}")


def test_links_are_relative(tmp_path):
    assert (
        address(tmp_path / "javascript:alert(1)" / "a#b?.html", tmp_path) == "./javascript%3Aalert%281%29/a%23b%3F.html"
    )


@pytest.mark.parametrize("path", ["x" * 5000 + ".pth", "a\0b.pth"])
def test_paths_that_are_none(path):
    with pytest.raises(PinchpointError):
        open_model(path)


@pytest.mark.parametrize("wrong", [{"value": 7.5}, {"value": float("nan")}, {"count": -1}, {"of": 10**400}])
def test_shares_have_ranges(wrong):
    right = {"value": 0.5, "low": 0.4, "high": 0.6, "count": 1, "of": 2}
    Share(**right)
    with pytest.raises(ValidationError):
        Share(**(right | wrong))


def test_counts_of_parameters_have_ranges():
    with pytest.raises(ValidationError):
        Subject(name="a", notes=[], normalisation="", parameters=10**400, classes=2, input_shape=[1])
