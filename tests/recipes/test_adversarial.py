"""Adversarial training: what it adds to robust accuracy, TRADES' loss, and the check for catastrophic overfitting."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from pinchpoint.data.part import TensorPart
from pinchpoint.evaluate import robust_accuracy
from pinchpoint.models import ModelConfig, build
from pinchpoint.recipes.adversarial import AdversarialConfig, OverfittingCheck, training_attack
from pinchpoint.train import TrainConfig, train

EPS = 0.1


class Parts(NamedTuple):
    train: TensorPart
    validation: TensorPart


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def network(digits, seed=0):
    return build(ModelConfig(hidden=(64,)), digits.input_shape, digits.classes, seed=seed)


def left(model, digits, config):
    return robust_accuracy(model, digits.x_test, digits.y_test, config.threat).robust_accuracy


@pytest.mark.long
@pytest.mark.parametrize(("norm", "eps"), [("linf", EPS), ("l2", 0.6)])
def test_every_kind_raises_robust_accuracy(digits, norm, eps):
    """Against the standard verdict, not the attack trained with."""
    base = TrainConfig(epochs=30, learning_rate=3e-3)
    plain = network(digits)
    train(plain, digits, base, seed=0)
    before = left(plain, digits, AdversarialConfig(norm=norm, eps=eps))
    for kind, beta in (("pgd", None), ("fast", None), ("pgd", 4.0)):
        config = AdversarialConfig(kind=kind, norm=norm, eps=eps, steps=5)
        model = network(digits)
        attack = training_attack(config, trades=beta is not None)
        record = train(model, digits, base.model_copy(update={"trades_beta": beta}), seed=0, attack=attack)
        assert record.stopped is None or "validation" in record.stopped
        assert left(model, digits, config) > before + 0.1, (kind, beta)


def test_trades_is_cross_entropy_and_divergence_written_out():
    """One SGD step is the gradient: of a linear model, derived by hand, in float64."""
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 9)), rng.integers(0, 3, 20)
    model = nn.Linear(9, 3, bias=False).double()
    start, shift, beta = model.weight.detach().numpy().copy(), np.linspace(-0.2, 0.2, 9), 3.0
    part = TensorPart(torch.from_numpy(x), torch.from_numpy(y))
    config = TrainConfig(
        epochs=1, batch_size=20, optimizer="sgd", momentum=0, learning_rate=0.1, weight_decay=0, trades_beta=beta
    )
    train(model, Parts(part, part), config, seed=0, attack=lambda model, x, y: x + torch.from_numpy(shift))
    p, q = softmax(x @ start.T), softmax((x + shift) @ start.T)
    log_ratio = np.log(p / q)
    divergence = (p * log_ratio).sum(1, keepdims=True)
    at_clean = p - np.eye(3)[y] + beta * p * (log_ratio - divergence)
    gradient = (at_clean.T @ x + beta * (q - p).T @ (x + shift)) / 20
    np.testing.assert_allclose(model.weight.detach().numpy(), start - 0.1 * gradient, atol=1e-12)


def test_the_attack_of_trades_raises_the_divergence(trained, digits):
    x, y = digits.x_test[:64], digits.y_test[:64]
    config = AdversarialConfig(eps=EPS, steps=5)
    clean = trained(x).detach().log_softmax(1)

    def divergence(adv):
        return float((clean.exp() * (clean - trained(adv).detach().log_softmax(1))).sum(1).mean())

    adv = training_attack(config, trades=True)(trained, x, y)
    noise = x + EPS * (2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1)
    assert divergence(adv) > 3 * divergence(noise.clamp(0, 1))
    assert float((adv - x).abs().max()) <= EPS + 1e-6


class TestOverfittingCheck:
    def check(self, digits, samples=128):
        config = AdversarialConfig(kind="fast", eps=EPS, check_samples=samples)
        return OverfittingCheck(config, digits.validation, torch.device("cpu"))

    def test_training_ends_and_goes_back_to_the_epoch_before(self, digits):
        """A hook throws the weights away after the third epoch, as a collapse would."""
        model, weights, steps = network(digits), {}, []

        def collapse(model):
            steps.append(None)
            if len(steps) > 12 * -(-len(digits.x_train) // 128):
                with torch.no_grad():
                    next(model.parameters()).mul_(-1)

        record = train(
            model,
            digits,
            TrainConfig(epochs=20, learning_rate=3e-3, patience=None),
            seed=0,
            after_step=collapse,
            check=self.check(digits),
            on_epoch=lambda epoch: weights.update({epoch.number: model.state_dict()["1.weight"].clone()}),
        )
        assert record.stopped.startswith("catastrophic overfitting: accuracy under PGD at linf:0.1 fell from ")
        assert (record.epochs, record.best_epoch) == (13, 12)
        assert torch.equal(model.state_dict()["1.weight"], weights[12])

    def test_it_compares_with_the_best_so_far(self, trained, digits):
        check, untrained = self.check(digits), network(digits)
        assert check(untrained) is None  # nothing to lose yet
        assert check(trained) is None
        again = self.check(digits)
        again.load_state_dict(check.state_dict())
        for one in (check, again):
            assert "catastrophic overfitting" in one(untrained)


@pytest.mark.parametrize(
    "options", [{"eps": 0}, {"eps": float("nan")}, {"norm": "l3"}, {"kind": "trades"}, {"steps": 0}]
)
def test_configurations_are_validated(options):
    with pytest.raises(ValidationError):
        AdversarialConfig(**options)
