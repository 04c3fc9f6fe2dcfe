"""Still figures: the recorded numbers, at the places where the axes say they are."""

from __future__ import annotations

import copy
import itertools
import re
from statistics import fmean
from typing import Any
from xml.etree import ElementTree

import pytest

from pinchpoint.records import Run, Summary
from pinchpoint.report.charts import svg
from pinchpoint.report.study.print import plate, plates

Study = tuple[Summary, list[Run]]
SVG = "{http://www.w3.org/2000/svg}"


def drawn(text: str) -> ElementTree.Element:
    return ElementTree.fromstring(text)


def words(tree: ElementTree.Element) -> list[str]:
    return ["".join(node.itertext()) for node in tree.iter(f"{SVG}text")]


def lines(tree: ElementTree.Element) -> list[tuple[str, list[list[float]]]]:
    """Class and points of every line, in order."""
    return [
        (
            node.get("class", ""),
            [[float(value) for value in point.split(",")] for point in node.get("points", "").split()],
        )
        for node in tree.iter(f"{SVG}polyline")
    ]


def values(points: list[list[float]], top: float, bottom: float) -> list[float]:
    """Heights turned back into shares."""
    return [(bottom - y) / (bottom - top) for _, y in points]


def frame(tree: ElementTree.Element) -> tuple[float, float]:
    """Where the first panel's 100 and 0 are drawn."""
    found = {
        "".join(node.itertext()): float(node.get("y", "0")) - 4 for node in reversed(list(tree.iter(f"{SVG}text")))
    }
    return found["100"], found["0"]


def test_lines_show_the_means_over_seeds(study: Study) -> None:
    summary, _ = study
    figures = plates(summary)
    assert list(figures) == [family.name for family in summary.families]
    for family, text in zip(summary.families, figures.values(), strict=True):
        tree = drawn(text)
        rows = [row for row in summary.models if row["family"] == family.name]
        clean, linf, l2, ratio, *_ = lines(tree)
        top, bottom = frame(tree)
        assert bottom - top == 200.0
        for (kind, points), key, tone in (
            (clean, "clean_accuracy", "a"),
            (linf, "robust_accuracy_linf", "b"),
            (l2, "robust_accuracy_l2", "c"),
            (ratio, "robust_over_clean_linf", "b"),
        ):
            wanted = [fmean(row[key] for row in rows if row["level"] == level.level) for level in family.levels]
            assert values(points, top, bottom) == pytest.approx(wanted, abs=1e-3)
            assert kind == f"line {tone}"
        across = [
            fmean(row["compressibility"] for row in rows if row["level"] == level.level) for level in family.levels
        ]
        places = [x for x, _ in clean[1]]
        assert all((b > a) == (d > c) for a, b, c, d in zip(across, across[1:], places, places[1:], strict=False))


def test_curves_begin_without_attack_and_certified_ones_are_dashed(study: Study) -> None:
    family = study[0].families[0]
    rows = copy.deepcopy([row for row in study[0].models if row["family"] == family.name and row["seed"] == 0])
    for point in (point for row in rows for point in row["curve_l2"]):
        point["certified_accuracy"] = 0.5 * point["robust_accuracy"]
    tree = drawn(plate(family, rows))
    curves = [(kind, points) for kind, points in lines(tree) if "level0" in kind]
    certified = [points for kind, points in curves if "dashed" in kind]
    robust = [points for kind, points in curves if "dashed" not in kind]
    assert (len(robust), len(certified)) == (2, 1), "one a norm; nothing is certified under linf"
    attacked, under = robust[1], certified[0]
    assert attacked[0] == under[0], "both begin with the clean accuracy"
    clean, curve = rows[0]["clean_accuracy"], rows[0]["curve_l2"]
    assert len(attacked) == len(under) == len(curve)
    for shown, key in ((attacked, "robust_accuracy"), (under, "certified_accuracy")):
        wanted = [200 * (clean - point[key]) for point in curve[1:]]
        assert [y - shown[0][1] for _, y in shown[1:]] == pytest.approx(wanted, abs=0.2)
    assert any("Dashed: certified." in text for text in words(tree))


