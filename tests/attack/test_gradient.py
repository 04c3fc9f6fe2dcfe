"""What is refused before an attack, and that asking for a gradient leaves the model alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.attack import Threat, apgd, cross_entropy, fgsm, margin, pgd, universal
from pinchpoint.attack.gradient import fooled, value, value_and_gradient
from pinchpoint.errors import DataError, ModelError, ThreatError

THREAT = Threat("linf", 0.1)
X = torch.full((3, 1, 2, 2), 0.5)
Y = torch.tensor([0, 1, 2])


@pytest.fixture
def net(small_net):
    return small_net(4)


@pytest.mark.parametrize("attack", [apgd, pgd, universal])
def test_every_attack_refuses(net, attack):
    with pytest.raises(DataError, match="inputs must be finite and lie in the box"):
        attack(net, X + 1, Y, THREAT)
    with pytest.raises(DataError, match=r"labels must lie in 0 \.\.\. 3, one for each"):
        attack(net, X, Y + 2, THREAT)
    with pytest.raises(ModelError, match="a model must return finite logits"):
        attack(nn.Identity(), X, Y, THREAT)
    for options, seen in (({"steps": 0}, "0 and 1"), ({"restarts": 0}, "and 0")):
        with pytest.raises(ThreatError, match=f"steps and restarts must be one or more, but got .*{seen}"):
            attack(net, X, Y, THREAT, **options)


class Threshold(nn.Module):
    """Not differentiable in its input."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 4)

    def forward(self, x):
        return self.head((x.flatten(1) > 0.5).float())


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("attack", [apgd, pgd, universal])
def test_a_model_without_input_gradient_is_named(attack, frozen):
    model = Threshold().requires_grad_(not frozen)
    y = model(X).argmax(1)
    with pytest.raises(ModelError, match="differentiable in its input, but got no gradient from Threshold; use square"):
        attack(model, X, y, THREAT)


def test_fooled_compares_the_largest_logit():
    logits = torch.tensor([[1.0, 2.0], [3.0, 2.0]])
    assert fooled(logits, torch.tensor([0, 0])).tolist() == [True, False]


def test_gradient_against_finite_differences(small_net):
    net = small_net(4, dtype=torch.float64)
    x = torch.tensor(np.random.default_rng(0).uniform(size=(3, 4)))
    values, gradient, logits = value_and_gradient(net, x, Y, cross_entropy)
    again, logits_again = value(net, x, Y, cross_entropy)
    assert torch.equal(values, again)
    assert torch.equal(logits, logits_again)
    numeric = torch.zeros_like(x)
    for i in range(4):
        step = torch.zeros_like(x)
        step[:, i] = 1e-6
        up, down = (value(net, x + sign * step, Y, cross_entropy)[0] for sign in (1, -1))
        numeric[:, i] = (up - down) / 2e-6
    np.testing.assert_allclose(gradient.numpy(), numeric.numpy(), atol=1e-8)
    assert not values.requires_grad
    assert not gradient.requires_grad
    assert not logits.requires_grad


class RootLogits(nn.Module):
    """Finite logits with an undefined derivative wherever the last pixel is zero."""

    def forward(self, x):
        flat = x.flatten(1)
        return torch.stack([flat[:, 0], 1.0 - flat[:, 0] + 0.0 * flat[:, 3].sqrt()], 1)


