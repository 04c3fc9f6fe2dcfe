"""A plan has every run and every stage once, in order."""

from __future__ import annotations

import time

import pytest

from pinchpoint.errors import ConfigError
from pinchpoint.study import parse, plan
from pinchpoint.study.graph import stages


def test_plan_runs_a_model_once_that_fills_two_places(finished):
    tasks = finished.plan.tasks
    assert len(tasks) == 8
    assert len({task.id for task in tasks}) == 8
    places = {task.seed: task.members for task in tasks if len(task.members) > 1}
    assert sorted(places) == [0, 1]
    for seed, members in places.items():
        assert [(member.family, member.level, member.seed) for member in members] == [
            ("lasso", 0, seed),
            ("rank", 0, seed),
        ]
        assert len({member.run for member in members}) == 1
    assert [task.seed for task in tasks] == [0] * 4 + [1] * 4
    assert tasks[0].label == "lasso: group_lasso 0, seed 0"
    assert len(finished.plan.stages) == 80


def test_stages_that_runs_share_stand_once_and_before_what_needs_them(edited):
    family = {"name": "steps", "view": "neuron", "grid": {"audit.steps": [1, 2], "audit.bound_steps": [1, 2]}}
    planned = plan(parse(edited({"families": [family], "seeds": [4]})))
    kinds = [key[0] for key in planned.stages]
    assert len(planned.tasks) == 4
    counts = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert counts == {"train": 1, "profile": 1, "bound": 4, "attack": 4, "universal": 2, "mechanism": 4}
    seen: set = set()
    for key, stage in planned.stages.items():
        assert set(stage.parents) <= seen
        seen.add(key)
    for task in planned.tasks:
        assert set(task.stages) <= seen
        assert len(task.stages) == 10


def test_own_stages_are_those_without_the_surrogate_s(edited):
    base = {
        "base/surrogate": {"set": {"penalty.l1": 1}},
        "base/audit/stages": ["attack", "transferred"],
        "base/compress": {"kind": "rescale", "factor": 2.0},
        "seeds": [4],
    }
    for task in plan(parse(edited(base))).tasks:
        assert [key[0] for key in task.stages[:4]] == ["train", "compress"] * 2
        assert [key[0] for key in task.own[:3]] == ["train", "compress", "profile"]
        assert task.own == (*task.stages[:2], *task.stages[4:])
        assert task.model == task.stages[1]
        assert len(task.own) == 7


def test_waiting_is_what_lacks_a_stage(finished):
    planned, tasks = finished.plan, finished.plan.tasks
    assert planned.waiting(set()) == tasks
    assert planned.waiting(set(planned.stages)) == []
    assert planned.waiting(set(planned.stages) - {tasks[3].stages[-1]}) == [tasks[3]]


def test_one_id_for_two_configurations_is_one_sentence(tiny, monkeypatch):
    sha = stages._sha
    monkeypatch.setattr(stages, "_sha", lambda content: b"\0" * 8 + sha(content)[8:])
    with pytest.raises(ConfigError) as caught:
        plan(tiny)
    assert str(caught.value) == (
        "the id of a stage must belong to one configuration, but got bound 0000000000000000 for two; change any value of "
        "one of them, for example its seed."
    )


def test_ten_thousand_cells_are_planned_in_no_time(edited):
    """A tenth of what the benchmark plans; here only that nothing grows faster than the cells."""
    grid = {"penalty.l1": [number / 1000 for number in range(100)], "penalty.group_lasso": list(range(10))}
    times = []
    for seeds in ([0], list(range(5))):
        began = time.process_time()
        planned = plan(parse(edited({"seeds": seeds, "families": [{"name": "f", "view": "neuron", "grid": grid}]})))
        times.append(time.process_time() - began)
        assert len(planned.tasks) == 1000 * len(seeds)
    assert times[1] < 5 * times[0] + 1.0
