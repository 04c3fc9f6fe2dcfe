"""The training loop: deterministic, stopped by the validation loss, and honest when the loss blows up."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pinchpoint.attack import Threat, pgd
from pinchpoint.errors import ModelError
from pinchpoint.evaluate import robust_accuracy
from pinchpoint.models import ModelConfig, build
from pinchpoint.train import TrainConfig, train
from pinchpoint.train.validation import loss_and_accuracy


def net(few, seed=0, **options):
    return build(ModelConfig(**({"hidden": (8,)} | options)), few.input_shape, few.classes, seed=seed)


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 1e-2), ("sgd", 0.2)])
def test_it_learns(few, optimizer, rate):
    model = net(few)
    result = train(model, few, TrainConfig(epochs=30, optimizer=optimizer, learning_rate=rate, batch_size=32), seed=0)
    assert result.validation_accuracy > 0.9
    assert not model.training
    loss, accuracy = loss_and_accuracy(model, few.x_validation, few.y_validation)
    assert (result.validation_loss, result.validation_accuracy) == (loss, accuracy)
    assert result.seconds > 0


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_one_epoch_in_one_batch_is_one_optimiser_step(few, optimizer):
    """Against the update rules in numpy, on a linear model whose gradient is known in closed form."""
    model = net(few, hidden=())
    before = next(model.parameters()).detach().double().numpy().copy()
    x = few.x_train.flatten(1).double().numpy()
    logits = x @ before.T
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    gradient = (p - np.eye(3)[few.y_train.numpy()]).T @ x / len(x)
    config = TrainConfig(epochs=1, optimizer=optimizer, learning_rate=0.05, weight_decay=0.1, batch_size=len(x))
    train(model, few, config, seed=0)
    if optimizer == "sgd":
        expected = before - 0.05 * (gradient + 0.1 * before)
    else:  # AdamW's first step: bias correction makes it the gradient over its own magnitude
        expected = before * (1 - 0.05 * 0.1) - 0.05 * gradient / (np.abs(gradient) + 1e-8)
    np.testing.assert_allclose(next(model.parameters()).detach().numpy(), expected, atol=1e-5)


def with_dropout(few):
    model = net(few)
    model.insert(2, nn.Dropout(0.3))
    return model


def test_same_seed_same_weights_bit_for_bit_and_the_global_rng_untouched(few):
    config = TrainConfig(epochs=4, batch_size=32)
    found = []
    for seed in (0, 0, 1):
        model = with_dropout(few)
        rng = torch.random.get_rng_state()
        train(model, few, config, seed=seed)
        assert torch.equal(torch.random.get_rng_state(), rng)
        found.append(weights(model))
        torch.rand(3)
    assert equal(found[0], found[1])
    assert not equal(found[0], found[2])


def rising(few, best=3):
    """A hook that zeroes the first layer after a chosen epoch, so the loss stays at log 3, and a record of the losses."""
    history = []

    def on_epoch(epoch):
        history.append((epoch.validation_loss, epoch.number))

    class Thrown:
        steps = 0

        def __call__(self, model):
            self.steps += 1
            if self.steps > best * math.ceil(len(few.x_train) / 32):
                with torch.no_grad():
                    next(model.parameters()).zero_()

    return Thrown(), on_epoch, history


def test_early_stopping_puts_the_best_epochs_weights_back(few):
    after_step, on_epoch, history = rising(few)
    model, at_epoch = net(few), {}

    def watch(epoch):
        on_epoch(epoch)
        at_epoch[epoch.number] = weights(model)

    result = train(
        model,
        few,
        TrainConfig(epochs=50, patience=4, batch_size=32, learning_rate=1e-2),
        seed=0,
        after_step=after_step,
        on_epoch=watch,
    )
    best_loss, best_epoch = min(history)
    assert best_epoch == result.best_epoch == 3
    assert result.epochs == len(history) == 3 + 4
    assert result.validation_loss == best_loss
    assert equal(weights(model), at_epoch[3])


def test_without_patience_the_last_epoch_counts(few):
    after_step, on_epoch, history = rising(few)
    model = net(few)
    config = TrainConfig(epochs=9, patience=None, batch_size=32, learning_rate=1e-2)
    result = train(model, few, config, seed=0, after_step=after_step, on_epoch=on_epoch)
    assert (result.epochs, result.best_epoch) == (9, 9)
    assert result.validation_loss == history[-1][0] > min(history)[0]
    assert result.validation_loss == loss_and_accuracy(model, few.x_validation, few.y_validation)[0]


@pytest.mark.parametrize("good_epochs", [0, 2])
def test_a_loss_that_is_no_longer_finite(few, good_epochs):
    model = net(few)
    start, steps_an_epoch = weights(model), math.ceil(len(few.x_train) / 32)
    steps, seen = [0], {}

    def poison(model):
        steps[0] += 1
        if steps[0] > good_epochs * steps_an_epoch:
            with torch.no_grad():
                next(model.parameters()).fill_(math.nan)

    def watch(epoch):
        seen[epoch.number] = weights(model)

    step = good_epochs * steps_an_epoch + 2
    text = (
        rf"^the loss must stay finite, but got a training loss of nan at step {step} \(epoch {good_epochs + 1}\); "
        r"the gradient of the step before had length [\d.]+, most in 1.weight; "
        r"lower train.learning_rate or set train.clip_norm; "
        rf"the {f'weights of epoch {good_epochs}' if good_epochs else 'initial weights'} are kept.$"
    )
    with pytest.raises(ModelError, match=text):
        train(model, few, TrainConfig(epochs=5, batch_size=32), seed=0, after_step=poison, on_epoch=watch)
    assert equal(weights(model), seen[good_epochs] if good_epochs else start)


def test_penalties_are_added_to_the_loss(few):
    sizes = {}
    for strength in (0.0, 1.0):
        model, calls = net(few), []

        def penalty(model, strength=strength, calls=calls):
            calls.append(model)
            return strength * sum(p.pow(2).sum() for p in model.parameters())

        train(model, few, TrainConfig(epochs=5, batch_size=60, weight_decay=0, patience=None), seed=0, penalty=penalty)
        assert len(calls) == 5 * math.ceil(len(few.x_train) / 60)
        sizes[strength] = float(sum(p.detach().pow(2).sum() for p in model.parameters()))
    assert sizes[1.0] < 0.95 * sizes[0.0]


def test_after_step_has_the_last_word(few):
    model = net(few)

    def clamp(model):
        with torch.no_grad():
            next(model.parameters()).clamp_(-0.01, 0.01)

    train(model, few, TrainConfig(epochs=3), seed=0, after_step=clamp)
    assert float(next(model.parameters()).detach().abs().max()) <= 0.01


@pytest.mark.parametrize(("share", "attacked"), [(0.5, [16, 16, 16, 16, 12]), (1.0, [32, 32, 32, 32, 25]), (0.0, [])])
def test_attacks_see_their_share_of_each_batch(few, share, attacked):
    model, sizes = net(few), []

    def attack(model, x, y):
        assert model.training
        sizes.append(len(x))
        assert len(y) == len(x)
        return x

    config = TrainConfig(epochs=1, batch_size=32, adversarial_share=share)
    train(model, few, config, seed=0, attack=attack)
    expected = [round(share * size) for size in (32, 32, 32, 32, len(few.x_train) - 128)]
    assert sizes == ([] if share == 0 else expected)
    assert attacked == sizes
    plain = net(few)
    train(plain, few, config, seed=0)
    assert equal(weights(plain), weights(model))  # an attack that changes nothing changes nothing


def test_attacked_samples_take_the_place_of_the_clean_ones(few):
    """Training on inputs an attack turned black is training on black inputs."""
    model = net(few, hidden=(), bias=False)
    before = weights(model)
    config = TrainConfig(epochs=1, adversarial_share=1.0, weight_decay=0, optimizer="sgd")
    train(model, few, config, seed=0, attack=lambda model, x, y: torch.zeros_like(x))
    assert equal(weights(model), before)  # without bias a black input has no gradient


def test_adversarial_training_makes_digits_more_robust(digits):
    threat = Threat("linf", 0.1)
    robust = {}
    for name, attack in (
        ("plain", None),
        ("adversarial", lambda model, x, y: pgd(model, x, y, threat, steps=5, drop_fallen=False)),
    ):
        model = build(ModelConfig(hidden=(64,)), digits.input_shape, digits.classes)
        train(model, digits, TrainConfig(epochs=15, learning_rate=3e-3), seed=0, attack=attack)
        verdict = robust_accuracy(
            model,
            digits.x_test,
            digits.y_test,
            threat,
            attacks={"pgd": lambda m, a, b, t: pgd(m, a, b, t, steps=20, seed=9)},
        )
        robust[name] = verdict.robust_accuracy
    assert robust["adversarial"] > robust["plain"] + 0.1


def test_loss_and_accuracy_against_numpy_in_batches(few):
    model = net(few)
    model.train()
    z = model(few.x_test).detach().double().numpy()
    y = few.y_test.numpy()
    expected = (np.log(np.exp(z).sum(1)) - z[np.arange(len(y)), y]).mean()
    for batch_size in (7, 4096):
        loss, accuracy = loss_and_accuracy(model, few.x_test, few.y_test, batch_size)
        assert loss == pytest.approx(expected, abs=1e-6)
        assert accuracy == pytest.approx((z.argmax(1) == y).mean())
    assert model.training


def test_epochs_are_reported_in_order(few):
    seen = []
    train(net(few), few, TrainConfig(epochs=3), seed=0, on_epoch=lambda epoch: seen.append(copy.copy(epoch)))
    assert [epoch.number for epoch in seen] == [1, 2, 3]
    assert all(math.isfinite(epoch.train_loss) and 0 <= epoch.validation_accuracy <= 1 for epoch in seen)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"optimizer": "adam"},
        {"learning_rate": 0},
        {"learning_rate": math.nan},
        {"patience": 0},
        {"adversarial_share": 1.5},
        {"momentum": 1.0},
        {"batchsize": 3},
    ],
)
def test_configurations_are_validated(options):
    with pytest.raises(ValidationError):
        TrainConfig(**options)


@pytest.mark.parametrize(("samples", "size"), [(9, 4), (9, 8), (3, 2)])
def test_a_last_batch_of_one_joins_the_one_before(samples, size):
    from pinchpoint.train.loop import _batches

    order = torch.randperm(samples)
    batches = _batches(order, size)
    assert torch.equal(torch.cat(batches), order)
    assert [len(rows) for rows in batches] == [size] * (samples // size - 1) + [size + 1]
    even = torch.randperm(samples + 1)  # nothing changes where no batch is of one
    assert all(torch.equal(a, b) for a, b in zip(_batches(even, size), even.split(size), strict=True))


def test_batch_normalisation_of_single_samples_is_refused_in_a_sentence():
    from pinchpoint.data import DataConfig, load
    from pinchpoint.errors import ModelError
    from pinchpoint.train import TrainConfig, train

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10), torch.nn.BatchNorm1d(10))
    with pytest.raises(ModelError, match=r"more than one value a channel .* use a larger train.batch_size"):
        train(model, load(DataConfig(limit_train=100)), TrainConfig(epochs=1, batch_size=1), seed=0)
