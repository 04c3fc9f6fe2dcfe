"""``pinchpoint prune`` and ``pinchpoint factorize``: a checkpoint that loads, smaller; mistakes are one sentence."""

from __future__ import annotations

import json
import re

import pytest
import torch

from oracles.console import pinch
from pinchpoint.compress.prune import prune
from pinchpoint.models import ModelConfig, build
from pinchpoint.models.checkpoint import CheckpointConfig, load, save
from pinchpoint.models.sources.open_model import open_model
from pinchpoint.records import Compressed
from pinchpoint.train import TrainConfig, train


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, digits):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    config = ModelConfig(hidden=(48, 48))
    model = build(config, digits.input_shape, digits.classes)
    train(model, digits, TrainConfig(epochs=8, learning_rate=3e-3), seed=0)
    save(folder, model, CheckpointConfig(model=config, input_shape=(1, 8, 8), classes=10, data="digits"))
    return folder


@pytest.fixture(scope="module")
def fine_tuned(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("pruned") / "model"
    options = ("--ratio", 0.75, "--data", "digits", "--epochs", 3, "--steps", 2, "--penalty", "spread=0.1")
    return out, pinch("prune", checkpoint, *options, "--out", out, "--json")


def test_a_pruned_model_is_saved_smaller_and_fine_tuned(checkpoint, fine_tuned, digits):
    out, said = fine_tuned
    assert said.status == 0, said.err
    record = Compressed.model_validate_json(said.out)
    model = open_model(str(out)).model
    assert sum(parameter.numel() for parameter in model.parameters()) == record.parameters_after
    assert [layer.kept for layer in record.pruning.layers] == [model[1].out_features, model[3].out_features]
    assert sum(layer.kept for layer in record.pruning.layers) == 24
    with torch.no_grad():
        right = float((model(digits.x_test).argmax(1) == digits.y_test).double().mean())
    assert record.clean_after == pytest.approx(right)
    assert record.clean_cut < record.clean_after  # fine-tuning did something
    assert record.how["fine_tuning"]["penalty"]["spread"] == 0.1
    assert json.loads((out / "compression.json").read_text()) == json.loads(said.out)


def test_without_data_it_is_what_the_python_call_gives(checkpoint, tmp_path):
    out = tmp_path / "pruned"
    said = pinch("prune", checkpoint, "--ratio", 0.5, "--allocation", "uniform", "--out", out)
    assert said.status == 0
    assert "filters removed by uniform allocation: 50.0% of units (asked 50.0%)" in said.out
    assert "parameters" in said.out
    assert "clean accuracy" not in said.out
    expected = prune(load(checkpoint)[0], 0.5, input_shape=(1, 8, 8), allocation="uniform").model
    found = load(out)[0].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.state_dict().items())


def test_adversarial_fine_tuning(checkpoint, tmp_path):
    options = ("--ratio", 0.5, "--data", "digits", "--epochs", 1, "--limit-train", 200, "--threat", "linf:0.1")
    said = pinch("prune", checkpoint, *options, "--out", tmp_path / "pruned", "--json")
    assert json.loads(said.out)["how"]["fine_tuning"]["adversarial"]["eps"] == 0.1


def test_masks_leave_the_shapes(checkpoint, tmp_path):
    out = tmp_path / "masked"
    said = pinch("prune", checkpoint, "--ratio", 0.5, "--unit", "entries", "--out", out)
    assert "entries set to zero" in said.out
    before = 48 * 64 + 48 * 48 + 480
    assert re.search(rf"not set to zero +{before:,} +{before - before // 2:,}", said.out)
    model = load(out)[0]
    assert model[1].weight.shape == (48, 64)
    assert int((model[1].weight == 0).sum()) + int((model[3].weight == 0).sum()) >= (48 * 64 + 48 * 48) // 2 - 1


def test_a_factorised_model_is_saved_and_loads(checkpoint, tmp_path, digits):
    out = tmp_path / "low"
    said = pinch("factorize", checkpoint, "--rank", 8, "--data", "digits", "--epochs", 2, "--out", out)
    assert said.status == 0, said.err
    model, config = load(out)
    assert config.layout.ranks == {"1": 8, "3": 8}
    assert model[1].rank == 8
    assert f"{sum(p.numel() for p in model.parameters()):,}" in said.out
    assert "cut" in said.out
    again = pinch("profile", out)
    assert again.status == 0


