"""Figures from records: recorded numbers, unchanged, in the right place, in figures that plotly accepts."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy
import plotly.graph_objects as go
import pytest

from pinchpoint.records import Run, Summary
from pinchpoint.report.charts import palette
from pinchpoint.report.study import figures
from pinchpoint.report.study.data import Material, gather
from pinchpoint.report.study.exhibits import exhibits, payload
from pinchpoint.report.study.figures.spectra import thin

Study = tuple[Summary, list[Run]]


@pytest.fixture(scope="module")
def material(study: Study) -> Material:
    return gather(*study)


def near(seen: Any, wanted: Any) -> None:
    assert seen == pytest.approx(wanted, rel=1e-3)


def traces(panel: Any, group: str) -> list[dict[str, Any]]:
    return [trace for trace in panel.figure["data"] if group in trace["meta"]["groups"]]


def test_all_figures_are_valid_plotly(factory: ModuleType, study: Study) -> None:
    material = gather(study[0], factory.pictured(study[1]))
    data = payload(material, exhibits(material))
    chosen = [panel["figure"] for choice in data["choices"] for panel in choice["panels"]]
    assert len(data["panels"]) == 22
    assert len(chosen) == 3 * 3 * 2 + 3 * 2 * (4 + 2)
    for figure in [*data["panels"].values(), *chosen]:
        go.Figure(figure)


def test_members_are_placed_by_level_then_seed_and_share_runs(material: Material) -> None:
    order = [(item.member.level, item.member.seed) for item in material.placed["nuclear"]]
    assert order == [(level, seed) for level in range(4) for seed in range(3)]
    plain = {material.placed[name][0].run.id for name in material.placed}
    assert len(plain) == 1
    assert material.missing == 0
    assert list(material.norms) == ["linf", "l2"]


def test_a_run_listed_under_another_family_is_seen_in_this_family_s_view(factory: ModuleType) -> None:
    summary, runs = factory.study()
    first = summary.families[0].name
    rows = [row for row in summary.models if row["family"] == first]
    members = [item.model_copy(update={"family": "nuclear"}) for item in summary.members if item.family == first]
    material = gather(summary.model_copy(update={"models": rows, "members": members}), runs)
    placed = material.placed["nuclear"][0]
    assert placed.value("compressibility") == placed.run.audit.profile.spectral


def test_accuracy_shows_recorded_points_means_and_spread(material: Material) -> None:
    family = material.summary.families[0]
    panel = figures.accuracy(material, family)
    points = [trace for trace in traces(panel, "seed:1") if trace["yaxis"] == "y2"]
    placed = [item for item in material.placed[family.name] if item.member.seed == 1]
    near(points[0]["x"], [item.row["neuron"] for item in placed])
    near(points[0]["y"], [item.row["robust_accuracy_linf"] for item in placed])
    means = traces(panel, "mean")
    near(means[2]["y"], [level.mean["robust_accuracy_l2"] for level in family.levels])
    near(means[2]["error_y"]["array"], [level.std["robust_accuracy_l2"] for level in family.levels])
    assert "ε = 0.08" in panel.figure["layout"]["annotations"][1]["text"]


def test_curves_have_a_solid_line_a_model_and_a_dashed_one_below(material: Material) -> None:
    family = material.summary.families[2]
    thin = traces(figures.robustness_curves(material, family), "seeds")
    solid, dashed = ([trace for trace in thin if kind in trace["meta"]["groups"]] for kind in ("attacked", "certified"))
    assert len(solid) == len(dashed) == 12 * 2
    assert {trace["line"]["dash"] for trace in dashed} == {"dash"}
    for above, below in zip(solid, dashed, strict=True):
        assert all(high >= low for high, low in zip(above["y"], below["y"], strict=True))
    colors = {trace["line"]["color"] for trace in solid}
    assert colors == {palette.level_color(level, 4) for level in range(4)}


def test_thick_curves_are_means_over_the_seeds_of_a_level(material: Material) -> None:
    family = material.summary.families[1]
    panel = figures.robustness_curves(material, family)
    means = traces(panel, "means")
    assert len(means) == 4 * 2 * 2
    assert "mean" in [key.name for key in panel.keys]
    for mean in means:
        level, kind, _ = mean["meta"]["groups"]
        own = [
            trace
            for trace in traces(panel, "seeds")
            if trace["meta"]["groups"][:2] == [level, kind] and trace["xaxis"] == mean["xaxis"]
        ]
        assert len(own) == 3
        assert all(trace["line"]["width"] < mean["line"]["width"] for trace in own)
        assert mean["line"]["color"] == own[0]["line"]["color"]
        near(mean["y"], numpy.mean([trace["y"] for trace in own], axis=0).tolist())


def test_a_curve_begins_without_attack_and_one_seed_has_no_mean(factory: ModuleType) -> None:
    summary, runs = factory.study(families=1, seeds=1)
    short = [
        run.model_copy(update={"audit": run.audit.model_copy(update={
            "robustness": [item.model_copy(update={"curve": item.curve[3:4]}) for item in run.audit.robustness]
        })})
        for run in runs
    ]  # fmt: skip
    material = gather(summary, short)
    panel = figures.robustness_curves(material, summary.families[0])
    assert not traces(panel, "means")
    assert not {"mean", "each seed"} & {key.name for key in panel.keys}
    placed = material.placed["group"]
    for item, trace in zip(placed, [one for one in traces(panel, "attacked") if one["xaxis"] == "x"], strict=True):
        record = item.robustness("linf")
        assert record is not None
        near(trace["x"], [0.0, record.curve[0].eps])
        near(trace["y"], [item.row["clean_accuracy"], record.curve[0].robust_accuracy])


def test_layers_are_named_by_path_and_kind(study: Study) -> None:
    summary, runs = study
    bare = [
        renamed(run, "0", "LowRankLinear" if item.level else "linear")
        for run, item in ((run, next(one for one in summary.members if one.run == run.id)) for run in runs)
    ]
    bare = [renamed(run, "10", "conv2d", place=1) for run in bare]
    material = gather(summary, bare)
    family = summary.families[0]
    assert figures.layer_titles(material, family) == {
        "0": "0 (linear or LowRankLinear)", "10": "10 (conv2d)", "output": "output (Linear)"
    }  # fmt: skip
    axis = figures.amplification(material, family).figure["layout"]["xaxis2"]
    assert axis["ticktext"] == ["layer 0", "conv2d 10", "output"]
    assert figures.spectrum(material, family, "10", "neuron", 9).figure["layout"]["annotations"][0]["text"] == (
        "<b>layer 10 (conv2d)</b>"
    )


def renamed(run: Run, name: str, kind: str, place: int = 0) -> Run:
    """The same with another name and kind of one layer."""

    def at(layers: list[Any], update: dict[str, str]) -> list[Any]:
        return [*layers[:place], layers[place].model_copy(update=update), *layers[place + 1 :]]

    audit = run.audit
    profile = audit.profile.model_copy(update={"layers": at(audit.profile.layers, {"name": name, "kind": kind})})
    mechanism = [item.model_copy(update={"layers": at(item.layers, {"name": name})}) for item in audit.mechanism]
    return run.model_copy(update={"audit": audit.model_copy(update={"profile": profile, "mechanism": mechanism})})


def test_correlation_curve_is_sorted_by_eps_and_takes_recorded_rho(material: Material) -> None:
    panel = figures.correlation_curve(material, "l2")
    line = traces(panel, "family:group")[1]
    assert line["x"] == sorted(line["x"])
    assert len(line["x"]) == 8
    recorded = {round(item.eps or 0, 4): item.rho for item in material.summary.families[0].correlations if item.eps}
    near(line["y"][-1], recorded[1.2])


def test_bound_scatter_has_a_diagonal_below_all_points(material: Material) -> None:
    panel = figures.bound_against_gap(material, "linf")
    diagonal = traces(panel, "diagonal")[0]
    assert diagonal["x"] == diagonal["y"]
    for family in material.summary.families:
        cloud = traces(panel, f"family:{family.name}")[0]
        assert len(cloud["x"]) == 12
        assert all(bound >= gap for gap, bound in zip(cloud["x"], cloud["y"], strict=True))
    assert panel.figure["layout"]["xaxis"]["type"] == panel.figure["layout"]["yaxis"]["type"] == "log"


def test_bound_scatter_counts_what_a_logarithm_cannot_show(factory: ModuleType) -> None:
    summary, runs = factory.study(seeds=1)
    rows = [{**row, "gap_linf": 0.0} if row["level"] == 0 else row for row in summary.models]
    panel = figures.bound_against_gap(gather(summary.model_copy(update={"models": rows}), runs), "linf")
    assert "3 models not drawn" in panel.title


def test_brackets_go_from_lower_to_upper_with_structure_above(material: Material) -> None:
    panel = figures.brackets(material, material.summary.families[1])
    for row, norm in enumerate(material.norms):
        spine, lower, upper, structure = panel.figure["data"][4 * row : 4 * row + 4]
        records = [record for item in material.placed["nuclear"] if (record := item.bounds(norm))]
        near(lower["y"], [record.lipschitz_lower for record in records])
        near(upper["y"], [record.lipschitz for record in records])
        near(structure["y"], [record.lipschitz_structure for record in records])
        near(
            [value for value in spine["y"] if value],
            [value for pair in zip(lower["y"], upper["y"], strict=True) for value in pair],
        )
        assert len(set(lower["x"])) == 12


def test_a_norm_that_is_not_bounded_has_no_bracket(study: Study) -> None:
    summary, runs = study
    one = [
        run.model_copy(update={"audit": run.audit.model_copy(update={"bounds": run.audit.bounds[1:]})}) for run in runs
    ]
    figure = figures.brackets(gather(summary, one), summary.families[0]).figure
    assert [note["text"] for note in figure["layout"]["annotations"]] == ["<b>Encoder’s Lipschitz constant, ℓ₂</b>"]
    assert len(figure["data"]) == 4


def test_spectrum_draws_recorded_values_by_rank(material: Material) -> None:
    family = material.summary.families[0]
    assert figures.layer_names(material, family) == ["input", "hidden", "output"]
    panel = figures.spectrum(material, family, "hidden", "spectral", 256)
    recorded = material.placed["group"][0].run.audit.profile.layers[1].spectral
    near(panel.figure["data"][0]["y"], recorded.values)
    assert panel.figure["data"][0]["x0"] == 1
    short = figures.spectrum(material, family, "hidden", "spectral", 20).figure["data"][0]
    assert (len(short["x"]), short["x"][0], short["x"][-1]) == (20, 1, 128)
    assert thin(recorded, 1000) == list(range(128))


def test_mechanism_shows_alignment_beside_its_baseline(material: Material) -> None:
    family = material.summary.families[0]
    panel = figures.alignment(material, family)
    record = material.placed["group"][0].mechanism("linf")
    assert record is not None
    baseline, aligned = panel.figure["data"][:2]
    near(baseline["y"], [layer.baseline for layer in record.layers])
    near(aligned["y"], [layer.alignment for layer in record.layers])
    louder = figures.amplification(material, family).figure["data"][0]
    near(louder["y"], [layer.amplification for layer in record.layers])


def test_every_colour_of_a_figure_has_a_partner_on_a_dark_page(material: Material) -> None:
    data = payload(material, exhibits(material))

    def colors(value: Any, key: str = "") -> set[str]:
        if isinstance(value, dict):
            return set().union(*(colors(item, name) for name, item in value.items())) if value else set()
        if isinstance(value, list):
            return set().union(*(colors(item, key) for item in value)) if value else set()
        return {value} if isinstance(value, str) and "color" in key else set()

    used = set().union(*(colors(figure["data"]) | colors(figure["layout"]) for figure in data["panels"].values()))
    assert used
    assert used <= set(data["dark"])


def luminance(color: str) -> float:
    parts = [int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_lines_stand_out_from_both_pages_and_levels_rise_in_contrast() -> None:
    table = palette.dark_of(6)
    for light, dark in table.items():
        if light != palette.FAINT:
            assert contrast(light, "#ffffff") >= 3, light
            assert contrast(dark, "#161b23") >= 3, dark
    steps = [palette.level_color(index, 6) for index in range(6)]
    assert [contrast(step, "#ffffff") for step in steps] == sorted(contrast(step, "#ffffff") for step in steps)
    assert len({table[step] for step in steps}) == 6