@pytest.mark.parametrize("attack", [apgd, pgd])
def test_an_undefined_derivative_does_not_end_the_attack(attack, assert_inside):
    x, y = torch.tensor([[0.55, 0.5, 0.5, 0.0]]), torch.tensor([0])
    threat = Threat("linf", 0.1, box=(0.0, 1.0))
    x_adv = attack(RootLogits(), x, y, threat, steps=10)
    assert_inside(x_adv, x, threat)
    assert RootLogits()(x_adv).argmax(1).item() == 1


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("attack", [apgd, pgd, universal])
def test_attacks_leave_the_model_and_the_global_rng_as_they_were(small_net, attack, norm):
    net = small_net(4)
    net.insert(2, nn.Dropout(0.5))
    net.train()
    net[3].eval()
    net[1].weight.requires_grad_(False)
    net[1].bias.grad = torch.full_like(net[1].bias, 7.0)
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    frozen = [parameter.requires_grad for parameter in net.parameters()]
    rng = torch.random.get_rng_state()
    x = X.clone()
    attack(net, x, Y, Threat(norm, 0.2), steps=7, restarts=2)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert torch.equal(x, X)
    assert not x.requires_grad
    assert [module.training for module in net.modules()] == modes
    assert [parameter.requires_grad for parameter in net.parameters()] == frozen
    assert torch.equal(net[1].bias.grad, torch.full_like(net[1].bias, 7.0))
    assert all(p.grad is None for p in net.parameters() if p is not net[1].bias)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, weights[name])


@pytest.mark.parametrize("attack", [apgd, pgd, universal])
def test_same_seed_same_result_even_where_the_model_draws(small_net, attack):
    net = small_net(4)
    net.insert(2, nn.Dropout(0.5))
    net.train()
    x = torch.tensor(np.random.default_rng(0).uniform(size=(6, 4)), dtype=torch.float32)
    y = torch.arange(6) % 4
    threat = Threat("l2", 0.3)
    first = attack(net, x, y, threat, steps=5, seed=11)
    torch.rand(17)
    assert torch.equal(attack(net, x, y, threat, steps=5, seed=11), first)
    assert not torch.equal(attack(net, x, y, threat, steps=5, seed=12), first)


@pytest.mark.parametrize("attack", [apgd, pgd])
def test_frozen_parameters_change_nothing(trained, sample, attack):
    x, y = sample[0][:40], sample[1][:40]
    expected = attack(trained, x, y, Threat("linf", 0.08), steps=10)
    before = [parameter.requires_grad for parameter in trained.parameters()]
    try:
        trained.requires_grad_(False)
        assert torch.equal(attack(trained, x, y, Threat("linf", 0.08), steps=10), expected)
    finally:
        for parameter, flag in zip(trained.parameters(), before, strict=True):
            parameter.requires_grad_(flag)


@pytest.mark.parametrize("attack", [apgd, pgd])
def test_attacks_run_inside_no_grad(trained, sample, attack):
    x, y = sample[0][:20], sample[1][:20]
    expected = attack(trained, x, y, Threat("l2", 0.4), steps=8, objective=margin)
    with torch.no_grad():
        assert torch.equal(attack(trained, x, y, Threat("l2", 0.4), steps=8, objective=margin), expected)


def test_no_attack_moves_a_running_statistic():
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, y = torch.rand(12, 6), torch.arange(12) % 3
    for attack in (pgd, apgd, universal):
        attack(net, x, y, Threat("linf", 0.2), steps=3)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(module.training for module in net.modules())


def test_inputs_the_model_cannot_take_are_one_sentence():
    net = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(ModelError, match="a model must take the inputs it is given, but got float64 of shape"):
        pgd(net, torch.rand(2, 6).double(), torch.tensor([0, 1]), Threat("linf", 0.1))


@pytest.mark.parametrize(("norm", "wide"), [("linf", 1), ("l2", 2), ("l1", 4)])
def test_a_budget_beyond_the_box_is_refused(norm, wide):
    x, y, beyond = torch.rand(3, 4), torch.zeros(3, dtype=torch.long), wide + 0.5
    rule = f"eps must not exceed the box, which is {wide} wide in {norm}"
    with refused(ThreatError, f"{rule}, but got {beyond}; give the budget in input units, for example 8/255."):
        fgsm(nn.Linear(4, 2), x, y, Threat(norm, beyond))
    fgsm(nn.Linear(4, 2), x, y, Threat(norm, beyond, box=None))
    fgsm(nn.Linear(4, 2), x, y, Threat(norm, float(wide)))
