"""Planes and representations drawn: recorded numbers, unchanged, in colours that a dark page knows."""

from __future__ import annotations

import json
import re
from typing import Any

import plotly.graph_objects as go
import pytest

from pinchpoint.records import DecisionPlane, RepresentationPCA
from pinchpoint.report.charts import palette
from pinchpoint.report.charts.plotly import Panel
from pinchpoint.report.study.figures import decision_plane, representation_pca

LABELS = [[3, 3, 7], [3, 3, 7], [1, 7, 7]]
CONFIDENCE = [[0.9, 0.8, 0.5], [0.7, 0.6, 0.9], [0.4, 0.55, 0.75]]
PLANE = DecisionPlane(
    space="input", sample=4, label=3, clean_label=3, adversarial_label=7, length=0.5, along=0.6, across=0.8,
    coordinates=[-1.0, 0.0, 1.0], labels=LABELS, confidence=CONFIDENCE,
    excess=[[0.3, 0.0, 0.001], [0.2, 0.0, 0.0], [0.0, 0.1, 0.4]],
)  # fmt: skip
PCA = RepresentationPCA(
    clean=[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], adversarial=[[1.5, 2.5], [3.5, 4.5], [5.5, 6.5]], labels=[0, 8, 0],
    answers=[0, 1, 2], explained=[0.5, 0.25], moved=[0.4, 0.1],
)  # fmt: skip


def group(panel: Panel, name: str) -> list[dict[str, Any]]:
    return [trace for trace in panel.figure["data"] if name in trace["meta"]["groups"]]


def many(classes: int) -> RepresentationPCA:
    points = [[float(place), 0.0] for place in range(classes)]
    numbers = list(range(classes))
    return PCA.model_copy(update={"clean": points, "adversarial": points, "labels": numbers, "answers": numbers})


PANELS = [
    decision_plane(PLANE),
    decision_plane(PLANE.model_copy(update={"space": "representation", "excess": None})),
    decision_plane(PLANE.model_copy(update={"labels": [[0, 1, 2], [4, 5, 6], [8, 9, 10]]})),
    representation_pca(PCA),
    representation_pca(many(10)),
    representation_pca(many(100)),
]


@pytest.mark.parametrize("panel", PANELS)
def test_figures_are_valid_and_every_colour_has_a_dark_partner(panel: Panel) -> None:
    go.Figure(panel.figure)
    text = json.dumps(panel.figure, allow_nan=False)
    assert set(re.findall(r"#[0-9a-f]{6}", text)) <= set(palette.dark_of(1))
    assert {key.color for key in panel.keys} <= set(palette.dark_of(1))
    shown = {name for trace in panel.figure["data"] for name in trace["meta"]["groups"]}
    assert {key.group for key in panel.keys} <= shown


def test_each_point_is_drawn_once_in_the_class_answered_there() -> None:
    panel = decision_plane(PLANE, [f"c{label}" for label in range(8)])
    regions = [trace for trace in panel.figure["data"] if trace["type"] == "heatmap"]
    assert [region["meta"]["groups"] for region in regions] == [["class:3"], ["class:7"], ["class:1"]]
    for region in regions:
        assert region["x"] == region["y"] == PLANE.coordinates
    for row in range(3):
        for column in range(3):
            here = {
                region["meta"]["groups"][0]: region["z"][row][column]
                for region in regions
                if region["z"][row][column] is not None
            }
            assert here == {f"class:{LABELS[row][column]}": CONFIDENCE[row][column]}
    assert [key.name for key in panel.keys][:3] == ["c3", "c7", "c1"]
    assert "c3 on 44%, c7 on 44%, c1 on 11%" in panel.label
    assert panel.figure["layout"]["annotations"][0]["text"] == "<b>sample 4: c3 seen as c7</b>"


def test_sample_direction_and_what_is_no_image() -> None:
    panel = decision_plane(PLANE)
    (sample,), (perturbed,), (line,) = (group(panel, name) for name in ("sample", "perturbed", "direction"))
    assert (sample["x"], sample["y"], perturbed["x"], perturbed["y"]) == ([0.0], [0.0], [0.5], [0.0])
    assert line["y"][1] / line["x"][1] == pytest.approx(0.8 / 0.6)
    assert line["x"][0] == -line["x"][1]
    (outside,) = group(panel, "outside")
    assert list(zip(outside["x"], outside["y"], strict=True)) == [(-1.0, -1.0), (1.0, 1.0)]  # not where it is invisible
    inside = PLANE.model_copy(update={"excess": [[0.0] * 3] * 3})
    assert not group(decision_plane(inside), "outside")
    assert "outside the box" not in [key.name for key in decision_plane(inside).keys]


def test_representations_are_where_they_were_recorded() -> None:
    panel = representation_pca(PCA)
    first = [trace for trace in group(panel, "class:0") if trace["type"] == "scatter"]
    clean, adversarial = first
    assert (clean["x"], clean["y"]) == ([1.0, 5.0], [2.0, 6.0])
    assert (adversarial["x"], adversarial["y"], adversarial["text"]) == ([1.5, 5.5], [2.5, 6.5], ["class 0", "class 2"])
    (arrows,) = group(panel, "movement")
    assert arrows["x"] == [3.0, 3.5, None, 5.0, 5.5, None]  # those whose answer is wrong
    assert arrows["y"] == [4.0, 4.5, None, 6.0, 6.5, None]
    assert "50% of the movement" in panel.label
    assert panel.figure["layout"]["xaxis"]["title"]["text"] == "axis 1: 50% of the clean variance"


def test_ten_classes_are_told_apart_and_a_hundred_have_no_keys() -> None:
    ten, hundred = representation_pca(many(10)), representation_pca(many(100))
    assert len({(key.color, key.symbol) for key in ten.keys[:10]}) == 10
    assert [key.name for key in hundred.keys] == ["clean", "adversarial", "movement"]


def test_names_are_text() -> None:
    names = ["<b>x</b>"] * 9
    assert "<b>x" not in json.dumps([decision_plane(PLANE, names).figure, representation_pca(PCA, names).figure])
