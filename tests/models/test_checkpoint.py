"""Checkpoints: back as they were written, or one sentence saying why not. Nothing is unpickled."""

from __future__ import annotations

import json
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from pinchpoint.compress.factorize import factorize
from pinchpoint.compress.prune import prune
from pinchpoint.errors import CheckpointError, ModelError
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.checkpoint import CheckpointConfig, load, save

CONFIG = CheckpointConfig(
    model=ModelConfig(hidden=(6, 5), rank=2, bias=True, mean=(0.3,), std=(0.5,)),
    input_shape=(1, 4, 4),
    classes=3,
    data="ziffern-é",
)


@pytest.fixture
def saved(tmp_path):
    model = build(CONFIG.model, CONFIG.input_shape, CONFIG.classes, seed=4)
    save(tmp_path / "deep" / "net", model, CONFIG)
    return tmp_path / "deep" / "net"


def edit(directory, **changes):
    """The config with some entries replaced; None removes one."""
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    for name, value in changes.items():
        config[name] = value
        if value is None:
            del config[name]
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")


def tensors(directory, **changes):
    """The tensors with some replaced; None removes one."""
    found = load_file(directory / "model.safetensors")
    for name, value in changes.items():
        found[name.replace("_", ".")] = value
        if value is None:
            del found[name.replace("_", ".")]
    save_file(found, directory / "model.safetensors")


@pytest.mark.parametrize("by_file", [False, True])
def test_round_trip(saved, by_file):
    model, config = load(saved / "model.safetensors" if by_file else saved)
    original = build(CONFIG.model, CONFIG.input_shape, CONFIG.classes, seed=4).state_dict()
    assert config == CONFIG
    assert not model.training
    assert list(model.state_dict()) == list(original)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, original[name])
        assert tensor.dtype == original[name].dtype
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(model(x), build(CONFIG.model, CONFIG.input_shape, CONFIG.classes, seed=4)(x))


def test_only_the_two_files_are_left(saved):
    assert sorted(path.name for path in saved.iterdir()) == ["config.json", "model.safetensors"]


def test_saving_again_replaces(saved):
    save(saved, build(CONFIG.model, CONFIG.input_shape, CONFIG.classes, seed=5), CONFIG)
    first = next(load(saved)[0].parameters())
    assert torch.equal(first, next(build(CONFIG.model, CONFIG.input_shape, CONFIG.classes, seed=5).parameters()))


def test_loading_leaves_the_global_rng_alone(saved):
    rng = torch.random.get_rng_state()
    load(saved)
    assert torch.equal(torch.random.get_rng_state(), rng)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file(saved, name):
    (saved / name).unlink()
    with pytest.raises(
        CheckpointError,
        match=rf"a checkpoint is a directory with model.safetensors and config.json, but got no {name} in .*net; give",
    ):
        load(saved)


def test_a_missing_directory_and_another_safetensors_file(saved):
    with pytest.raises(CheckpointError, match=r"but got no config.json in .*nowhere"):
        load(saved / "nowhere")
    (saved / "other.safetensors").write_bytes((saved / "model.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match=r"but got no config.json in .*other.safetensors"):
        load(saved / "other.safetensors")  # not silently the model beside it


@pytest.mark.parametrize("keep", [0, 4, 8, 60, -1])
def test_truncated_tensors(saved, keep):
    whole = (saved / "model.safetensors").read_bytes()
    (saved / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(
        CheckpointError, match=r"model.safetensors must be a whole safetensors file, but got .+; copy or"
    ):
        load(saved)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("", "the file: Invalid JSON"),
        ('{"model": ', "the file: Invalid JSON"),
        ("[]", "the file: Input should be an object"),
        ("{}", "model: Field required"),
    ],
)
def test_a_config_that_is_none(saved, text, seen):
    (saved / "config.json").write_text(text)
    with pytest.raises(
        CheckpointError, match=rf"config.json must describe a model, but got {seen}.*; restore the file"
    ):
        load(saved)


def test_a_config_that_is_not_text(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match=r"config.json must describe a model, but got the file: Invalid JSON"):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"classes": None}, "classes: Field required"),
        ({"classes": 1}, "classes: Input should be greater than or equal to 2"),
        ({"input_shape": [1, -4, 4]}, "input_shape.1: Input should be greater than or equal to 1"),
        ({"format": 2}, "format: Input should be 1"),
        ({"model": {"name": "resnet18"}}, "model: Input should be fcn"),
        ({"model": {"hidden": [6, 5], "width": 3}}, "model.width: Extra inputs are not permitted"),
        ({"model": {"hidden": [6, 0]}}, r"hidden widths must be one or more, but got \(6, 0\)"),
        ({"model": {"hidden": [6], "rank": 7}}, "the rank of a 6 x 16 layer lies in"),
        ({"model": {"hidden": [10**18]}}, "a fully connected network may have at most 10,000,000,000 weights"),
        ({"model": {"hidden": [10**30]}}, "."),
    ],
)
def test_a_config_that_describes_no_model(saved, changes, seen):
    edit(saved, **changes)
    with pytest.raises(CheckpointError, match=f"config.json must describe a model, but got {seen}"):
        load(saved)


def test_a_config_of_another_model_allocates_nothing(saved):
    edit(saved, model={"hidden": [5 * 10**8]})  # 38 GB of weights
    with pytest.raises(
        CheckpointError, match=r"which asks for 0.mean nowhere, but got 0.mean \(1, 1, 1\) float32; put the"
    ):
        load(saved)


