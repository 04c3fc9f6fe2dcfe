"""The summary says what the records say: checked against NumPy, SciPy and the records themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from oracles import pretend
from pinchpoint.errors import StoreError
from pinchpoint.study import Failure, Store, finished_runs, parse, plan, run
from pinchpoint.study.analysis.rows import Rows, read_rows
from pinchpoint.study.analysis.statistics import associate
from pinchpoint.study.analysis.summary import _levels, _peak, summarise


@pytest.fixture(scope="module")
def found(finished) -> Rows:
    return read_rows(finished.config, finished.plan, finished.store)


def some(found: Rows, wanted: set[str]) -> Rows:
    """Rows of these runs alone."""
    rows = [row for row in found.rows if row["run"] in wanted]
    members = [member for member in found.members if member.run in wanted]
    return dataclasses.replace(found, rows=rows, members=members)


def changed(found: Rows, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Rows:
    """Each row with something changed."""
    return dataclasses.replace(found, rows=[row | change(row) for row in found.rows])


def test_rows_are_the_members_of_each_family_in_order(finished):
    rows = finished.summary.models
    expected = [("lasso", level, seed) for level in range(3) for seed in range(2)]
    expected += [("rank", level, seed) for level in range(2) for seed in range(2)]
    assert [(row["family"], row["level"], row["seed"]) for row in rows] == expected
    assert [(m.family, m.level, m.seed) for m in finished.summary.members] == expected
    assert [row["run"] for row in rows] == [member.run for member in finished.summary.members]
    assert rows[0]["run"] == rows[6]["run"], "the plain model stands in both families"
    assert {row["family_title"] for row in rows} == {"Group lasso", "rank"}


def test_row_holds_the_figures_of_its_record(finished):
    for row in finished.summary.models:
        record = finished.runs[row["run"]]
        audit = record.audit
        view = {"lasso": "neuron", "rank": "spectral"}[row["family"]]
        assert row["compressibility"] == row[view] == getattr(audit.profile, view)
        assert row["clean_accuracy"] == audit.clean_accuracy
        for attacked, bounds, mechanism in zip(audit.robustness, audit.bounds, audit.mechanism, strict=True):
            norm = attacked.norm
            assert bounds.norm == mechanism.norm == norm
            judged = {point.eps: point for point in attacked.curve}[attacked.eps]
            expected = {
                "eps": attacked.eps,
                "robust_accuracy": judged.robust_accuracy,
                "robust_over_clean": judged.robust_accuracy / audit.clean_accuracy,
                "certified_accuracy": judged.certified_accuracy,
                "universal_accuracy": attacked.universal_accuracy,
                "universal_eps": attacked.universal_eps,
                "gap": attacked.adversarial_loss - attacked.clean_loss,
                "gap_bound": attacked.gap_bound,
                "curve": [point.model_dump() for point in attacked.curve],
                "lipschitz": bounds.lipschitz,
                "lipschitz_structure": bounds.lipschitz_structure,
                "lipschitz_lower": bounds.lipschitz_lower,
                "amplification": mechanism.amplification,
                "alignment": mechanism.layers[0].alignment,
                "alignment_baseline": mechanism.layers[0].baseline,
            }
            assert {key: row[f"{key}_{norm}"] for key in expected} == expected
        for layer, measured in zip(row["layers"], audit.profile.layers, strict=True):
            assert layer["name"] == measured.name
            for name in ("neuron", "spectral"):
                assert layer[f"{name}_residual"] == getattr(measured, name).residual
                assert layer[f"{name}_spread"] == getattr(measured, name).spread
                assert layer[f"{name}_k"] == getattr(measured, name).k
        assert row["epochs"] == record.training.epochs
        assert row["parameters"] == audit.parameters
        assert row["seconds"] == pytest.approx(sum(audit.seconds.values()))
        assert audit.seconds.keys() == {"train", "profile"} | {
            f"{kind} {norm}" for kind in ("bound", "attack", "universal", "mechanism") for norm in ("linf", "l2")
        }


def test_levels_are_means_and_deviations_over_seeds(finished):
    for family in finished.summary.families:
        for level in family.levels:
            rows = [r for r in finished.summary.models if (r["family"], r["level"]) == (family.name, level.level)]
            assert level.seeds == len(rows) == 2
            assert level.label == rows[0]["label"]
            floats = {key for key, value in rows[0].items() if isinstance(value, float)}
            assert floats <= level.mean.keys()
            for key, mean in level.mean.items():
                column = [row[key] for row in rows]
                assert mean == pytest.approx(np.mean(column), rel=1e-12)
                assert level.std[key] == pytest.approx(np.std(column, ddof=1), rel=1e-9, abs=1e-15)


def test_correlations_agree_with_scipy_over_models_and_by_seed(finished):
    for family in finished.summary.families:
        rows = [row for row in finished.summary.models if row["family"] == family.name]
        seen = set()
        for correlation in family.correlations:
            seen.add((correlation.metric, correlation.norm, correlation.eps))
            column = _column(rows, correlation)
            against = [row["compressibility"] for row in rows]
            assert correlation.against == "compressibility"
            assert correlation.models == len(rows)
            if len(set(column)) > 1:
                assert correlation.rho == pytest.approx(spearmanr(against, column).statistic, abs=1e-12)
                expected = associate(against, column, [row["seed"] for row in rows])
                assert correlation.p_value == expected.p_value
            for seed, rho in enumerate(correlation.rho_by_seed):
                at = [i for i, row in enumerate(rows) if row["seed"] == seed]
                here = [column[i] for i in at]
                if len(at) < 3 or len(set(here)) < 2:
                    assert rho is None
                else:
                    assert rho == pytest.approx(spearmanr([against[i] for i in at], here).statistic, abs=1e-12)
        assert len(seen) == len(family.correlations)
        assert ("clean_accuracy", None, None) in seen
        assert {("robust_accuracy", "linf", eps) for eps in (0.02, 0.05, 0.1)} <= seen
        assert {("robust_accuracy", "l2", 0.3), ("gap", "l2", 0.3), ("alignment", "linf", 0.05)} <= seen


def _column(rows, correlation):
    if correlation.norm is None:
        return [row[correlation.metric] for row in rows]
    if correlation.metric == "robust_accuracy":
        curves = [
            {point["eps"]: point["robust_accuracy"] for point in row[f"curve_{correlation.norm}"]} for row in rows
        ]
        return [curve[correlation.eps] for curve in curves]
    return [row[f"{correlation.metric}_{correlation.norm}"] for row in rows]


def test_bound_against_gap_counts_each_model_once(finished):
    once = {row["run"]: row for row in finished.summary.models}.values()
    assert len(once) == 8
    assert [c.norm for c in finished.summary.bound_vs_gap] == ["linf", "l2"]
    for correlation in finished.summary.bound_vs_gap:
        bound, gap = ([row[f"{key}_{correlation.norm}"] for row in once] for key in ("gap_bound", "gap"))
        assert correlation.rho == pytest.approx(spearmanr(gap, bound).statistic, abs=1e-12)
        assert (correlation.metric, correlation.against, correlation.models) == ("gap_bound", "gap", 8)
    notes = [note for note in finished.summary.notes if "the gap bound ranks the models" in note]
    assert len(notes) == 2
    assert f"Spearman {finished.summary.bound_vs_gap[0].rho:+.2f} over 8 models" in notes[0]


def test_headline_counts_models_once_and_names_both_families(finished):
    said = finished.summary.headline
    assert said.startswith("Over 8 models (2 seeds), robust accuracy ")
    assert said.endswith(".")
    assert "Group lasso (linf 0.05: Spearman " in said
    assert " rank (linf 0.05: " in said


def test_runs_that_are_missing_are_named(finished, found):
    tasks = finished.plan.tasks
    failure = Failure(tasks[0].label, "it broke.")
    some_rows = some(found, {task.id for task in tasks[2:]})
    summary = summarise(finished.config, finished.plan, some_rows, [failure])
    assert f"2 runs of the study are not finished; the first is {tasks[0].label}." in summary.notes
    assert f"Failed: {tasks[0].label}: it broke." in summary.notes
    assert len(summary.models) == len(finished.summary.models) - 3
    first, *_ = summary.families[0].levels
    assert first.seeds == 1
    assert set(first.std.values()) == {None}


def test_rows_of_a_store_are_those_of_finished_runs_whatever_is_missing(finished, found, tmp_path):
    store, (first, second, *others) = Store(tmp_path), finished.plan.tasks
    for task in [second, *others]:
        for key in task.stages:
            store.add(key, lambda folder, key=key: finished.records[key])
    store.remove(second.stages[-1])
    expected = some(found, {task.id for task in others})
    assert read_rows(finished.config, finished.plan, store) == expected
    assert set(finished_runs(finished.plan, store)) == {task.id for task in others}
    for key in first.stages:
        store.add(key, lambda folder, key=key: finished.records[key])
    assert read_rows(finished.config, finished.plan, store) == some(found, {first.id, *(task.id for task in others)})


def test_rows_hold_every_step_and_what_could_not_be_done(edited, tmp_path, monkeypatch):
    """Three norms, of which one cannot be bounded, a surrogate, a query-only attack; against the runs, put together."""
    monkeypatch.setattr("pinchpoint.study.stages.run.perform", pretend.perform)
    stages = ["bound", "attack", "universal", "mechanism", "query", "transferred"]
    threats = [{"norm": norm, "eps": eps, "curve": [0.02]} for norm, eps in (("linf", 0.1), ("l2", 0.5), ("l1", 2.0))]
    changes = {"base/audit": {"stages": stages, "threats": threats}, "base/surrogate": {"seed_shift": 5}}
    rank = {"name": "rank", "view": "spectral", "grid": {"model.rank": [None, 2]}}
    config = parse(edited({"families": [rank], **changes}))
    planned, store = plan(config), Store(tmp_path / "store")
    assert run(config, store) == []
    there = read_rows(config, planned, store)
    runs = finished_runs(planned, store)
    assert len({row["run"] for row in there.rows}) == len(runs) == 4
    for row in there.rows:
        audit = runs[row["run"]].audit
        assert [bounds.norm for bounds in audit.bounds] == ["linf", "l2"]
        bounded = {bounds.norm: bounds for bounds in audit.bounds}
        explained = {mechanism.norm: mechanism for mechanism in audit.mechanism}
        for judged in audit.robustness:
            norm = judged.norm
            for name in (
                "robust_accuracy",
                "query_accuracy",
                "transferred_accuracy",
                "universal_accuracy",
                "gap_bound",
            ):
                assert row[f"{name}_{norm}"] == getattr(judged, name)
            assert row[f"curve_{norm}"] == [point.model_dump() for point in judged.curve]
            assert row[f"gap_{norm}"] == judged.gap
            lipschitz = bounded[norm].lipschitz if norm in bounded else None
            assert row[f"lipschitz_{norm}"] == lipschitz
            amplification = explained[norm].amplification if norm in explained else None
            assert row[f"amplification_{norm}"] == amplification
    assert there.warnings == sorted({warning for one in runs.values() for warning in one.audit.warnings})
    assert "not bounded in l1: pretended." in there.warnings
    summary = summarise(config, planned, there)
    metrics = {(one.metric, one.norm) for one in summary.families[0].correlations}
    assert {("query_accuracy", "l1"), ("transferred_accuracy", "linf"), ("lipschitz", "l2")} <= metrics
    assert ("lipschitz", "l1") not in metrics


def test_family_without_a_finished_run_is_left_out_and_its_runs_are_named(finished, found):
    only = {task.id for task in finished.plan.tasks if task.members[0].family == "rank"}
    summary = summarise(finished.config, finished.plan, some(found, only))
    assert [family.name for family in summary.families] == ["rank"]
    assert any(note.startswith("6 runs of the study are not finished") for note in summary.notes)


def test_nothing_finished_is_one_sentence(finished, tmp_path):
    with pytest.raises(StoreError) as caught:
        read_rows(finished.config, finished.plan, Store(tmp_path))
    assert str(caught.value) == (
        "a report needs at least one finished run, but got an empty store; run the study first: pinchpoint study run "
        "FILE."
    )


def test_one_seed_is_no_finding(finished, edited):
    config = parse(edited({"seeds": [0]}))
    summary = summarise(config, plan(config), read_rows(config, plan(config), finished.store))
    assert "One seed is no finding: nothing here is called a direction." in summary.notes
    assert summary.headline.startswith("Over 4 models (1 seed), robust accuracy is left open, since one seed decides ")
    assert not any("seed is no finding" in note for note in finished.summary.notes)


def test_gap_above_its_bound_is_called_a_defect(finished, found):
    assert not any("DEFECT" in note for note in finished.summary.notes)
    first = found.rows[1]["run"]
    above = {f"{name}_{norm}": value for name, value in (("gap", 1.0), ("gap_bound", 0.5)) for norm in ("linf", "l2")}
    spoilt = changed(found, lambda row: above if row["run"] == first else {})
    (note,) = [note for note in summarise(finished.config, finished.plan, spoilt).notes if "DEFECT" in note]
    assert note.startswith("DEFECT: 2 measured gaps exceed their bound"), "one a norm"


def test_models_that_know_nothing_can_be_summarised(finished, found):
    """No clean accuracy, so no ratio and no variation: undefined, not a crash."""
    nothing = {"robust_accuracy": 0.0, "robust_over_clean": None, "gap_bound": None}
    blank = {f"{name}_{norm}": value for name, value in nothing.items() for norm in ("linf", "l2")}
    lost = changed(found, lambda row: blank | {"clean_accuracy": 0.0})
    summary = summarise(finished.config, finished.plan, lost)
    assert summary.headline == (
        "Over 8 models (2 seeds), robust accuracy shows no clear direction for Group lasso (linf 0.05: Spearman "
        "undefined; l2 0.3: Spearman undefined) and rank (linf 0.05: Spearman undefined; l2 0.3: Spearman undefined)."
    )
    assert (
        "no clear direction (Spearman undefined; robust over clean accuracy undefined)."
        in summary.families[0].findings[0]
    )
    assert summary.bound_vs_gap == []


def test_warnings_of_audits_are_said_once(finished, tmp_path):
    store = Store(tmp_path)
    for key, record in finished.records.items():
        if key[0] == "bound":
            reason = "a." if record.config["threat"]["norm"] == "l2" else "b."
            record = record.model_copy(update={"status": "skipped", "reason": reason, "result": None})
        store.add(key, lambda folder, record=record: record)
    found = read_rows(finished.config, finished.plan, store)
    notes = summarise(finished.config, finished.plan, found).notes
    assert notes[-2:] == ["not bounded in l2: a.", "not bounded in linf: b."]


@pytest.mark.parametrize(
    ("curves", "expected"),
    [
        ({0: [0.3, 0.5, 0.4], 1: [0.2, 0.6, 0.1]}, "b"),
        ({0: [0.3, 0.5, 0.4], 1: [0.6, 0.6, 0.1]}, None),
        ({0: [0.3, 0.5, 0.4], 1: [0.1, 0.2, 0.3]}, None),
        ({0: [0.3, 0.5, 0.4]}, None),
    ],
    ids=["both seeds", "a tie with the first", "highest at the end", "one seed"],
)
def test_a_peak_needs_every_seed(curves, expected):
    rows = [
        {"seed": seed, "level": level, "label": "abc"[level], "robust_accuracy_linf": value}
        for seed, values in curves.items()
        for level, value in enumerate(values)
    ]
    rows.sort(key=lambda row: (row["level"], row["seed"]))
    peak = _peak(rows, _levels(rows), "linf")
    assert (None if peak is None else peak.label) == expected


def test_twice_the_models_are_looked_at_twice_as_often(finished, found, monkeypatch):
    """The work of a summary grows with its models, not with their square."""
    monkeypatch.setattr("pinchpoint.study.analysis.summary._MOST_PERMUTED", 0)
    looks = 0

    class Watched(dict[str, Any]):
        def __getitem__(self, key: str) -> Any:
            nonlocal looks
            looks += 1
            return super().__getitem__(key)

        def get(self, key: str, default: Any = None) -> Any:
            nonlocal looks
            looks += 1
            return super().get(key, default)

    def took(times: int) -> int:
        nonlocal looks
        looks = 0
        many = [
            Watched(row | {"seed": row["seed"] + 2 * copy, "run": f"{row['run']}{copy}"})
            for family in ("lasso", "rank")
            for level in range(3)
            for copy in range(times)
            for row in found.rows
            if (row["family"], row["level"]) == (family, level)
        ]
        assert len(many) == times * len(found.rows)
        summarise(finished.config, finished.plan, dataclasses.replace(found, rows=many))
        return looks

    assert took(20) < 2.2 * took(10)