def test_strokes_span_the_seeds(study: Study) -> None:
    summary, _ = study
    family = summary.families[0]
    rows = [row for row in summary.models if row["family"] == family.name]
    tree = drawn(plate(family, rows))
    strokes = [node.get("d", "") for node in tree.iter(f"{SVG}path") if node.get("class") == "line a"]
    assert len(strokes) == len(family.levels)
    for level, stroke in zip(family.levels, strokes, strict=True):
        low, high = (float(found) for found in re.fullmatch(r"M \S+ (\S+) V (\S+)", stroke).groups())  # type: ignore[union-attr]
        clean = [row["clean_accuracy"] for row in rows if row["level"] == level.level]
        assert low - high == pytest.approx(200 * (max(clean) - min(clean)), abs=0.2)
    strongest = [node.get("d", "") for node in tree.iter(f"{SVG}path") if node.get("class") == "line level3"]
    low, high = (float(found) for found in re.fullmatch(r"M \S+ (\S+) V (\S+)", strongest[1]).groups())  # type: ignore[union-attr]
    left = [row["curve_linf"][1]["robust_accuracy"] for row in rows if row["level"] == 3]
    assert low - high == pytest.approx(200 * (max(left) - min(left)), abs=0.2)


def test_every_class_has_a_tone_for_light_and_dark(study: Study) -> None:
    for text in plates(study[0]).values():
        style = drawn(text).find(f"{SVG}style").text  # type: ignore[union-attr]
        light, dark = style.split("@media", 2)[0], style.rpartition("@media")[2]
        for level in range(4):
            assert f".level{level} {{ --tone: #" in style.partition("@media")[2].partition("@media")[0]
            assert f".level{level} {{ --tone: #" in dark
        assert "svg { --page: #fff" in light
        assert 'class="name"' not in text, "coloured text needs a tone of its own"


def test_nothing_is_drawn_outside_and_labels_do_not_touch(study: Study) -> None:
    for text in plates(study[0]).values():
        tree = drawn(text)
        _, _, width, height = (float(value) for value in tree.get("viewBox", "").split())
        for _, points in lines(tree):
            assert all(0 <= x <= width and 0 <= y <= height for x, y in points)
        middle = [node for node in tree.iter(f"{SVG}text") if node.get("text-anchor") == "middle"]
        by_row: dict[str, list[Any]] = {}
        for node in middle:
            by_row.setdefault(f"{node.get('y')} {float(node.get('x', '0')) > width / 2}", []).append(node)
        for nodes in by_row.values():
            spans = [(float(n.get("x", "0")), 3 * len(n.text or "")) for n in nodes]  # letters are 6 wide or more
            assert all(x + half < other - wide for (x, half), (other, wide) in itertools.pairwise(spans))


def test_what_is_missing_is_left_out(study: Study) -> None:
    family = study[0].families[0]
    rows = [
        {
            "family": family.name,
            "level": level,
            "label": f"<{level}>",
            "seed": 0,
            "compressibility": 0.5,
            "clean_accuracy": None,
        }
        for level in range(2)
    ]
    tree = drawn(plate(family, rows))
    assert lines(tree) == []
    assert "<1>" in words(tree)
    rows[0]["clean_accuracy"] = 0.5
    (only,) = lines(drawn(plate(family, rows)))
    assert len(only[1]) == 1, "equal compressibilities still make an axis"


def test_long_legends_take_several_rows() -> None:
    parts, below = svg.legend(50, [("a", "x" * 60), ("b", "y" * 60), ("c", "z")], "lead")
    places = [re.search(r'y="([\d.]+)"', part).group(1) for part in parts if part.startswith("<text")]  # type: ignore[union-attr]
    assert places == ["50.0", "50.0", "70.0", "70.0"]
    assert below == 90
