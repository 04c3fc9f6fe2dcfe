"""PGD, against plain loops, closed forms and its own promises."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.threats import diagonal
from pinchpoint.attack import Threat, cross_entropy, margin, pgd
from pinchpoint.evaluate import within


def gradient_of(model, point, label):
    leaf = point.clone().requires_grad_(True)
    return torch.autograd.grad(cross_entropy(model(leaf[None]), label[None]).sum(), leaf)[0]


def by_hand(model, x, y, start, norm, eps, steps, size, momentum):
    """Dong et al. 2018, Algorithm 1, for one sample: g = mu g + grad / ||grad||_1. Returns every point evaluated."""
    point, velocity, points = start, torch.zeros_like(x), [start]
    for _ in range(steps):
        gradient = gradient_of(model, point, y)
        velocity = momentum * velocity + gradient / gradient.abs().sum()
        if norm == "linf":
            point = (point + size * velocity.sign()).clamp(x - eps, x + eps)
        else:
            point = point + size * velocity / velocity.norm()
            delta = point - x
            point = x + delta * min(1.0, eps * (1 - 1e-6) / float(delta.norm()))
        point = point.clamp(0, 1)
        points.append(point)
    return points


@pytest.mark.parametrize("random_start", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.5)])
def test_every_iterate(small_net, norm, eps, momentum, random_start):
    net, threat, steps, size = small_net(6, dtype=torch.float64), Threat(norm, eps), 12, 0.11
    x = torch.tensor(np.random.default_rng(0).uniform(size=(5, 6)))
    y = net(x).argmax(1)
    asked = []
    hook = net.register_forward_pre_hook(lambda _, inputs: asked.append(inputs[0].detach().clone()))
    options = {"momentum": momentum, "random_start": random_start, "drop_fallen": False, "seed": 3}
    result = pgd(net, x, y, threat, steps=steps, step_size=size, **options)
    hook.remove()
    start = threat.random_start(x, torch.Generator().manual_seed(3)) if random_start else x
    for row in range(len(x)):
        points = by_hand(net, x[row], y[row], start[row], norm, eps, steps, size, momentum)
        np.testing.assert_allclose(torch.stack(asked[1:])[:, row].numpy(), torch.stack(points).numpy(), atol=1e-12)
        losses = [cross_entropy(net(point[None]), y[row : row + 1]).item() for point in (x[row], *points)]
        assert cross_entropy(net(result[row : row + 1]), y[row : row + 1]).item() == pytest.approx(max(losses), 1e-12)


def test_the_default_steps_add_up_to_four_budgets(small_net):
    net, x = small_net(6), torch.full((2, 6), 0.5)
    y, threat = net(x).argmax(1), Threat("linf", 0.2)
    plain = pgd(net, x, y, threat, steps=10, drop_fallen=False)
    assert torch.equal(plain, pgd(net, x, y, threat, steps=10, step_size=4.0 * 0.2 / 10, drop_fallen=False))


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_the_best_attack_on_a_linear_model(norm, dual):
    weight = np.random.default_rng(1).normal(size=(2, 8))
    model = nn.Linear(8, 2, bias=False, dtype=torch.float64)
    model.weight.data.copy_(torch.tensor(weight))
    x, y = torch.tensor(np.random.default_rng(2).normal(size=(4, 8))), torch.zeros(4, dtype=torch.long)
    # straight from x: a fixed step slides along the l2 sphere from elsewhere and comes near the best point only slowly
    options = {"momentum": 0.9, "random_start": False, "drop_fallen": False, "objective": margin}
    x_adv = pgd(model, x, y, Threat(norm, 0.3, box=None), steps=20, **options)
    towards = weight[1] - weight[0]
    best = x.numpy() @ towards + 0.3 * np.linalg.norm(towards, dual)
    np.testing.assert_allclose(margin(model(x_adv), y).detach().numpy(), best, rtol=0, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2"]),
    share=st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    shape=st.sampled_from([(5,), (1, 3, 3), (2, 3, 2, 2)]),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    edges=st.booleans(),
    momentum=st.sampled_from([0.0, 1.0]),
    random_start=st.booleans(),
    drop=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_example_lies_in_ball_and_box(
    small_net, assert_inside, norm, share, shape, batch, dtype, edges, momentum, random_start, drop, seed
):
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    x = x.round() if edges else x
    net, threat = small_net(math.prod(shape), dtype=dtype), Threat(norm, share * diagonal(norm, shape))
    options = {"momentum": momentum, "random_start": random_start, "drop_fallen": drop, "seed": seed}
    x_adv = pgd(net, x, net(x).argmax(1), threat, steps=5, restarts=2, **options)
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    if threat.eps == 0:
        assert torch.equal(x_adv, x)


def test_samples_that_are_wrong_already_stay_as_they_are(small_net):
    net, x = small_net(6), torch.rand(4, 6)
    y = (net(x).argmax(1) + 1) % 4
    assert torch.equal(pgd(net, x, y, Threat("linf", 0.2)), x)


def test_dropping_fallen_samples_changes_no_verdict(trained, sample):
    x, y = sample
    threat, options = Threat("linf", 0.07), {"steps": 20, "restarts": 2, "objective": margin, "seed": 3}
    # with the margin, the point of the largest objective is misclassified exactly where any point was
    kept, dropped = (
        trained(pgd(trained, x, y, threat, drop_fallen=drop, **options)).argmax(1) != y for drop in (False, True)
    )
    assert 20 < int(dropped.sum()) < 130
    assert torch.equal(kept, dropped)


def test_restarts_never_lose(trained, sample):
    x, y = sample
    once, more = (
        trained(pgd(trained, x, y, Threat("l2", 0.3), steps=3, restarts=r, seed=2)).argmax(1) != y for r in (1, 4)
    )
    assert (more | ~once).all()
    assert int(more.sum()) > int(once.sum())


def test_without_random_start_the_seed_does_not_matter(trained, sample):
    x, y = sample[0][:30], sample[1][:30]
    first, other = (pgd(trained, x, y, Threat("linf", 0.05), random_start=False, seed=seed) for seed in (0, 1))
    assert torch.equal(first, other)
    assert not torch.equal(first, pgd(trained, x, y, Threat("linf", 0.05), seed=1))
