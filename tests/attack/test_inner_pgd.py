"""The inner maximisation: in ball and box, as strong as PGD, and nothing but gradient steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pinchpoint.attack import Threat, cross_entropy, inner_pgd, pgd

THREATS = [Threat("linf", 0.1), Threat("l2", 0.7), Threat("l1", 4.0), Threat("linf", 0.1, box=None)]


def drawn(call, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return call()


@pytest.mark.parametrize("threat", THREATS, ids=str)
@pytest.mark.parametrize("steps", [1, 4])
def test_points_lie_in_ball_and_box(trained, digits, threat, steps):
    x, y = digits.x_test[:64], digits.y_test[:64]
    adv = drawn(lambda: inner_pgd(trained, x, y, threat, steps=steps))
    lengths = (adv - x).flatten(1).double().norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[threat.norm], dim=1)
    assert float(lengths.max()) <= threat.eps * (1 + 1e-6)
    if threat.box:
        assert float(adv.min()) >= 0
        assert float(adv.max()) <= 1
    assert not torch.equal(adv, x)


@pytest.mark.parametrize("threat", THREATS[:2], ids=str)
def test_it_raises_the_loss_nearly_as_pgd_does(trained, digits, threat):
    x, y = digits.x_test[:200], digits.y_test[:200]
    loss = {
        name: cross_entropy(trained(adv), y).mean().item()
        for name, adv in (
            ("clean", x),
            ("inner", drawn(lambda: inner_pgd(trained, x, y, threat, steps=10))),
            ("pgd", pgd(trained, x, y, threat, steps=10, drop_fallen=False)),
        )
    }
    assert loss["inner"] - loss["clean"] > 0.9 * (loss["pgd"] - loss["clean"])


def test_each_step_is_one_pass_forward_and_one_backward():
    passes = {"forward": 0, "backward": 0}

    class Watched(nn.Linear):
        def forward(self, x):
            passes["forward"] += 1
            out = super().forward(x)
            out.register_hook(lambda gradient: passes.update(backward=passes["backward"] + 1))
            return out

    model = Watched(4, 3).train()
    inner_pgd(model, torch.rand(5, 4), torch.zeros(5, dtype=torch.long), Threat("linf", 0.1), steps=7)
    assert passes == {"forward": 7, "backward": 7}
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_one_step_is_that_of_fast_adversarial_training():
    """A linear model: from any start, 1.25 eps along the sign, cut back to the ball."""
    model = nn.Linear(2, 2, bias=False)
    model.weight.data.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
    x, y, eps = torch.full((200, 2), 0.5), torch.zeros(200, dtype=torch.long), 0.1
    adv = drawn(lambda: inner_pgd(model, x, y, Threat("linf", eps), steps=1))
    start = drawn(lambda: (2 * torch.rand_like(x) - 1) * eps)
    expected = 0.5 + (start + 1.25 * eps * torch.tensor([-1.0, 1.0])).clamp(-eps, eps)
    torch.testing.assert_close(adv, expected)


def test_the_same_global_seed_gives_the_same_points(trained, digits):
    x, y = digits.x_test[:16], digits.y_test[:16]
    first, second, other = (
        drawn(lambda: inner_pgd(trained, x, y, Threat("l2", 0.5), steps=2), seed) for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
