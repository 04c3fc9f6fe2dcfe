"""One run: checked before anything starts, every stage kept whole, repeatable."""

from __future__ import annotations

import pytest
import torch
from safetensors import SafetensorError

from pinchpoint.data import DataConfig, load
from pinchpoint.errors import ConfigError, DataError, ModelError, StoreError
from pinchpoint.measure import profile
from pinchpoint.models import build
from pinchpoint.models.checkpoint import load as load_checkpoint
from pinchpoint.records import SCHEMA_VERSION, STORE_SCHEMA
from pinchpoint.study import Here, Plan, Store, StudyConfig, finished_runs, parse, plan, run
from pinchpoint.study.engines.driver import drive
from pinchpoint.study.stages import models
from pinchpoint.study.stages.run import check, perform
from pinchpoint.utils.provenance import versions

IMPOSSIBLE = [
    ({"base/data/name": "digit"}, DataError, "a data set must be known by name, but got digit; use digits, mnist"),
    ({"base/data/name": "mnist"}, ConfigError, "the data set 'mnist' is read from the folder that PINCHPOINT_DATA"),
    ({"base/data/name": "npz:/no/such.npz"}, DataError, "a data file must exist, but got /no/such.npz"),
    (
        {"base/data/test_share": 0.999},
        DataError,
        "each class must have two training samples or more, and",
    ),
    ({"base/transfer": {"data": {"name": "digit"}}}, DataError, "a data set must be known by name, but got digit; use"),
    ({"families/1/grid": {"model.rank": [2, 17]}}, ModelError, "the rank of a 16 x 64 layer lies in 1 ... 16, but got"),
    ({"base/model/hidden": [0]}, ModelError, "hidden widths must be one or more, but got (0,)"),
    (
        {"base/model/hidden": [10**13]},
        ModelError,
        "at most 10,000,000,000 weights, but got 740,000,000,000,000 with",
    ),
    ({"base/model/hidden": [10**30]}, ModelError, "may have at most 10,000,000,000 weights, but got 74,000"),
    ({"base/device": "cuda:63"}, ConfigError, "the device must be there, but got cuda:63; use auto or cpu."),
]


def one(edited, **base: object) -> tuple[StudyConfig, Plan]:
    """A study of a single run, judged as little as possible."""
    audit = {"samples": 8, "stages": [], "threats": [{"norm": "linf", "eps": 0.1}]}
    changes = {f"base/{key}": value for key, value in {"audit": audit, **base}.items()}
    config = parse(
        edited({"seeds": [5], "families": [{"name": "one", "view": "neuron", "grid": {"threads": [1]}}]} | changes)
    )
    return config, plan(config)


