"""One run: checked before anything starts, kept whole, repeatable."""

from __future__ import annotations

import importlib
import json

import pytest
import torch
from safetensors import SafetensorError

from pinchpoint.errors import ConfigError, DataError, ModelError, StoreError
from pinchpoint.learn import DataConfig, build, load
from pinchpoint.learn.checkpoint import load as load_checkpoint
from pinchpoint.measure import profile
from pinchpoint.records import SCHEMA_VERSION
from pinchpoint.study import Store, parse, run
from pinchpoint.study.run import check, do
from pinchpoint.workshop import versions

MODULE = importlib.import_module("pinchpoint.study.run")  # the package has a function of that name

IMPOSSIBLE = [
    ({"base/data/name": "digit"}, DataError, "a data set must be known by name, but got digit; use digits, mnist"),
    ({"base/data/name": "mnist"}, ConfigError, "the data set 'mnist' is read from the folder that PINCHPOINT_DATA"),
    ({"base/data/name": "npz:/no/such.npz"}, DataError, "a data file must exist, but got /no/such.npz"),
    ({"base/data/test_share": 0.999}, DataError, "enough samples of each class for a stratified split"),
    ({"families/1/grid": {"model.rank": [2, 17]}}, ModelError, "the rank of a 16 x 64 layer lies in 1 ... 16, but got"),
    ({"base/model/hidden": [0]}, ModelError, "hidden widths must be one or more, but got (0,)"),
    ({"base/model/hidden": [10**13]}, ModelError, "a network must fit into memory, but got hidden (10000000000000,)"),
    ({"base/model/hidden": [10**30]}, ModelError, "a network must fit into memory, but got hidden (1000"),
    ({"base/device": "cuda:63"}, ConfigError, "the device must be there, but got cuda:63; use auto or cpu."),
]


@pytest.mark.parametrize(("changes", "kind", "expected"), IMPOSSIBLE, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_said_before_anything_is_written(edited, tmp_path, monkeypatch, changes, kind, expected):
    monkeypatch.delenv("PINCHPOINT_DATA", raising=False)
    root = tmp_path / "store"
    with pytest.raises(kind) as caught:
        run(parse(edited(changes)), Store(root))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not root.exists()


def test_check_takes_what_can_work(tiny):
    check(tiny.plan())


def test_record_holds_configuration_seed_versions_and_numbers(finished):
    data = load(DataConfig(name="digits"))
    for task in finished.config.plan():
        record = finished.runs[task.id]
        assert record.id == task.id
        assert record.seed == task.seed
        assert record.schema_version == SCHEMA_VERSION
        assert type(task.cell).model_validate(record.config) == task.cell
        assert record.versions["torch"] == torch.__version__
        assert record.versions == versions()
        assert record.machine.endswith(", cpu")
        assert record.audit.samples == 30
        model, about = load_checkpoint(finished.store.path(task.id))
        assert about.model == task.cell.model
        assert about.data == "digits"
        # the checkpoint is the network the record speaks of
        right = (model(data.x_test[:30]).argmax(1) == data.y_test[:30]).sum().item()
        assert record.audit.clean_accuracy == pytest.approx(right / 30, abs=1e-12)
        assert record.audit.profile == profile(model, k_share=0.1, target=0.1)


def test_rank_and_penalty_reach_the_network(finished):
    by_label = {(row["family"], row["level"]): row for row in finished.summary.models if row["seed"] == 0}
    assert by_label["rank", 1]["spectral"] == pytest.approx(1.0, abs=1e-12)
    assert by_label["rank", 0]["spectral"] < 0.5
    neuron = [by_label["lasso", level]["neuron"] for level in range(3)]
    assert neuron == sorted(neuron)
    assert neuron[2] > neuron[0] + 0.02


def test_constant_frobenius_keeps_the_norm_of_the_encoder(edited, tmp_path, numbers):
    config = parse(
        edited({"seeds": [5], "families/0/fixed": {"constant_frobenius": True}}).replace(
            "penalty.group_lasso", "penalty.nuclear_norm"
        )
    )
    task = config.plan()[1]
    record = do(task, Store(tmp_path))
    before = build(task.cell.model, (1, 8, 8), 10, seed=5)
    layer, head = record.audit.profile.layers
    assert layer.frobenius == pytest.approx(before[1].weight.double().norm().item(), rel=1e-5)
    assert head.frobenius != pytest.approx(before[3].weight.double().norm().item(), rel=1e-3)
    assert numbers(do(task, Store(tmp_path / "again")).model_dump()) == numbers(record.model_dump())


def test_finished_run_is_read_not_done(finished, monkeypatch):
    monkeypatch.setattr(MODULE, "_run", lambda *args: pytest.fail("done again"))
    task = finished.config.plan()[0]
    assert do(task, finished.store) == finished.runs[task.id]


def test_threads_are_put_back(edited, tmp_path):
    before = torch.get_num_threads()
    config = parse(edited({"base/threads": before + 1, "base/train/learning_rate": 1e30}))
    with pytest.raises(ModelError, match="must stay finite"):
        do(config.plan()[0], Store(tmp_path))
    assert torch.get_num_threads() == before


def test_full_disk_while_the_weights_are_written_is_one_sentence(tiny, tmp_path, monkeypatch):
    def full(*args: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(MODULE, "save", full)
    with pytest.raises(StoreError, match=r"must be writable, but got I/O error: No space left on device"):
        do(tiny.plan()[0], Store(tmp_path))
    assert [path for path in tmp_path.rglob("*") if path.name != "runs"] == []


def test_record_is_plain_json(finished):
    text = (finished.store.path(finished.config.plan()[0].id) / "record.json").read_text()
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
