"""Square attack: windows and patterns against loops, verdicts against a library, queries counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracles.threats import diagonal
from pinchpoint.attack import Threat, square
from pinchpoint.attack.square_windows import Window, covered, image_shape, pattern, place, tiles, window_size
from pinchpoint.evaluate import robust_accuracy, within

# --- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "seen"),
    [
        ((3, 8, 9), (3, 8, 9)),
        ((2, 5, 4, 3), (10, 4, 3)),
        ((7, 30), (1, 7, 30)),
        ((64,), (1, 8, 8)),
        ((48,), (3, 4, 4)),
        ((9,), (1, 1, 9)),
        ((50,), (1, 1, 50)),
    ],
)
def test_inputs_are_seen_as_images(shape, seen):
    assert image_shape(shape) == seen


def test_the_papers_schedule():
    p = 0.8
    expected = {0: p, 10: p, 11: p / 2, 50: p / 2, 51: p / 4, 201: p / 8, 501: p / 16, 1001: p / 32, 2001: p / 64}
    assert {query: covered(query) for query in expected} == pytest.approx(expected)
    assert covered(4999) == pytest.approx(p / 128)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    share=st.floats(1e-4, 0.8),
    odd=st.booleans(),
    seed=st.integers(0, 99),
)
def test_windows_fit_and_cover_their_share(height, width, share, odd, seed):
    size = window_size(height, width, share, odd=odd)
    assert 1 <= size[0] <= height
    assert 1 <= size[1] <= width
    if not odd and share * height * width >= 4:
        assert 0.5 <= size[0] * size[1] / (share * height * width) <= 2
    window = place(size, height, width, torch.Generator().manual_seed(seed))
    assert window.of(torch.zeros(1, 1, height, width)).shape == (1, 1, *size)


def test_windows_reach_every_entry():
    generator, seen = torch.Generator().manual_seed(0), torch.zeros(1, 1, 4, 5)
    for _ in range(200):
        place((1, 2), 4, 5, generator).of(seen).fill_(1.0)
    assert seen.all()


def naive_bump(height, width, decay):
    """Squares of 1, 3, 5, ... entries a side around the centre, the k-th added with weight k^-decay."""
    values = np.zeros((height, width))
    for k in range(1, max(height // 2, width // 2) + 2):
        for i in range(height):
            for j in range(width):
                if abs(i - height // 2) < k and abs(j - width // 2) < k:
                    values[i, j] += k**-decay
    return values


@pytest.mark.parametrize(("height", "width"), [(3, 3), (5, 5), (1, 6), (2, 7), (1, 1), (6, 4)])
@pytest.mark.parametrize("decay", [2, 4])
def test_patterns_are_two_opposite_bumps(height, width, decay):
    top, left = height // 2, width // 2
    above = np.concatenate([naive_bump(top, width, decay), -naive_bump(height - top, width, decay)])
    beside = np.concatenate([naive_bump(height, left, decay), -naive_bump(height, width - left, decay)], 1)
    upright, lying = pattern(height, width, decay), pattern(height, width, decay, upright=False)
    np.testing.assert_allclose(upright.numpy(), above if height > 1 else beside, rtol=1e-6)
    np.testing.assert_allclose(lying.numpy(), beside if width > 1 else above, rtol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (8, 8), (3, 2), (1, 30), (17, 6)])
def test_tiles_do_not_overlap(height, width):
    count = torch.zeros(1, 1, height, width)
    for tile in tiles(height, width):
        assert isinstance(tile, Window)
        tile.of(count).add_(1.0)
    assert count.max() == 1
    assert count.mean() >= 0.6


# --- the attack ------------------------------------------------------------------------------------------------------


class Asked(nn.Module):
    """A model without gradient that counts how often each input row is asked."""

    def __init__(self, model):
        super().__init__()
        self.model, self.rows = model, []

    def forward(self, x):
        self.rows.append(len(x))
        return self.model(x.detach().clone()).detach()


@settings(max_examples=40, deadline=None)
@given(
    norm=st.sampled_from(["linf", "l2", "l1"]),
    share=st.one_of(st.just(0.0), st.floats(1e-6, 1)),
    shape=st.sampled_from([(1,), (5,), (16,), (1, 3, 3), (2, 3, 4), (2, 3, 2, 2)]),
    batch=st.integers(1, 4),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    edges=st.booleans(),
    wrong=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_every_example_lies_in_ball_and_box(
    small_net, assert_inside, norm, share, shape, batch, dtype, edges, wrong, seed
):
    threat = Threat(norm, share * diagonal(norm, shape))
    x = torch.rand((batch, *shape), generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if edges:
        x = x.round()
    net = Asked(small_net(math.prod(shape), dtype=dtype))
    y = (net(x).argmax(1) + wrong) % 4
    net.rows.clear()
    x_adv = square(net, x, y, threat, queries=30, seed=seed)
    assert sum(net.rows) <= 31 * batch
    assert_inside(x_adv, x, threat)
    assert within(x_adv, x, threat).all()
    if threat.eps == 0 or wrong:
        assert torch.equal(x_adv, x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_the_batch_changes_no_example(contested, norm):
    net, x, y, eps = contested
    threat = Threat(norm, eps[norm])
    whole = square(net, x, y, threat, queries=60, seed=3)
    assert 0 < (net(whole).argmax(1) != y).sum() < 9
    parts = [square(net, x[rows], y[rows], threat, queries=60, seed=3) for rows in torch.arange(9).split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-9)
    assert not torch.equal(whole, square(net, x, y, threat, queries=60, seed=4))


def test_linf_search_finds_the_corner_of_a_linear_model():
    weight = torch.tensor(np.random.default_rng(1).normal(size=(2, 12)))
    model = nn.Linear(12, 2, bias=False, dtype=torch.float64)
    model.weight.data.copy_(weight)
    x = torch.tensor(np.random.default_rng(2).uniform(size=(5, 12)))
    y = model(x).argmax(1)
    towards = weight[1 - y] - weight[y]
    corner = torch.where(towards > 0, (x + 0.05).clamp_max(1), (x - 0.05).clamp_min(0))
    stands = model(corner).argmax(1) == y  # those that fall before they reach it stay where they fell
    assert stands.sum() >= 2
    x_adv = square(model, x, y, Threat("linf", 0.05), queries=3000)
    np.testing.assert_allclose(x_adv[stands].numpy(), corner[stands].numpy(), rtol=0, atol=1e-12)
    assert (model(x_adv)[~stands].argmax(1) != y[~stands]).all()


@pytest.mark.parametrize(
    ("norm", "eps"),
    [("linf", 0.1), pytest.param("l2", 0.6, marks=pytest.mark.slow), pytest.param("l1", 2.0, marks=pytest.mark.slow)],
)
@pytest.mark.long
def test_at_least_as_many_fall_as_to_the_librarys(small_cnn, digits, norm, eps):
    from pyautoattack.square import SquareAttack

    x, y, threat, theirs, ours = digits.x_test[:100], digits.y_test[:100], Threat(norm, eps), [], []
    options = {
        "norm": {"linf": "Linf", "l2": "L2", "l1": "L1"}[norm],
        "eps": eps,
        "n_queries": 400,
        "resc_schedule": False,
    }
    for seed in range(2):
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            x_adv = SquareAttack(small_cnn, seed=seed, device="cpu", **options).perturb(x, y)
        theirs.append(robust_accuracy(small_cnn, x, y, threat, known=x_adv, attacks={}).robust_accuracy)
        attack = {"square": lambda *call, seed=seed: square(*call, queries=400, seed=seed)}
        ours.append(robust_accuracy(small_cnn, x, y, threat, attacks=attack).robust_accuracy)
    print(f"\n{norm} {eps}: pyautoattack {theirs}, ours {ours}")
    assert 0.1 < min(theirs) < 0.95
    assert np.median(ours) <= max(theirs)