@pytest.mark.parametrize(("changes", "kind", "expected"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_said_before_anything_is_written(edited, tmp_path, monkeypatch, changes, kind, expected):
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    root = tmp_path / "store"
    with pytest.raises(kind) as caught:
        run(parse(edited(changes)), Store(root))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_check_takes_what_can_work(finished):
    check(task.cell for task in finished.plan.tasks)


def test_record_holds_configuration_seed_versions_and_numbers(finished):
    data = load(DataConfig(name="digits"))
    for task in finished.plan.tasks:
        record = finished.runs[task.id]
        assert record.id == task.id
        assert record.seed == task.seed
        assert record.schema_version == SCHEMA_VERSION
        assert type(task.cell).model_validate(record.config) == task.cell
        assert record.versions["torch"] == torch.__version__
        assert record.versions == versions()
        assert record.machine.endswith(", cpu")
        assert record.audit.samples == 30
        assert record.model == "/".join(task.model)
        model, about = load_checkpoint(finished.store.folder(task.model))
        assert about.model == task.cell.model
        assert about.data == "digits"
        # the checkpoint is the network the record speaks of
        right = (model(data.x_test[:30]).argmax(1) == data.y_test[:30]).sum().item()
        assert record.audit.clean_accuracy == pytest.approx(right / 30, abs=1e-12)
        assert record.audit.profile == profile(model, k_share=0.1, target=0.1)
        assert record.audit.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_every_stage_says_what_it_depended_on(finished):
    for key, stage in finished.plan.stages.items():
        record = finished.records[key]
        assert (record.id, record.digest, record.kind, record.seed) == (stage.id, stage.digest, stage.kind, stage.seed)
        assert record.parents == ["/".join(parent) for parent in stage.parents]
        assert record.config == stage.config()
        assert (record.status, record.reason, record.store_schema) == ("done", None, STORE_SCHEMA)
        assert record.versions == versions()
        assert record.seconds > 0


def test_rank_and_penalty_reach_the_network(finished):
    by_label = {(row["family"], row["level"]): row for row in finished.summary.models if row["seed"] == 0}
    assert by_label["rank", 1]["spectral"] == pytest.approx(1.0, abs=1e-12)
    assert by_label["rank", 0]["spectral"] < 0.5
    neuron = [by_label["lasso", level]["neuron"] for level in range(3)]
    assert neuron == sorted(neuron)
    assert neuron[2] > neuron[0] + 0.02


def test_constant_frobenius_keeps_the_norm_of_the_encoder(edited, tmp_path, numbers):
    config, planned = one(edited, constant_frobenius=True, penalty={"nuclear_norm": 0.01})
    (task,) = planned.tasks
    found = []
    for name in ("once", "again"):
        assert run(config, Store(tmp_path / name)) == []
        found.append(finished_runs(planned, Store(tmp_path / name))[task.id])
    before = build(task.cell.model, (1, 8, 8), 10, seed=5)
    layer, head = found[0].audit.profile.layers
    assert layer.frobenius == pytest.approx(before[1].weight.double().norm().item(), rel=1e-5)
    assert head.frobenius != pytest.approx(before[3].weight.double().norm().item(), rel=1e-3)
    assert numbers(found[0].model_dump()) == numbers(found[1].model_dump())


def test_finished_stage_is_not_done_again(finished, monkeypatch):
    monkeypatch.setattr(models, "train", lambda *args: pytest.fail("done again"))
    stage = finished.plan.stages[finished.plan.tasks[0].model]
    before = {path: path.stat().st_mtime_ns for path in finished.store.folder(stage.key).iterdir()}
    assert perform(stage, finished.store) is None
    assert {path: path.stat().st_mtime_ns for path in finished.store.folder(stage.key).iterdir()} == before


def test_threads_are_put_back(edited, tmp_path):
    before = torch.get_num_threads()
    for rate, reason in ((1e-2, None), (1e30, "the loss must stay finite")):
        _, planned = one(edited, threads=before + 1, train={"epochs": 1, "learning_rate": rate})
        said = perform(planned.stages[planned.tasks[0].model], Store(tmp_path))
        assert said == reason or said.startswith(reason)
        assert torch.get_num_threads() == before


def test_the_global_random_numbers_are_left_as_they_were(edited, tmp_path):
    config, _ = one(edited, compress={"kind": "prune", "ratio": 0.5, "tune": {"train": {"epochs": 1}}})
    before = torch.random.get_rng_state()
    assert run(config, Store(tmp_path)) == []
    assert torch.equal(torch.random.get_rng_state(), before)


def test_full_disk_while_the_weights_are_written_is_one_sentence(tiny, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(models, "save", full)
    planned = plan(tiny)
    with pytest.raises(StoreError, match=r"must be writable, but got I/O error: No space left on device"):
        drive(planned.stages, Store(tmp_path), Here(), perform)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_model_that_was_made_smaller_and_transferred_is_the_one_judged(edited, tmp_path):
    """And those before it stay as they were, also where one process has them at hand."""
    base = {
        "transfer": {"data": {"name": "digits", "split_seed": 1}, "mode": "full", "train": {"epochs": 1}},
        "compress": {"kind": "prune", "ratio": 0.5, "tune": {"train": {"epochs": 1}}},
    }
    config, planned = one(edited, **base)
    plain, first = one(edited)
    (task,), (before,) = planned.tasks, first.tasks
    store = Store(tmp_path)
    assert run(config, store) == []
    weights = (store.folder(before.model) / "model.safetensors").read_bytes()
    assert run(plain, store) == []
    judged = finished_runs(planned, store)[task.id]
    assert [key[0] for key in task.stages] == ["train", "transfer", "compress", "profile"]
    assert task.model[0] == "compress"
    assert judged.model == "/".join(task.model)
    pruned, _ = load_checkpoint(store.folder(task.model))
    assert judged.audit.profile == profile(pruned)
    assert judged.compressed.parameters_after < judged.compressed.parameters_before == 64 * 16 + 16 * 10
    assert judged.compressed.source == "/".join(task.stages[1])
    assert judged.transferred.epochs == 1
    assert finished_runs(first, store)[before.id].audit.profile == profile(
        load_checkpoint(store.folder(before.model))[0]
    )
    assert (store.folder(before.model) / "model.safetensors").read_bytes() == weights


def test_a_stage_that_does_not_fit_into_memory_is_told_and_not_kept(edited, tmp_path, monkeypatch):
    def large(*args: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 TiB.\nmore lines")

    monkeypatch.setattr(models, "train", large)
    config, planned = one(edited)
    (failure,) = run(config, Store(tmp_path))
    assert failure.reason == (
        "a stage must fit into memory, but got train (CUDA out of memory. Tried to allocate 2 TiB.); "
        "make the model or audit.samples smaller."
    )
    assert Store(tmp_path).failures() == set()
    monkeypatch.undo()
    assert run(config, Store(tmp_path)) == []
    assert Store(tmp_path).finished() == set(planned.stages)


def test_id_of_two_configurations_is_one_sentence(finished, tmp_path):
    """Where a store holds another configuration under an id, neither is given out for the other."""
    store, (task, *_) = Store(tmp_path), finished.plan.tasks
    strange = finished.records[task.model].model_copy(update={"digest": task.model[1] + "0" * 48})
    store.add(task.model, lambda folder: strange)
    for key in task.stages[1:]:
        store.add(key, lambda folder, key=key: finished.records[key])
    with pytest.raises(StoreError) as caught:
        finished_runs(finished.plan, store)
    assert str(caught.value) == (
        f"the id of a stage must belong to one configuration, but got train {task.model[1]} of two; change any value of "
        "one of them, for example its seed, or choose another folder with --out."
    )
