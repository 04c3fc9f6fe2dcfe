"""PGD in the inner loop of adversarial training: only the path to the input is differentiated, nothing is left behind."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pinchpoint.attack import Threat, pgd

WEIGHTS = 784 * 50 + 50 * 40 + 40 * 10
BATCH, STEPS = 32, 5


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Linear(784, 50), nn.BatchNorm1d(50), nn.ReLU(), nn.Linear(50, 40), nn.Dropout(0.5), nn.Linear(40, 10)
        )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.rand(BATCH, 784, generator=generator), torch.randint(10, (BATCH,), generator=generator)


class Products(TorchDispatchMode):
    """Counts the multiplications of all matrix products, forward and backward."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            first, second = arguments[-2:]
            self.total += first.shape[0] * first.shape[1] * second.shape[1]
        return operation(*arguments, **(options or {}))


def work(call):
    with Products() as products:
        call()
    return products.total


def test_no_gradient_of_a_parameter_is_computed(net, batch):
    """One matrix product a layer forward and one backward, to the input; with weight gradients it would be two."""
    x, y = batch
    once = BATCH * WEIGHTS
    passes = (1 + STEPS + 1) + STEPS  # clean, each step, the last point; and backward
    attack = work(lambda: pgd(net, x, y, Threat("linf", 0.1), steps=STEPS, drop_fallen=False))
    assert attack == passes * once
    with_weights = work(lambda: nn.functional.cross_entropy(net(x.clone().requires_grad_()), y).backward())
    assert with_weights == 3 * once  # the counter sees weight gradients where there are any


def test_a_training_step_is_that_of_the_examples_alone(net, batch):
    """Gradients, batch norm statistics, dropout draws: all as if the examples had come from elsewhere."""
    x, y = batch
    net.train()
    net[1].eval()  # a frozen layer stays frozen
    net[0].weight.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rng = torch.random.get_rng_state()
    examples = pgd(net, x, y, Threat("linf", 0.1), steps=STEPS, seed=2)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert [module.training for module in net] == [True, False, True, True, True, True]
    assert [parameter.requires_grad for parameter in net.parameters()] == [False] + [True] * 7
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not examples.requires_grad
    nn.functional.cross_entropy(net(examples), y).backward()
    taken = [parameter.grad.clone() for parameter in net.parameters() if parameter.grad is not None]
    net.zero_grad()
    torch.random.set_rng_state(rng)
    nn.functional.cross_entropy(net(examples.clone()), y).backward()
    again = [parameter.grad for parameter in net.parameters() if parameter.grad is not None]
    assert len(taken) == 7
    assert all(torch.equal(a, b) for a, b in zip(taken, again, strict=True))


def test_gradients_under_way_are_kept(net, batch):
    """Gradients accumulated before the attack are still there after it."""
    x, y = batch
    nn.functional.cross_entropy(net(x), y).backward()
    held = [parameter.grad.clone() for parameter in net.parameters()]
    pgd(net, x, y, Threat("l2", 1.0), steps=2)
    assert all(torch.equal(a, p.grad) for a, p in zip(held, net.parameters(), strict=True))