@pytest.mark.parametrize(
    ("changes", "wanted", "seen"),
    [
        ({"4_a": torch.zeros(6, 3)}, r"4.a \(5, 2\) float32", r"4.a \(6, 3\) float32"),
        ({"4_a": None}, r"4.a \(5, 2\) float32", "4.a missing"),
        ({"9_weight": torch.zeros(2)}, "9.weight nowhere", r"9.weight \(2,\) float32"),
        ({"4_a": torch.zeros(5, 2, dtype=torch.float64)}, r"4.a \(5, 2\) float32", r"4.a \(5, 2\) float64"),
        ({"4_a": torch.zeros(5, 2, dtype=torch.int32)}, r"4.a \(5, 2\) float32", r"4.a \(5, 2\) int32"),
    ],
)
def test_tensors_that_do_not_fit(saved, changes, wanted, seen):
    tensors(saved, **changes)
    with pytest.raises(
        CheckpointError,
        match=f"the tensors in .*net must fit its config, which asks for {wanted}, but got {seen}; put the config beside",
    ):
        load(saved)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_in_disguise_is_refused_and_not_run(saved, how, trap, trapped):
    path = saved / "model.safetensors"
    if how == "pickle":
        path.write_bytes(pickle.dumps({"1.weight": trapped}))
    else:
        torch.save({"1.weight": trapped}, path)
    with pytest.raises(CheckpointError, match=r"model.safetensors must be a whole safetensors file"):
        load(saved)
    assert not trap()


def test_an_interrupted_save_leaves_nothing_half_written(tmp_path, monkeypatch):
    model = build(CONFIG.model, CONFIG.input_shape, CONFIG.classes)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr("pinchpoint.models.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save(tmp_path / "net", model, CONFIG)
    assert list((tmp_path / "net").iterdir()) == []


RESNET = CheckpointConfig(model={"name": "cifar_resnet", "depth": 8, "width": 4}, input_shape=(3, 8, 8), classes=5)


@pytest.fixture
def pruned(tmp_path):
    """A pruned and then factorised network, and where it was saved."""
    model = build(RESNET.model, RESNET.input_shape, RESNET.classes).eval()
    model = factorize(prune(model, 0.4, input_shape=RESNET.input_shape).model, rank=1)
    save(tmp_path / "net", model, RESNET)
    return model, tmp_path / "net"


def test_a_pruned_and_factorised_network_comes_back(pruned):
    model, directory = pruned
    found, config = load(directory)
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(found(x), model(x))
    assert config.layout.ranks
    assert config.layout.shapes
    assert config.layout.selections
    save(directory, found, RESNET)  # whatever layout the config has, the model's is written
    assert load(directory)[1] == config


def test_a_pruned_transformer_of_a_library_comes_back(tmp_path):
    config = CheckpointConfig(model={"name": "timm:test_vit"}, input_shape=(3, 32, 32), classes=3)
    model = build(config.model, config.input_shape, config.classes).eval()
    model = prune(model, 0.5, input_shape=config.input_shape, unit="heads").model
    save(tmp_path, model, config)
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(load(tmp_path)[0](x), model(x))


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"shapes": {"linear.bias": [10**15]}}, r"a layout's linear.bias \(1000000000000000,\) must be part of"),
        (
            {"shapes": {"conv9.weight": [1]}},
            r"a layout's conv9.weight \(1,\) must be part of .* no tensor of that name",
        ),
        ({"shapes": {"linear.bias": [0]}}, "layout.shapes.linear.bias.0: Input should be greater than or equal to 1"),
        ({"shapes": {"conv1.weight": [1, 3, 3, 3]}}, "the sizes of a layout must fit each other, but got"),
        ({"ranks": {"linear": 6}}, "layer 'linear': the rank of a 5 x 16 layer lies in 1 ... 5, but got 6"),
        ({"ranks": {"pool": 1}}, "ranks must name layers that can be factorised, but got 'pool'"),
        (
            {"selections": {"layer2.0.shortcut": {"inputs": 4, "source": [0, 0]}}},
            "layout.selections.*each at most once",
        ),
        (
            {"selections": {"layer2.0.shortcut": {"inputs": 4, "source": [9]}}},
            "layout.selections.*copy channels 0 ... 3",
        ),
        ({"selections": {"pool": {"inputs": 4, "source": [0]}}}, "a layout's pool must select channels"),
        ({"surprise": 1}, "layout.surprise: Extra inputs are not permitted"),
    ],
)
def test_a_layout_that_fits_no_network(tmp_path, change, seen):
    save(tmp_path, build(RESNET.model, RESNET.input_shape, RESNET.classes), RESNET)
    edit(tmp_path, layout=change)
    with pytest.raises(CheckpointError, match=f"config.json must describe a model, but got {seen}"):
        load(tmp_path)


def test_another_networks_layout(pruned):
    edit(pruned[1], layout={})
    with pytest.raises(CheckpointError, match="must fit its config, which asks for"):
        load(pruned[1])


def test_a_small_part_of_a_huge_architecture_allocates_nothing(saved):
    small = {"1.weight": [6, 16], "1.bias": [6], "3.weight": [3, 6]}
    edit(saved, model={"hidden": [5 * 10**8], "bias": True}, layout={"shapes": small})
    save_file(
        {
            "1.weight": torch.zeros(6, 16),
            "1.bias": torch.zeros(6),
            "3.weight": torch.zeros(3, 6),
            "3.bias": torch.zeros(3),
        },
        saved / "model.safetensors",
    )
    with pytest.raises(
        CheckpointError, match="a layout must keep at least 1/64 of a large network, which is built whole"
    ):
        load(saved)


def test_a_network_of_another_architecture_is_not_saved(tmp_path):
    with pytest.raises(ModelError, match="a network must be its architecture or a smaller part of it, but got"):
        save(tmp_path, torch.nn.Sequential(torch.nn.Linear(3, 2)), RESNET)
    assert list(tmp_path.iterdir()) == []
