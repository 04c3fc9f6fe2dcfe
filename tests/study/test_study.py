"""A study from beginning to end."""

from __future__ import annotations

import json
import time

import pytest

from pinchpoint.errors import StoreError
from pinchpoint.records import Summary
from pinchpoint.study import Status, Store, catalogue, gather, run, status


def test_status_before_in_the_middle_and_after(tiny, finished, tmp_path):
    tasks = tiny.plan()
    labels = tuple(task.label for task in tasks)
    store = Store(tmp_path / "none")
    assert status(tiny, store) == Status(8, 0, labels)
    assert not store.root.exists()
    for task in tasks[:3]:
        store.add(task.id, lambda folder, task=task: finished.runs[task.id])
    assert status(tiny, store) == Status(8, 3, labels[3:])
    assert status(tiny, finished.store) == Status(8, 8, ())


def test_finished_runs_are_not_run_again(tiny, finished):
    times = {path: path.stat().st_mtime_ns for path in finished.store.root.rglob("*")}
    began = time.perf_counter()
    assert run(tiny, finished.store, workers=4) == []
    assert time.perf_counter() - began < 0.5
    assert {path: path.stat().st_mtime_ns for path in finished.store.root.rglob("*")} == times


def test_gathering_writes_what_it_returns_and_is_repeatable(tiny, finished):
    path = finished.store.root / "summary.json"
    before = path.read_text()
    summary, runs = gather(tiny, finished.store)
    assert summary == finished.summary == Summary.model_validate_json(before)
    assert path.read_text() == before
    assert {one.id: one for one in runs} == finished.runs
    json.loads(before, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_gathering_from_an_empty_store_writes_nothing(tiny, tmp_path):
    store = Store(tmp_path / "none")
    with pytest.raises(StoreError, match="a report needs at least one finished run"):
        gather(tiny, store)
    assert not store.root.exists()


def test_gathering_stops_at_a_spoilt_record(tiny, finished, tmp_path):
    store = Store(tmp_path)
    task = tiny.plan()[0]
    store.add(task.id, lambda folder: finished.runs[task.id])
    (store.path(task.id) / "record.json").write_text('{"id": ')
    with pytest.raises(StoreError, match="a run's record must be readable"):
        gather(tiny, store)
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


@pytest.mark.slow
def test_demo_takes_less_than_two_minutes(tmp_path):
    """On two cores, from nothing to the page; 45 models."""
    from pinchpoint.report.page import write
    from pinchpoint.study import default_workers

    demo, store = catalogue("demo"), Store(tmp_path)
    began = time.perf_counter()
    assert run(demo, store, workers=min(2, default_workers())) == []
    summary, runs = gather(demo, store)
    page = write(summary, runs, tmp_path / "report.html")
    assert time.perf_counter() - began < 120
    assert page.stat().st_size > 100_000
    assert (tmp_path / "summary.json").is_file()
    assert len(summary.models) == 45
    assert not any("DEFECT" in note or "Failed" in note for note in summary.notes)
    for family in summary.families:
        plain = family.levels[0].mean
        assert plain["clean_accuracy"] > 0.95
        for norm in ("linf", "l2"):
            assert 0.35 < plain[f"robust_over_clean_{norm}"] < 0.65, "the plain model keeps about half its accuracy"
        compressibility = [level.mean["compressibility"] for level in family.levels]
        assert compressibility == sorted(compressibility)


def test_a_folder_of_another_study_is_left_alone(tiny, tmp_path):
    summary = tmp_path / "summary.json"
    summary.write_text('{"study": "other"}')
    with pytest.raises(StoreError) as caught:
        run(tiny, Store(tmp_path))
    assert str(caught.value) == (
        f"the folder {tmp_path} must be free or hold the study 'tiny', but got the study 'other'; "
        "choose another folder with --out."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert summary.read_text() == '{"study": "other"}'
