"""What options of the training do, each against the same thing done by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.data import Dataset
from pinchpoint.errors import DataError, ModelError
from pinchpoint.models import ModelConfig, build
from pinchpoint.train import TrainConfig, train
from pinchpoint.train.augment import augment
from pinchpoint.train.validation import validate


def net(few, **options):
    return build(ModelConfig(**({"hidden": (8,)} | options)), few.input_shape, few.classes)


def one_batch(few, model, **options):
    """One step of plain SGD on the whole training part: what is left of the weights."""
    plain = {"epochs": 1, "batch_size": len(few.x_train), "optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.1}
    hooks = {key: options.pop(key) for key in ("penalty", "attack", "after_step") if key in options}
    train(model, few, TrainConfig(**(plain | {"weight_decay": 0.0} | options)), seed=0, **hooks)
    return [parameter.detach().clone() for parameter in model.parameters()]


def gradients(few, model, loss):
    model = copy.deepcopy(model)
    loss(model(few.x_train)).backward()
    return [parameter.grad for parameter in model.parameters()]


def by_hand(few, model, loss, clip=None):
    before, found = list(model.parameters()), gradients(few, model, loss)
    length = math.sqrt(sum(float(gradient.square().sum()) for gradient in found))
    factor = min(1.0, clip / length) if clip else 1.0
    return [p.detach() - 0.1 * factor * g for p, g in zip(before, found, strict=True)]


def close(first, second, tolerance=1e-6):
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance, rtol=0)


def test_parts_of_a_batch_add_up_to_it(few):
    """Parts of unequal size, and a penalty that counts once."""
    model = net(few)

    def penalty(model):
        return 0.3 * sum(p.square().sum() for p in model.parameters())

    whole = one_batch(few, copy.deepcopy(model), penalty=penalty)
    parts = one_batch(few, copy.deepcopy(model), penalty=penalty, accumulate=7)
    close(parts, whole)
    found = gradients(few, model, lambda logits: nn.functional.cross_entropy(logits, few.y_train))
    expected = [p.detach() - 0.1 * (g + 0.6 * p.detach()) for p, g in zip(model.parameters(), found, strict=True)]
    close(whole, expected)


def test_the_gradient_is_clipped_to_its_length(few):
    model = net(few)

    def loss(logits):
        return nn.functional.cross_entropy(logits, few.y_train)

    for clip in (0.01, 100.0):
        close(one_batch(few, copy.deepcopy(model), clip_norm=clip), by_hand(few, model, loss, clip))


def test_labels_are_smoothed(few):
    model = net(few)
    wanted = torch.full((len(few.y_train), 3), 0.2 / 3)
    wanted[torch.arange(len(few.y_train)), few.y_train] += 0.8
    expected = by_hand(few, model, lambda logits: -(wanted * logits.log_softmax(1)).sum(1).mean())
    close(one_batch(few, copy.deepcopy(model), label_smoothing=0.2), expected)


def test_the_average_of_weights_is_what_remains(few):
    """decay * average + (1 - decay) * weights after each step, beginning with the weights after the first one."""
    model, after = net(few), []
    config = TrainConfig(epochs=3, batch_size=40, patience=None, ema=0.8)
    seen = copy.deepcopy(model)
    train(
        seen,
        few,
        config.model_copy(update={"ema": None}),
        seed=0,
        after_step=lambda m: after.append([p.detach().clone() for p in m.parameters()]),
    )
    average = after[0]
    for weights in after[1:]:
        average = [0.8 * a + 0.2 * w for a, w in zip(average, weights, strict=True)]
    result = train(model, few, config, seed=0)
    close(list(model.parameters()), average)
    assert result.validation_loss == validate(model, few.validation, torch.device("cpu"))[0]


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision_learns_nearly_the_same_and_keeps_float32_weights(few, precision):
    seen = []

    class Watched(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    model = nn.Sequential(nn.Flatten(), Watched(9, 3))
    config = TrainConfig(epochs=8, learning_rate=0.05, batch_size=32, precision=precision)
    result = train(model, few, config, seed=0)
    assert result.validation_accuracy > 0.9
    assert getattr(torch, precision) in seen
    assert model[1].weight.dtype == torch.float32


def test_augmented_images_are_what_is_trained_on(few):
    """The draws are those of the seed, and the order that of the shuffled epoch."""
    model, config = net(few, hidden=()), TrainConfig(epochs=1, augment={"flip": True, "crop": 1})
    order = torch.randperm(len(few.x_train), generator=torch.Generator().manual_seed(0))
    x = augment(few.x_train[order], config.augment, torch.Generator().manual_seed(0))
    assert not torch.equal(x, few.x_train[order])
    by = copy.deepcopy(model)
    nn.functional.cross_entropy(by(x), few.y_train[order]).backward()
    expected = next(by.parameters()).detach() - 0.1 * next(by.parameters()).grad
    close(one_batch(few, model, augment={"flip": True, "crop": 1}), [expected])


def test_noise_is_added_after_each_step(few):
    quiet, noisy = (one_batch(few, net(few), noise=noise) for noise in (None, {"alpha": 1.5, "scale": 1e-3}))
    moved = torch.cat([(a - b).flatten() for a, b in zip(quiet, noisy, strict=True)])
    assert (moved != 0).all()
    assert 1e-4 < float(moved.abs().median()) < 1e-2  # the median of |alpha-stable| is near 1


def test_the_attacked_validation_loss_may_decide(few):
    """An attack that blackens the images: the loss under it is that of black images."""
    model = net(few)
    config = TrainConfig(epochs=6, learning_rate=0.05, monitor="attacked", patience=2)
    result = train(model, few, config, seed=0, attack=lambda model, x, y: torch.zeros_like(x))
    black = Dataset("black", 3, *[few.x_validation * 0, few.y_validation] * 3)
    assert result.history[result.best_epoch - 1].attacked_loss == pytest.approx(
        validate(model, black.validation, torch.device("cpu"))[0]
    )
    losses = [epoch.attacked_loss for epoch in result.history]
    assert result.best_epoch == 1 + losses.index(min(losses))


def test_frozen_layers_stay_bit_for_bit(few):
    model = net(few)
    model[1].requires_grad_(False)
    before = model[1].weight.clone()
    train(model, few, TrainConfig(epochs=2, learning_rate=0.1, weight_decay=0.5), seed=0)
    assert torch.equal(model[1].weight, before)


def test_what_cannot_be_trained_is_refused(few):
    empty = Dataset("empty", 3, few.x_train[:0], few.y_train[:0], few.x_test, few.y_test, few.x_test, few.y_test)
    with refused(DataError, "training needs training samples, but got none; use a data set with a training part."):
        train(net(few), empty, TrainConfig(), seed=0)
    frozen = net(few).requires_grad_(False)
    with refused(ModelError, "some weight must be free to be trained, but got none; unfreeze a layer."):
        train(frozen, few, TrainConfig(), seed=0)
    text = (
        "train.trades_beta and train.monitor attacked need an attack, but got none; give adversarial training a threat."
    )
    for options in ({"trades_beta": 1.0}, {"monitor": "attacked"}):
        with refused(ModelError, text):
            train(net(few), few, TrainConfig(**options), seed=0)
