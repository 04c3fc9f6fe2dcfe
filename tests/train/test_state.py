"""A training that is killed, at any moment and again and again, ends at the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import multiprocessing
import random
import resource
import signal
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from oracles import resumed
from oracles.as_user import refused
from pinchpoint.errors import CheckpointError, StoreError
from pinchpoint.models import ModelConfig, build
from pinchpoint.train import TrainConfig, train


class Cut(Exception):
    """Instead of a kill, in this process."""


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_cut_after_every_kind_of_step(tmp_path, optimizer):
    """The first step, the middle of an epoch, its last step, the last of all; the state is written after each step."""
    whole, record = resumed.trained(None, optimizer)
    per_epoch = record.steps // record.epochs
    for number, at in enumerate([(1, 1), (2, 3), (3, per_epoch), (4, per_epoch)]):
        state = tmp_path / f"{number}.safetensors"

        def cut(epoch, step, of, at=at):
            if (epoch, step) == at:
                raise Cut

        with pytest.raises(Cut):
            resumed.trained(state, optimizer, cut)
        model, again = resumed.trained(state if state.exists() else None, optimizer)
        assert equal(model.state_dict(), whole.state_dict())
        assert again.history == record.history
        assert (again.epochs, again.best_epoch, again.steps) == (record.epochs, record.best_epoch, record.steps)


def test_a_finished_training_is_not_trained_again(tmp_path):
    first, record = resumed.trained(tmp_path / "state", "sgd")
    steps = []
    second, again = resumed.trained(tmp_path / "state", "sgd", lambda *at: steps.append(at))
    assert steps == []
    assert equal(first.state_dict(), second.state_dict())
    assert again == record


def live(folder, optimizer):
    """What a process does that is to be killed: train to the end, leave the weights."""
    model, _ = resumed.trained(folder / "state", optimizer, lambda *at: time.sleep(0.002))
    save_file(model.state_dict(), folder / "final.safetensors")


@pytest.mark.long
def test_killed_by_sigkill_at_random_moments(tmp_path):
    whole, _ = resumed.trained(None, "adamw")
    rng, kills = random.Random(0), 0
    while not (tmp_path / "final.safetensors").exists():
        process = multiprocessing.get_context("fork").Process(target=live, args=(tmp_path, "adamw"))
        process.start()
        # the first ones early: a fast machine trains in less than half a second
        process.join(rng.uniform(0.02, 0.1) if kills < 3 else rng.uniform(0.1, 0.4) if kills < 12 else None)
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        assert process.exitcode in (0, -signal.SIGKILL)
    assert kills >= 3
    assert equal(load_file(tmp_path / "final.safetensors"), whole.state_dict())


def test_a_state_of_another_training_is_refused(tmp_path, few):
    state = tmp_path / "state.safetensors"
    model = build(ModelConfig(hidden=(8,)), few.input_shape, few.classes)
    train(model, few, TrainConfig(epochs=1), seed=0, state=state)
    text = (
        f"the training state {state} must belong to the same configuration, data, model and seed, but got another one; "
        "give another folder, or delete the file to start anew."
    )
    for config, seed, hidden in (
        (TrainConfig(epochs=2), 0, 8),
        (TrainConfig(epochs=1), 1, 8),
        (TrainConfig(epochs=1), 0, 9),
    ):
        other = build(ModelConfig(hidden=(hidden,)), few.input_shape, few.classes)
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with refused(CheckpointError, text):
            train(other, few, config, seed=seed, state=state)
        assert equal(other.state_dict(), before)


def test_a_damaged_state_is_refused(tmp_path, few):
    state = tmp_path / "state.safetensors"
    model = build(ModelConfig(hidden=(8,)), few.input_shape, few.classes)
    train(model, few, TrainConfig(epochs=1), seed=0, state=state)
    whole = state.read_bytes()
    for content in (b"", whole[:100], whole[:-10], b"\xff" * 200):
        state.write_bytes(content)
        with pytest.raises(CheckpointError, match="must be a whole safetensors file"):
            train(model, few, TrainConfig(epochs=1), seed=0, state=state)


def test_a_full_disk_is_one_sentence(tmp_path, few):
    """A file may not grow past 1000 bytes: writing fails as on a full disk, leaves nothing, and works when there is room."""
    state, config = tmp_path / "state", TrainConfig(epochs=2)
    whole = build(ModelConfig(hidden=(8,)), few.input_shape, few.classes)
    train(whole, few, config, seed=0, state=state)
    state.unlink()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    model = build(ModelConfig(hidden=(8,)), few.input_shape, few.classes)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(
            StoreError, match=r"^the state of the training must be writable, but got .*; free some space"
        ):
            train(model, few, config, seed=0, state=state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    model = build(ModelConfig(hidden=(8,)), few.input_shape, few.classes)
    train(model, few, config, seed=0, state=state)
    assert equal(model.state_dict(), whole.state_dict())


def test_a_tied_weight_and_a_frozen_layer_come_back(tmp_path, few):
    def make():
        model = nn.Sequential(nn.Flatten(), nn.Linear(9, 9), nn.ReLU(), nn.Linear(9, 9), nn.Linear(9, 3))
        for layer in (model[1], model[3], model[4]):
            nn.init.eye_(layer.weight)
            nn.init.zeros_(layer.bias)
        model[3].weight = model[1].weight
        model[4].requires_grad_(False)
        return model

    whole = make()
    train(whole, few, TrainConfig(epochs=3), seed=0)

    def cut(epoch, step, of):
        if (epoch, step) == (2, 2):
            raise Cut

    model = make()
    with pytest.raises(Cut):
        train(model, few, TrainConfig(epochs=3), seed=0, on_step=cut, state=tmp_path / "s", save_seconds=0.0)
    model = make()
    train(model, few, TrainConfig(epochs=3), seed=0, state=tmp_path / "s", save_seconds=0.0)
    assert equal(model.state_dict(), whole.state_dict())
    assert model[3].weight is model[1].weight
