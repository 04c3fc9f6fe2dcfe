"""A study from beginning to end."""

from __future__ import annotations

import json
import shutil
import time

import polars
import pytest

from pinchpoint.errors import StoreError
from pinchpoint.records import STORE_SCHEMA, Summary
from pinchpoint.study import Status, Store, catalogue, gather, parse, plan, run, status
from pinchpoint.study.outputs.files import belongs_to

ALL = {"train": 8, "profile": 8, "bound": 16, "attack": 16, "universal": 16, "mechanism": 16}


def test_status_before_in_the_middle_and_after(tiny, finished, tmp_path):
    tasks = finished.plan.tasks
    labels = tuple(task.label for task in tasks)
    store = Store(tmp_path / "none")
    none = {kind: (0, of) for kind, of in ALL.items()}
    assert status(tiny, store) == Status(8, 0, none, labels, (), {})
    assert not store.root.exists()
    for task in tasks[:3]:
        for key in task.stages:
            store.add(key, lambda folder, key=key: finished.records[key])
    store.claim(tasks[4].model)
    now = status(tiny, store)
    assert (now.total, now.finished, now.waiting, now.failed) == (8, 3, labels[3:], ())
    assert now.stages == {kind: (3 * of // 8, of) for kind, of in ALL.items()}
    assert list(now.running) == ["-".join(tasks[4].model)]
    assert status(tiny, finished.store) == Status(8, 8, {kind: (of, of) for kind, of in ALL.items()}, (), (), {})


def test_finished_runs_are_not_run_again(tiny, finished):
    times = {path: path.stat().st_mtime_ns for path in finished.store.root.rglob("*")}
    began = time.process_time()
    assert run(tiny, finished.store, workers=4) == []
    assert time.process_time() - began < 0.5
    assert {path: path.stat().st_mtime_ns for path in finished.store.root.rglob("*")} == times


def test_gathering_writes_what_it_returns_and_is_repeatable(tiny, finished):
    path = finished.store.root / "summary.json"
    before = path.read_text()
    summary, runs = gather(tiny, finished.store)
    assert summary == finished.summary == Summary.model_validate_json(before)
    assert path.read_text() == before
    assert {one.id: one for one in runs} == finished.runs
    json.loads(before, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_summary_may_lie_elsewhere_than_its_store(tiny, finished, tmp_path):
    before = sorted(finished.store.root.rglob("*"))
    summary, _ = gather(tiny, finished.store, folder=tmp_path / "report")
    assert summary == finished.summary
    assert {path.name for path in (tmp_path / "report").iterdir()} == {"summary.json", "records.parquet"}
    assert sorted(finished.store.root.rglob("*")) == before


def test_the_summary_from_segments_is_that_from_loose_records(tiny, finished, tmp_path):
    store = Store(tmp_path)
    shutil.copytree(finished.store.root / "stages", tmp_path / "stages")
    store.compact(above=3)
    assert len(list((tmp_path / "segments").glob("*/*.parquet"))) == len(ALL)
    summary, runs = gather(tiny, store)
    assert summary == finished.summary
    assert {one.id: one for one in runs} == finished.runs


def test_gathering_from_an_empty_store_writes_nothing(tiny, tmp_path):
    store = Store(tmp_path / "none")
    with pytest.raises(StoreError, match="a report needs at least one finished run"):
        gather(tiny, store)
    assert not store.root.exists()


def test_gathering_stops_at_a_spoilt_record(tiny, finished, tmp_path):
    store = Store(tmp_path)
    task = finished.plan.tasks[0]
    for key in task.stages:
        store.add(key, lambda folder, key=key: finished.records[key])
    (store.folder(task.model) / "record.parquet").write_text("PAR1")
    with pytest.raises(StoreError, match="a stage's record must be readable"):
        gather(tiny, store)
    assert [path.name for path in tmp_path.iterdir()] == ["stages"]


def test_a_store_of_a_newer_version_is_refused_before_anything_is_done(tiny, finished, tmp_path):
    shutil.copytree(finished.store.root / "stages", tmp_path / "stages")
    store = Store(tmp_path)
    for path in sorted((tmp_path / "stages" / "attack").glob("*/record.parquet")):
        newer = polars.read_parquet(path).with_columns(polars.lit(STORE_SCHEMA + 1).alias("store_schema"), more=1)
        newer.write_parquet(path)
    store.remove(finished.plan.tasks[-1].stages[-1])
    before = sorted(tmp_path.rglob("*"))
    for use in (run, gather):
        with pytest.raises(StoreError) as caught:
            use(tiny, store)
        said = str(caught.value)
        assert said.startswith(
            f"records must have store schema {STORE_SCHEMA} or older, but got {STORE_SCHEMA + 1} in "
        )
        assert said.endswith("; update pinchpoint.")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.slow
def test_demo_takes_less_than_two_minutes(tmp_path):
    """On two cores, from nothing to the page; 45 models."""
    from pinchpoint.report.study.page import write
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


def test_a_folder_of_another_study_is_left_alone(tiny, finished, tmp_path):
    summary = tmp_path / "summary.json"
    summary.write_text('{"study": "other"}')
    with pytest.raises(StoreError) as caught:
        gather(tiny, finished.store, folder=tmp_path)
    assert str(caught.value) == (
        f"the folder {tmp_path} must be free or hold the study 'tiny', but got the study 'other'; "
        "choose another folder with --out."
    )
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert summary.read_text() == '{"study": "other"}'
    belongs_to(tmp_path, "other")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"study": null', b"\xff"], ids=repr)
def test_a_file_that_is_no_summary_is_written_over(tmp_path, content):
    (tmp_path / "summary.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    if content == "{}":
        with pytest.raises(StoreError, match="but got the study 'None'"):
            belongs_to(tmp_path, "tiny")
    else:
        belongs_to(tmp_path, "tiny")


def test_a_transferred_attack_needs_both_models(edited, tmp_path):
    """The surrogate is trained once, whatever families use it, and judged nowhere."""
    base = {"stages": ["attack", "transferred", "query"], "samples": 20, "steps": 2, "curve_steps": 2, "queries": 5}
    threats = [{"norm": "linf", "eps": 0.1}]
    config = parse(
        edited(
            {
                "seeds": [0],
                "base/audit": base | {"threats": threats},
                "base/surrogate": {"set": {"penalty.group_lasso": 0}, "seed_shift": 7},
                "families": [{"name": "one", "view": "neuron", "grid": {"penalty.group_lasso": [0, 0.1]}}],
            }
        )
    )
    planned, store = plan(config), Store(tmp_path)
    kinds = [key[0] for key in planned.stages]
    assert (kinds.count("train"), kinds.count("profile"), kinds.count("transferred")) == (3, 2, 2)
    assert run(config, store) == []
    summary, runs = gather(config, store)
    for row, one in zip(summary.models, runs, strict=True):
        record = store.load([key for key in planned.stages if key[0] == "transferred"])
        (carried,) = [r for r in record.values() if r.parents[0] == one.model]
        assert row["transferred_accuracy_linf"] == carried.result.robust_accuracy
        assert 0 <= row["query_accuracy_linf"] <= row["clean_accuracy"]
        assert carried.parents[1] not in {run.model for run in runs}
