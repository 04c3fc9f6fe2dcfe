"""``pinchpoint train``: a recipe becomes a checkpoint; mistakes are one sentence; what was killed goes on."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from oracles.console import pinch
from pinchpoint.data import load
from pinchpoint.errors import ConfigError
from pinchpoint.models import build
from pinchpoint.models.checkpoint import load as load_checkpoint
from pinchpoint.models.sources.open_model import open_model, with_known_normalisation
from pinchpoint.recipes.recipe import Recipe, read_recipe
from pinchpoint.train import train

RECIPE = {
    "data": {"name": "digits", "limit_train": 300},
    "model": {"hidden": [16, 16]},
    "penalty": {"group_lasso": 1.0e-3},
    "train": {"epochs": 4, "learning_rate": 0.01, "schedule": "cosine"},
    "device": "cpu",
}


@pytest.fixture
def recipe(tmp_path):
    def write(**changes):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(RECIPE | changes))
        return path

    return write


def test_the_checkpoint_is_what_training_in_python_gives(recipe, tmp_path):
    out = tmp_path / "model"
    said = pinch("train", recipe(), "--seed", 3, "--out", out, "--json")
    assert said.status == 0, said.err
    record = json.loads(said.out)
    wanted = Recipe.model_validate(RECIPE)
    data = load(wanted.data)
    model = build(wanted.model, data.input_shape, data.classes, seed=3)
    result = train(model, data, wanted.train, seed=3, penalty=wanted.penalty.build())
    found, config = load_checkpoint(out)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in found.state_dict().items())
    assert (config.data, config.classes, config.input_shape) == ("digits", 10, (1, 8, 8))
    assert record["validation_loss"] == result.validation_loss
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors", "training.json"]
    kept = json.loads((out / "training.json").read_text())
    assert kept["recipe"]["train"]["epochs"] == 4
    assert len(kept["training"]["history"]) == 4


def test_a_second_call_trains_nothing_and_another_recipe_is_refused(recipe, tmp_path):
    out = tmp_path / "model"
    assert pinch("train", recipe(), "--out", out).out.startswith("trained: 4 epochs")
    before = (out / "model.safetensors").stat().st_mtime_ns
    assert pinch("train", recipe(), "--out", out).out.startswith("already trained: 4 epochs")
    assert (out / "model.safetensors").stat().st_mtime_ns == before
    for other in (("train.epochs=5",), ("--seed", 1)):
        text = (
            f"{out} must be new or hold this recipe's model, but got another recipe or seed; choose another with --out."
        )
        assert pinch("train", recipe(), *other, "--out", out).error == text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("train.epoch=3",), "recipe.yaml: every key must be known, but got train.epoch; perhaps epochs is meant."),
        (("model.hiden=[3]",), "recipe.yaml: every key must be known, but got model.hiden; perhaps hidden is meant."),
        (
            ("model.name=cifar_resnet", "model.dept=20"),
            "recipe.yaml: every key must be known, but got model.dept; perhaps depth is meant.",
        ),
        (
            ("model={bias:true}",),
            "recipe.yaml: every key must be known, but got model.bias:true; put a space after the colon, bias: true.",
        ),
        (("epochs",), "an override is written key=value, but got epochs; write for example train.epochs=5."),
        (("train.epochs=[",), "the value of train.epochs must be YAML, but got [; put it in quotes."),
        (
            ("train.epochs=0",),
            "recipe.yaml: train.epochs: Input should be greater than or equal to 1, but got 0; use at least 1.",
        ),
        (
            ("train.trades_beta=6",),
            "recipe.yaml: train.trades_beta needs an adversary, but got none; add adversarial: {eps: 0.03}.",
        ),
        (
            ("penalty.layers=[conv*]",),
            "GroupLasso's layers must match at least one layer, but got conv*; choose among 1, 3, 5.",
        ),
        (
            ("train.learning_rate=1e30",),
            "the loss must stay finite, but got a training loss of nan at step 2 (epoch 1); the gradient of the step before",
        ),
        (
            ("--devices", "100000"),
            f"processes may be at most as many as cores, {os.cpu_count()}, but got 100000; ask for fewer with --devices.",
        ),
        (
            ("train.augment.flip=true", "data.name=nothing"),
            "a data set must be known by name, but got nothing; use digits",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing_half_done(recipe, tmp_path, arguments, text):
    path, out = recipe(**{"model": {"hidden": [16, 16]}} if "depth" not in str(arguments) else {}), tmp_path / "model"
    if "model.name=cifar_resnet" in arguments:
        path = recipe(model={})
    error = pinch("train", path, *arguments, "--out", out).error.replace(f"{path.parent}/", "")
    assert error.startswith(text)
    assert not out.exists()


def test_a_budget_may_be_a_fraction(recipe):
    wanted = read_recipe(recipe(), {"adversarial.eps": "8/255", "adversarial.step_size": "2 / 255"})
    assert (wanted.adversarial.eps, wanted.adversarial.step_size) == (8 / 255, 2 / 255)
    with pytest.raises(
        ConfigError, match=r"adversarial\.eps: Input should be a valid number.* got '8/0'; correct it\."
    ):
        read_recipe(recipe(), {"adversarial.eps": "8/0"})


@pytest.fixture
def stop(monkeypatch):
    """Ctrl-C after so many steps; the state is saved after each."""

    def after(steps, save_seconds=0.0):
        def told(epoch, done, of):
            if 3 * (epoch - 1) + done == steps:
                raise KeyboardInterrupt

        def cut(*arguments, on_step, **options):
            return train(*arguments, on_step=told, save_seconds=save_seconds, **options)

        monkeypatch.setattr("pinchpoint.recipes.recipe.train", cut)

    yield after
    monkeypatch.undo()


def test_an_interruption_says_what_is_kept(recipe, tmp_path, stop, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pinch("train", recipe(), "--out", whole)
    stop(2, save_seconds=60)
    said = pinch("train", recipe(), "--out", cut)
    assert said.status == 130
    assert said.err.endswith("Interrupted. Nothing is kept yet.\n")
    assert not cut.exists()
    stop(5)
    said = pinch("train", recipe(), "--out", cut)
    assert said.status == 130
    assert said.err.endswith("Interrupted. The same command goes on from the last minute.\n")
    monkeypatch.undo()
    for other in ("penalty.group_lasso=0.01", "adversarial.eps=0.1", "frobenius_ball=3"):  # not only train.*
        text = f"the training state {cut / 'training.safetensors'} must belong to the same configuration"
        assert pinch("train", recipe(), other, "--out", cut).error.startswith(text)
    assert pinch("train", recipe(), "data.workers=0", "data.memory_gb=1", "--out", cut).status == 0
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert pinch("train", recipe(), "data.workers=5", "--out", cut).out.startswith("already trained")


def test_a_loss_that_diverges_leaves_the_last_good_model(recipe, tmp_path, monkeypatch):
    from pinchpoint.train import loop

    seen, own = [], loop.validate

    def third_is_nan(*arguments):
        seen.append(own(*arguments))
        return seen[-1] if len(seen) < 3 else (float("nan"), 0.0)

    out, two = tmp_path / "model", tmp_path / "two"
    monkeypatch.setattr(loop, "validate", third_is_nan)
    error = pinch("train", recipe(), "--out", out).error
    assert error.startswith("the loss must stay finite, but got a validation loss of nan after epoch 3; ")
    assert error.endswith(f"; the weights of epoch 2 are kept in {out / 'last_good'}.")
    monkeypatch.undo()
    pinch("train", recipe(), "train.epochs=2", "train.schedule=constant", "--out", two)
    assert [path.name for path in out.iterdir()] == ["last_good"]
    good = load_checkpoint(out / "last_good")[0].state_dict()
    assert all(value.isfinite().all() for value in good.values())
    assert pinch("train", recipe(), "train.learning_rate=0.001", "--out", out).status == 0


def test_a_folder_that_is_not_its_own_is_left_alone(recipe, tmp_path):
    pinch("train", recipe(), "--out", tmp_path / "model")
    pinch("prune", tmp_path / "model", "--ratio", 0.5, "--out", tmp_path / "pruned")
    before = (tmp_path / "pruned" / "model.safetensors").read_bytes()
    text = f"{tmp_path / 'pruned'} must be new or hold this recipe's model, but got model.safetensors of another model"
    assert pinch("train", recipe(), "--out", tmp_path / "pruned").error.startswith(text)
    assert (tmp_path / "pruned" / "model.safetensors").read_bytes() == before


def test_a_folder_that_cannot_be_written_is_told_before_training(recipe, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("pinchpoint.recipes.recipe.train", None)
    for command in (("train", recipe()), ("train", recipe(), "train.epochs=3")):
        file = tmp_path / "file"
        text = f"{file} must be a folder, but got the file {file}; choose another with --out."
        assert pinch(*command, "--out", tmp_path / "file").error == text


def live(path, out):
    torch.set_num_threads(1)
    pinch("train", path, "train.epochs=40", "--out", out)


@pytest.mark.long
def test_what_was_killed_goes_on(recipe, tmp_path, monkeypatch):
    """The state is written after each step here; the finished model is that of an undisturbed call."""
    path = recipe()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    pinch("train", path, "train.epochs=40", "--out", whole)
    monkeypatch.setattr("pinchpoint.recipes.recipe.train", functools.partial(train, save_seconds=0.0))
    kills = 0
    while not (cut / "training.json").exists():
        process = multiprocessing.get_context("fork").Process(target=live, args=(path, cut))
        process.start()
        process.join(0.15 * (kills + 1))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        time.sleep(0.01)
    assert kills >= 1
    first, second = (load_file(folder / "model.safetensors") for folder in (whole, cut))
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- normalisation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "mean", "std", "said"),
    [("mean=0.5,std=1/4", 0.5, 0.25, "mean 0.5, std 0.25"), ("none", 0.0, 1.0, "none"), (None, 0.0, 1.0, "none")],
)
def test_a_trained_model_carries_its_normalisation(recipe, tmp_path, word, mean, std, said):
    out = tmp_path / "model"
    asked = () if word is None else ("--normalize", word)
    assert pinch("train", recipe(), *asked, "train.epochs=1", "--out", out).status == 0
    assert json.loads((out / "training.json").read_text())["normalisation"] == said
    source = open_model(str(out))
    assert with_known_normalisation(source).normalisation == said
    # the same network by hand: what is trained lies behind the normalisation
    tensors, x = load_file(out / "model.safetensors"), torch.rand(5, 1, 8, 8)
    weights = [value for name, value in tensors.items() if name.endswith("weight")]
    hidden = ((x - mean) / std).flatten(1)
    for weight in weights[:-1]:
        hidden = torch.relu(hidden @ weight.T)
    torch.testing.assert_close(source.model(x), hidden @ weights[-1].T)
    # asked for again, it is the same model; asked for otherwise, another
    assert pinch("train", recipe(), *asked, "train.epochs=1", "--out", out).out.startswith("already trained")
    other = pinch("train", recipe(), "--normalize", "mean=0.1,std=1", "train.epochs=1", "--out", out)
    assert "but got another recipe or seed" in other.error


def test_normalisations_that_a_recipe_cannot_have(recipe, tmp_path):
    out = ("--out", tmp_path / "model")
    said = recipe(model={"hidden": [16], "mean": [0.5], "std": [0.25]})
    assert pinch("train", said, "--normalize", "none", *out).error == (
        "the recipe says how inputs are normalised, but got model.mean (0.5,) and model.std (0.25,) in it; "
        "leave --normalize out."
    )
    for word, text in (
        ("mean=1e999,std=1", "a normalisation is none, imagenet or"),
        ("mean=nan,std=1", "a normalisation is none, imagenet or"),
        ("mean=0,std=0", "mean and std need equal lengths and every std must be positive, all within 1e+30, but got"),
        ("imagenet", "mean needs one value or one a channel, but got 3; give 1."),
    ):
        assert pinch("train", recipe(), "--normalize", word, *out).error.startswith(text)
    for key, text in (("mean", "[.inf]"), ("std", "[.nan]"), ("std", "[0]")):
        other = {"mean": "std", "std": "mean"}[key]
        error = pinch("train", recipe(), f"model.{key}={text}", f"model.{other}=[1.0]", *out).error
        assert error.startswith("mean and std need equal lengths and every std must be positive")
    assert not (tmp_path / "model").exists()
