"""The summary says what the records say: checked against NumPy, SciPy and the records themselves."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from pinchpoint.errors import StoreError
from pinchpoint.records import Run
from pinchpoint.study import Failure, parse
from pinchpoint.study.summary import _level, _peak, _spearman, summarise

values = st.one_of(st.integers(-3, 3).map(float), st.floats(-1e6, 1e6, allow_subnormal=False))
pairs = st.lists(st.tuples(values, values), min_size=3, max_size=40)


@given(pairs)
def test_spearman_agrees_with_scipy_ties_included(points):
    x, y = (np.array(column) for column in zip(*points, strict=True))
    rho, p_value = _spearman(x.tolist(), y.tolist())
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert (rho, p_value) == (None, None)
        return
    expected = spearmanr(x, y)
    assert rho == pytest.approx(expected.statistic, abs=1e-12)
    assert p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)


@given(pairs, st.lists(st.sampled_from([None, math.nan, math.inf]), min_size=1, max_size=4))
def test_spearman_leaves_out_what_is_missing(points, missing):
    whole = _spearman(*([list(column) for column in zip(*points, strict=True)]))
    holes = [*points, *((hole, 1.0) for hole in missing), *((2.0, hole) for hole in missing)]
    assert _spearman(*([list(column) for column in zip(*holes, strict=True)])) == whole


@pytest.mark.parametrize(
    ("x", "y"), [([1.0, 2.0], [1.0, 2.0]), ([], []), ([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]), ([1.0, None, 2.0], [1, 2, 3])]
)
def test_spearman_is_undefined_for_two_pairs_or_no_variation(x, y):
    assert _spearman(x, y) == (None, None)


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
        assert row["seconds"] == pytest.approx(record.training.seconds + sum(audit.seconds.values()))


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
                expected = spearmanr(against, column)
                assert correlation.rho == pytest.approx(expected.statistic, abs=1e-12)
                assert correlation.p_value == pytest.approx(expected.pvalue, rel=1e-6, abs=1e-12)
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


def test_runs_that_are_missing_are_named(finished):
    tasks = finished.config.plan()
    some = {task.id: finished.runs[task.id] for task in tasks[2:]}
    failure = Failure(tasks[0].label, "it broke.")
    summary = summarise(finished.config, some, [failure])
    assert f"2 runs of the study are not finished; the first is {tasks[0].label}." in summary.notes
    assert f"Failed: {tasks[0].label}: it broke." in summary.notes
    assert len(summary.models) == len(finished.summary.models) - 3
    first, *_ = summary.families[0].levels
    assert first.seeds == 1
    assert set(first.std.values()) == {None}


def test_family_without_a_finished_run_is_left_out_and_its_runs_are_named(finished):
    tasks = finished.config.plan()
    only = {task.id: finished.runs[task.id] for task in tasks if task.members[0].family == "rank"}
    summary = summarise(finished.config, only)
    assert [family.name for family in summary.families] == ["rank"]
    assert any(note.startswith("6 runs of the study are not finished") for note in summary.notes)


def test_nothing_finished_is_one_sentence(finished):
    with pytest.raises(StoreError) as caught:
        summarise(finished.config, {})
    assert str(caught.value) == (
        "a report needs at least one finished run, but got an empty store; run the study first: pinchpoint study run "
        "FILE."
    )


def test_one_seed_is_no_finding(finished, edited):
    config = parse(edited({"seeds": [0]}))
    summary = summarise(config, finished.runs)
    assert "One seed is no finding: nothing here is called a direction." in summary.notes
    assert summary.headline.startswith("Over 4 models (1 seed), robust accuracy is left open, since one seed decides ")
    assert not any("seed is no finding" in note for note in finished.summary.notes)


def with_robustness(run: Run, **changes: object) -> Run:
    """The run with something changed under every norm."""
    robustness = [item.model_copy(update=changes) for item in run.audit.robustness]
    return run.model_copy(update={"audit": run.audit.model_copy(update={"robustness": robustness})})


def test_gap_above_its_bound_is_called_a_defect(finished):
    assert not any("DEFECT" in note for note in finished.summary.notes)
    first, *rest = finished.runs.values()
    spoilt = with_robustness(first, gap=1.0, gap_bound=0.5)
    summary = summarise(finished.config, {run.id: run for run in (spoilt, *rest)})
    (note,) = [note for note in summary.notes if "DEFECT" in note]
    assert note.startswith("DEFECT: 2 measured gaps exceed their bound"), "one a norm"


def test_models_that_know_nothing_can_be_summarised(finished):
    """No clean accuracy, so no ratio and no variation: undefined, not a crash."""
    lost = {}
    for run in finished.runs.values():
        blank = with_robustness(run, robust_accuracy=0.0, robust_over_clean=None, gap_bound=None)
        lost[run.id] = blank.model_copy(update={"audit": blank.audit.model_copy(update={"clean_accuracy": 0.0})})
    summary = summarise(finished.config, lost)
    assert summary.headline == (
        "Over 8 models (2 seeds), robust accuracy shows no clear direction for Group lasso (linf 0.05: Spearman "
        "undefined; l2 0.3: Spearman undefined) and rank (linf 0.05: Spearman undefined; l2 0.3: Spearman undefined)."
    )
    assert (
        "no clear direction (Spearman undefined; robust over clean accuracy undefined)."
        in summary.families[0].findings[0]
    )
    assert summary.bound_vs_gap == []


def test_warnings_of_audits_are_said_once(finished):
    warned = {
        run.id: run.model_copy(update={"audit": run.audit.model_copy(update={"warnings": ["b", "a"]})})
        for run in finished.runs.values()
    }
    assert summarise(finished.config, warned).notes[-2:] == ["a", "b"]


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
    levels = [_level(rows, level) for level in range(3)]
    peak = _peak(rows, levels, "linf")
    assert (None if peak is None else peak.label) == expected
