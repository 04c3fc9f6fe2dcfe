"""The tables and the section on repeating: recorded numbers, formatted and ordered."""

from __future__ import annotations

from types import ModuleType

import pytest

from pinchpoint.records import Run, Summary
from pinchpoint.report.formatting import written
from pinchpoint.report.study.data import Material, gather
from pinchpoint.report.study.provenance import repeat
from pinchpoint.report.study.tables import correlation_rows, groups, model_rows

Study = tuple[Summary, list[Run]]


@pytest.fixture(scope="module")
def material(study: Study) -> Material:
    return gather(*study)


def test_one_row_a_member_and_one_cell_a_column(material: Material) -> None:
    rows = model_rows(material)
    columns = [column for group in groups(material) for column in group.columns]
    assert len(rows) == 36
    assert all(len(row["cells"]) == len(columns) for row in rows)
    place = [column.key for column in columns].index("gap_bound_l2")
    assert rows[5]["cells"][place].value == material.placed["group"][5].row["gap_bound_l2"]
    assert all(cell.value is not None for row in rows for cell in row["cells"])


def test_columns_stand_where_something_is_on_record(study: Study) -> None:
    summary, runs = study
    keys = [column.key for group in groups(gather(summary, runs)) for column in group.columns]
    assert "query_accuracy_linf" not in keys
    rows = [
        {**row, "query_accuracy_linf": 0.5, "transferred_accuracy_linf": 0.6, "certified_accuracy_linf": None}
        for row in summary.models
    ]
    update = {"query_accuracy": 0.5, "queries": 300, "universal_eps": 0.1}
    queried = [
        run.model_copy(update={"audit": run.audit.model_copy(update={
            "robustness": [item.model_copy(update=update) for item in run.audit.robustness]
        })})
        for run in runs
    ]  # fmt: skip
    linf, l2 = groups(gather(summary.model_copy(update={"models": rows}), queried))[2:]
    assert [column.head for column in linf.columns[:6]] == [
        "RA", "RA / SA", "universal, ε = 0.1", "300 queries", "transferred", "gap"
    ]  # fmt: skip
    assert [column.starts_group for column in linf.columns] == [True] + [False] * (len(linf.columns) - 1)
    assert "certified_accuracy_l2" in [column.key for column in l2.columns]


def test_a_norm_that_is_attacked_only_has_the_columns_of_attacks(factory: ModuleType) -> None:
    summary, runs = factory.study(families=1, seeds=1, norms=["l2"])
    rows = [{key.replace("_l2", "_l1"): value for key, value in row.items()} for row in summary.models]
    rows = [{key: value for key, value in row.items() if "bound" not in key and "lipschitz" not in key} for row in rows]
    attacked = [
        run.model_copy(update={"audit": run.audit.model_copy(update={
            "bounds": [], "robustness": [item.model_copy(update={"norm": "l1"}) for item in run.audit.robustness]
        })})
        for run in runs
    ]  # fmt: skip
    *_, last = groups(gather(summary.model_copy(update={"models": rows}), attacked))
    assert last.title == "ℓ₁, ε = 0.6"
    assert [column.head for column in last.columns] == [
        "RA", "RA / SA", "universal", "certified", "gap", "alignment", "amplification"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.000"), (0.99996, "1.00"), (9.999, "10.0"), (99.99, "100"), (-0.25, "-0.250"), (2e9, "2e+09")],
)
def test_numbers_are_written_with_about_three_digits(value: float, text: str) -> None:
    assert written(value) == text


def test_correlations_are_those_of_the_main_budget(material: Material) -> None:
    rows = {row["term"].name: row for row in correlation_rows(material)}
    clean, robust = rows["Clean accuracy (SA)"], rows["Robust accuracy (RA)"]
    assert (clean["span"], len(clean["cells"])) == (2, 3)
    assert (robust["span"], len(robust["cells"])) == (1, 6)
    assert robust["cells"][0]["rho"] == -0.35
    assert len(robust["cells"][0]["seeds"]) == 3


def test_recalls_stand_beside_the_accuracy_without_attack(study: Study) -> None:
    summary, runs = study
    key, rows = "recall_text_to_image_5", [dict(row) for row in summary.models]
    for place, row in enumerate(rows):
        row[key] = place / 100
    first = summary.families[0]
    rho = first.correlations[0].model_copy(update={"metric": key, "norm": None, "eps": None, "rho": -0.75})
    family = first.model_copy(update={"correlations": [rho]})
    told = summary.model_copy(update={"models": rows, "families": [family, *summary.families[1:]]})
    material = gather(told, runs)
    shown = groups(material)
    assert [group.title for group in shown[:3]] == ["Compressibility", "No attack", "Recall"]
    assert [(column.key, column.head, column.starts_group) for column in shown[2].columns] == [
        (key, "text to image, k = 5", True)
    ]
    assert shown[2].columns[0].term.name == "Recall, text to image, k = 5"
    place = [column.key for group in shown for column in group.columns].index(key)
    assert [row["cells"][place].value for row in model_rows(material)] == [
        item.row[key] for placed in material.placed.values() for item in placed
    ]
    (row,) = [row for row in correlation_rows(material) if row["term"].name == "Recall, text to image, k = 5"]
    assert (row["span"], [cell["rho"] for cell in row["cells"]]) == (2, [-0.75, None, None])


def test_a_correlation_that_is_not_on_record_leaves_its_cell_empty(factory: ModuleType) -> None:
    summary, runs = factory.study()
    first = summary.families[0].model_copy(update={"correlations": []})
    material = gather(summary.model_copy(update={"families": [first, *summary.families[1:]]}), runs)
    cells = correlation_rows(material)[1]["cells"]
    assert [cell["rho"] for cell in cells] == [None, None, -0.35, -0.35, -0.35, -0.35]


def test_repeat_parts_what_runs_share_from_where_they_differ(material: Material) -> None:
    told = repeat(material)
    assert told["shared"] == {"data.name": '"digits"', "model.widths": "[128, 128]"}
    assert told["varying"] == ["seed", "penalty.kind", "penalty.strength"]
    assert told["machines"] == ["2 cores, 2 GB, Linux"]
    assert told["versions"]["torch"] == "2.8.0"
    assert told["warnings"] == [("certified radii are zero for 3 samples", len(material.runs))]
    assert told["runs"][0]["places"][0].endswith(": none")
