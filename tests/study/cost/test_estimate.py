"""Estimates: what is recorded counts, what is alike is asked once, and a probe is right to within a factor."""

from __future__ import annotations

import pytest

from pinchpoint.errors import ModelError
from pinchpoint.study import Store, parse, plan, run
from pinchpoint.study.cost.estimate import estimate
from pinchpoint.study.cost.probe import seconds


class Asked:
    """A probe that says one second a stage, and remembers of what."""

    def __init__(self, answer: float | None = 1.0) -> None:
        self.stages: list = []
        self.answer = answer

    def __call__(self, stage) -> float | None:
        self.stages.append(stage)
        return self.answer


def kinds(asked: Asked) -> list[str]:
    return [stage.name for stage in asked.stages]


def test_nothing_is_left_of_a_finished_study(finished):
    left = estimate(finished.plan, finished.store, workers=2, probe=Asked())
    assert (left.seconds, left.wall, left.recorded, left.probed, left.unknown) == ({}, 0.0, 0, 0, 0)


def test_like_stages_are_asked_about_once_and_all_are_counted(tiny, tmp_path):
    asked = Asked()
    left = estimate(plan(tiny), Store(tmp_path), workers=2, probe=asked)
    # plain and lasso train differently, 0.01 and 0.1 alike; what looks at a model knows only its shape, two of them
    looks = ["profile", *(f"{kind} {norm}" for norm in ("linf", "l2") for kind in ("bound", "attack", "universal"))]
    looks += ["mechanism linf", "mechanism l2"]
    assert sorted(kinds(asked)) == sorted(["train"] * 3 + 2 * looks)
    assert left.seconds == {
        "train": 8, "profile": 8, "bound": 16, "attack": 16, "universal": 16, "mechanism": 16
    }  # fmt: skip
    assert (left.recorded, left.probed, left.unknown, left.workers, left.wall) == (0, 80, 0, 2, 40.0)


def test_no_more_workers_count_than_there_are_runs(tiny, tmp_path):
    assert estimate(plan(tiny), Store(tmp_path), workers=64, probe=Asked()).workers == 8


def test_a_changed_attack_is_estimated_from_the_attacks_that_are_there(finished, edited):
    more = parse(edited({"base/audit/steps": 14, "base/audit/samples": 60}))
    left = estimate(plan(more), finished.store)
    took = dict.fromkeys(("linf", "l2"), 0.0)
    for key, record in finished.records.items():
        if key[0] == "attack":
            took[record.result.norm] += record.seconds
    # twice the samples; 2 * 14 + 2 * 3 steps where there were 2 * 4 + 2 * 3, and without a curve 28 where there were 8
    assert left.seconds["attack"] == pytest.approx(2 * (took["linf"] * 34 / 14 + took["l2"] * 28 / 8), rel=0.3)
    assert "train" not in left.seconds
    assert left.unknown == 0


def test_epochs_scale_what_trainings_took(finished, edited):
    longer = parse(edited({"base/train/epochs": 20}))
    left = estimate(plan(longer), finished.store)
    took = sum(record.seconds for key, record in finished.records.items() if key[0] == "train")
    assert left.seconds["train"] == pytest.approx(10 * took)
    assert left.recorded == 80


def test_what_is_unlike_everything_is_unknown_without_a_probe(finished, edited):
    other = parse(edited({"base/model/hidden": [8]}))
    left = estimate(plan(other), finished.store)
    assert (left.recorded, left.unknown, left.seconds, left.reason) == (0, 80, {}, "no probe was made")
    asked = Asked()
    estimate(plan(other), finished.store, probe=asked)
    assert len(asked.stages) == 21


def test_a_probe_that_cannot_work_says_why(tiny, tmp_path):
    def broken(stage):
        raise ModelError("a network must fit into memory", "no memory", "make it smaller")

    left = estimate(plan(tiny), Store(tmp_path), probe=broken)
    assert (left.unknown, left.probed) == (80, 0)
    assert left.reason == "a network must fit into memory, but got no memory; make it smaller."
    assert estimate(plan(tiny), Store(tmp_path), probe=Asked(None)).unknown == 80


def test_once_time_is_up_the_mean_of_a_kind_has_to_do(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("pinchpoint.study.cost.estimate.PROBE_SECONDS", -1.0)
    asked = Asked()
    left = estimate(plan(tiny), Store(tmp_path), probe=asked)
    assert len(asked.stages) == len(set(kinds(asked))) == 10
    assert (left.probed, sum(left.seconds.values())) == (80, 80)


KINDS = {
    "base/audit/stages": ["attack", "query", "transferred", "mechanism", "pictures"],
    "base/audit/queries": 20,
    "base/surrogate": {},
    "base/transfer": {"data": {"name": "digits", "split_seed": 1}, "train": {"epochs": 2}},
    "base/compress": {"kind": "prune", "ratio": 0.3, "unit": "rows", "tune": {"train": {"epochs": 1}}},
    "base/audit/threats": [{"norm": "l1", "eps": 1.0}],
    "families": [{"name": "lasso", "view": "neuron", "grid": {"penalty.group_lasso": [0.01]}}],
    "seeds": [0],
}


def test_every_kind_of_stage_can_be_probed_and_nothing_is_drawn_or_kept(edited, tmp_path):
    import torch

    config = parse(edited(KINDS))
    planned, state, threads = plan(config), torch.random.get_rng_state(), torch.get_num_threads()
    found = {stage.kind: seconds(stage) for stage in planned.stages.values()}
    assert set(found) == {"train", "transfer", "compress", "profile", *KINDS["base/audit/stages"]}
    assert all(0 < took < 60 for took in found.values())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert list(tmp_path.iterdir()) == []


def test_a_large_network_is_not_tried_out_where_that_cannot_be_broken_off(edited):
    wide = parse(edited({"base/model/hidden": [2000, 2000], "base/audit/bound_seconds": 7, "seeds": [0]}))
    found = [(stage.kind, seconds(stage)) for stage in plan(wide).stages.values() if stage.kind in ("profile", "bound")]
    assert {took for kind, took in found if kind == "profile"} == {None}  # of low rank too: products are wide
    assert [took for kind, took in found if kind == "bound"] == [pytest.approx(14, abs=0.1)] * 8


@pytest.mark.slow
def test_a_probe_comes_near_to_what_a_study_takes(tiny, tmp_path):
    """The clock is that of the process, so that a busy machine says nothing."""
    import time

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "perf_counter", time.process_time)
        expected = sum(estimate(plan(tiny), Store(tmp_path / "none"), probe=seconds).seconds.values())
        store = Store(tmp_path / "store")
        run(tiny, store)
        took = sum(record.seconds for record in store.load(plan(tiny).stages).values())
    assert took / 2.5 < expected < 2.5 * took