@pytest.mark.parametrize(
    ("command", "options", "text"),
    [
        ("prune", ("--ratio", 1), "a pruning ratio lies in [0, 1), but got 1.0; "),
        ("prune", ("--ratio", 0.5, "--unit", "neurons"), "unit must be one of "),
        ("prune", ("--ratio", 0.5, "--allocation", "magic"), "allocation must be one of "),
        ("prune", ("--ratio", 0.5, "--keep", "layer9.*"), "keep must name layers of the model, but got layer9.*; "),
        ("prune", ("--ratio", 0.5, "--epochs", 2), "fine-tuning needs data, but got none; give --data, or --epochs 0."),
        (
            "prune",
            ("--ratio", 0.5, "--threat", "linf:0.1"),
            "a threat or penalty is for fine-tuning, but got --epochs 0; give --epochs, for example 3.",
        ),
        (
            "prune",
            ("--ratio", 0.5, "--data", "digits", "--epochs", 1, "--penalty", "spred=1"),
            "fine-tuning: every key must be known, but got penalty.spred; perhaps spread is meant.",
        ),
        ("factorize", (), "factorising needs one of rank, energy and residual, but got none; give exactly one."),
        (
            "factorize",
            ("--rank", 4, "--energy", 0.9),
            "factorising needs one of rank, energy and residual, but got rank and energy",
        ),
        (
            "factorize",
            ("--rank", 400),
            "factorising must change at least one layer, but got none ('1': rank 400 saves nothing",
        ),
        ("factorize", ("--rank", 4, "--layer", "conv*"), "every pattern of layers must match one, but got 'conv*'"),
    ],
)
def test_mistakes_are_one_sentence_and_nothing_is_written(checkpoint, tmp_path, command, options, text):
    out = tmp_path / "out"
    assert pinch(command, checkpoint, *options, "--out", out).error.startswith(text)
    assert not out.exists()


@pytest.fixture(scope="module")
def folder_of_images(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    numbers = torch.Generator().manual_seed(0)
    for name in ("cats", "dogs"):
        (root / name).mkdir()
        for number in range(8):
            pixels = torch.randint(0, 256, (12, 10 + number, 3), generator=numbers, dtype=torch.uint8)
            image.fromarray(pixels.numpy()).save(root / name / f"{number}.png")
    return f"imagefolder:{root}"


@pytest.fixture(scope="module")
def takes_images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "images"
    config = ModelConfig(hidden=(16, 16))
    about = CheckpointConfig(model=config, input_shape=(3, 8, 8), classes=2)
    save(folder, build(config, about.input_shape, about.classes), about)
    return folder


@pytest.mark.parametrize("command", [("prune", "--ratio", 0.5), ("factorize", "--rank", 4)])
def test_image_files_are_cut_to_the_size_asked_for(takes_images, folder_of_images, tmp_path, command):
    first, *options = command
    data = ("--data", folder_of_images, "--image-size", 8, "--epochs", 1)
    said = pinch(first, takes_images, *options, *data, "--out", tmp_path / "out", "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    assert record["samples"] == 4
    assert record["how"]["fine_tuning"]["data"]["image_size"] == 8
    text = "an image size is for data, but got no --data; give --data, or --input-size for the model."
    assert pinch(first, takes_images, *options, "--image-size", 8, "--out", tmp_path / "none").error == text


def test_an_attack_on_image_files_of_the_size_asked_for(takes_images, folder_of_images):
    options = ("--attack", "fgsm", "--curve", 0, "--no-checks")
    said = pinch("attack", takes_images, "--data", folder_of_images, "--image-size", 8, *options, "--json")
    assert said.status == 0, said.err
    assert json.loads(said.out)["samples"] == 4
    assert "3x9x9" in pinch("attack", takes_images, "--data", folder_of_images, "--image-size", 9, *options).error
    text = "data.image_size and data.resize are for imagefolder, imagenet, huggingface, but got digits; leave them out."
    assert pinch("attack", takes_images, "--data", "digits", "--image-size", 9).error == text


def test_an_interruption_leaves_nothing(checkpoint, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("pinchpoint.recipes.recipe.train", interrupted)
    options = ("--ratio", 0.5, "--data", "digits", "--epochs", 1)
    said = pinch("prune", checkpoint, *options, "--out", tmp_path / "pruned")
    assert said.status == 130
    assert said.err.endswith("Interrupted. Nothing is kept.\n")
    assert not (tmp_path / "pruned").exists()


def test_every_name_of_data_is_in_the_help():
    from pinchpoint.cli.options import DATA_NAMES
    from pinchpoint.data.config import FILE_KINDS, NPZ_NAMES

    names = ("digits", *NPZ_NAMES, "npz:PATH", *(f"{kind}:PATH" for kind in FILE_KINDS), "torchvision:NAME")
    assert all(name in DATA_NAMES for name in names)


def test_folders_made_for_a_model_go_with_the_mistake(checkpoint, tmp_path):
    said = pinch("prune", checkpoint, "--ratio", 2, "--out", tmp_path / "runs" / "new" / "pruned")
    assert said.error == "a pruning ratio lies in [0, 1), but got 2.0; 0.5 removes half of the units."
    assert not (tmp_path / "runs").exists()


def test_a_folder_in_use_is_left_alone(checkpoint, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    text = f"a new model goes into an empty folder, but got {tmp_path}; choose another with --out."
    assert pinch("prune", checkpoint, "--ratio", 0.5, "--out", tmp_path).error == text
