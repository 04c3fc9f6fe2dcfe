"""An evaluation cut short goes on to the same verdict, bit for bit, and only where it belongs."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from oracles.as_user import refused
from pinchpoint.attack import Threat, apgd, pgd
from pinchpoint.errors import CheckpointError, DataError, PinchpointWarning
from pinchpoint.evaluate import not_asked, robust_accuracy, save_examples

THREAT = Threat("linf", 0.06)


class Stopped(Exception):
    """Someone pulled the plug."""


def stop_after(batches):
    def watcher(progress):
        nonlocal batches
        batches -= progress.stage != "clean"
        if batches < 0:
            raise Stopped

    return watcher


@pytest.fixture(scope="module")
def call(trained, digits):
    """An evaluation of 120 samples in batches of 32, with candidates tried first and two attacks after them."""
    x, y = digits.x_test[:120], digits.y_test[:120]
    return partial(
        robust_accuracy,
        trained,
        x,
        y,
        THREAT,
        known=(x + 0.05).clamp(0, 1),
        attacks={"pgd": partial(pgd, steps=3), "apgd": partial(apgd, steps=10)},
        batch_size=32,
    )


@pytest.mark.parametrize("batches", [1, 3, 4, 5, 7, 9])
def test_it_goes_on_to_the_same_verdict_bit_for_bit(call, tmp_path, batches):
    path, told = tmp_path / "deep" / "state.safetensors", []
    whole = call()
    with pytest.raises(Stopped):
        call(resume=path, watcher=stop_after(batches))
    resumed = call(resume=path, watcher=told.append)
    everything = []
    call(watcher=everything.append)
    assert told[1:] == everything[1 + batches :]  # nothing is done twice
    assert resumed.stage == whole.stage
    assert resumed.rejected == whole.rejected
    assert torch.equal(resumed.fallen, whole.fallen)
    assert torch.equal(resumed.adversarial, whole.adversarial)
    assert len(set(whole.stage)) == 5


def test_a_finished_state_answers_at_once(call, tmp_path):
    path, told = tmp_path / "state.safetensors", []
    whole = call(resume=path)
    again = call(resume=path, watcher=told.append)
    assert [progress.stage for progress in told] == ["clean"]
    assert again.stage == whole.stage
    assert torch.equal(again.adversarial, whole.adversarial)
    assert [file.name for file in tmp_path.iterdir()] == ["state.safetensors"]


def test_a_state_is_refused_by_any_other_evaluation(call, tmp_path, trained, digits):
    path = tmp_path / "state.safetensors"
    call(resume=path)
    other = copy.deepcopy(trained)
    next(other.parameters()).data[0, 0] += 1e-6
    x, y, _ = call.args[1:]
    attacks = call.keywords["attacks"]
    changes = {
        "model": ((other, x, y, THREAT), {}),
        "data": ((trained, x.flip(0), y, THREAT), {}),
        "threat": ((trained, x, y, Threat("linf", 0.07)), {}),
        "configuration": ((trained, x, y, THREAT), {"batch_size": 16}),
    }
    for part, (arguments, options) in changes.items():
        with refused(
            CheckpointError,
            f"an evaluation goes on only from its own state, but got {path} of another {part}; "
            "name a new file, or repeat the call that wrote this one.",
        ):
            robust_accuracy(*arguments, **{**call.keywords, **options}, resume=path)
    with pytest.raises(CheckpointError, match="of another configuration"):
        call(attacks={**attacks, "apgd": partial(apgd, steps=11)}, resume=path)
    with pytest.raises(CheckpointError, match="of another configuration"):
        call(attacks=dict(reversed(attacks.items())), resume=path)
    with pytest.raises(CheckpointError, match="of another data"):
        call(certified_radii=torch.zeros(len(x)), resume=path)


def test_closures_are_told_apart_by_what_they_hold(trained, digits, tmp_path):
    x, y, path = digits.x_test[:10], digits.y_test[:10], tmp_path / "state.safetensors"

    def attacks(steps):
        return {"pgd": lambda m, a, b, t: pgd(m, a, b, t, steps=steps)}

    robust_accuracy(trained, x, y, THREAT, attacks=attacks(2), resume=path)
    robust_accuracy(trained, x, y, THREAT, attacks=attacks(2), resume=path)
    with pytest.raises(CheckpointError, match="of another configuration"):
        robust_accuracy(trained, x, y, THREAT, attacks=attacks(3), resume=path)


def test_default_attacks_resume(trained, digits, tmp_path):
    x, y, path = digits.x_test[:20], digits.y_test[:20], tmp_path / "state.safetensors"
    with pytest.raises(Stopped):
        robust_accuracy(trained, x, y, THREAT, resume=path, watcher=stop_after(1))
    assert robust_accuracy(trained, x, y, THREAT, resume=path).stage == robust_accuracy(trained, x, y, THREAT).stage


def test_files_that_are_no_state(call, tmp_path):
    half, foreign = tmp_path / "half.safetensors", tmp_path / "foreign.safetensors"
    call(resume=half)
    half.write_bytes(half.read_bytes()[:100])
    save_file({"x": torch.zeros(1)}, foreign)
    for path in (half, foreign, tmp_path):
        with pytest.raises(
            CheckpointError, match=r"resume needs the state of an evaluation, but got .*; name a new file"
        ):
            call(resume=path)


def test_examples_are_saved_whole(call, tmp_path):
    path, verdict = tmp_path / "examples.safetensors", call()
    x, y = call.args[1:3]
    save_examples(path, verdict, x, y)
    tensors = load_file(path)
    assert torch.equal(tensors["adversarial"], verdict.adversarial)
    assert torch.equal(tensors["x"], x)
    assert torch.equal(tensors["y"], y)
    assert torch.equal(tensors["fallen"], verdict.fallen)
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert (header["norm"], float(header["eps"]), header["box"]) == ("linf", 0.06, "0.0 1.0")
    names = header["stages"].split()
    assert tuple(names[number] for number in tensors["stage"].tolist()) == verdict.stage
    with pytest.raises(DataError, match="examples are saved beside the inputs they were found for"):
        save_examples(path, verdict, x[:5], y[:5])


def test_a_randomised_model_resumes_to_the_same_verdict_too(trained, digits, tmp_path):
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return trained(x + 0.05 * torch.randn_like(x))

    model, path, rng = Noisy(), tmp_path / "state.safetensors", torch.random.get_rng_state()
    call = partial(
        robust_accuracy,
        model,
        digits.x_test[:60],
        digits.y_test[:60],
        THREAT,
        attacks={"pgd": partial(pgd, steps=3)},
        batch_size=16,
    )
    with pytest.warns(
        PinchpointWarning, match="no other batches or calls: a model must compute the same at every call"
    ):
        call()
    with not_asked(model):
        with pytest.raises(Stopped):
            call(resume=path, watcher=stop_after(2))
        resumed, whole = call(resume=path), call()
    assert resumed.stage == whole.stage
    assert torch.equal(resumed.adversarial, whole.adversarial)
    assert torch.equal(torch.random.get_rng_state(), rng)
