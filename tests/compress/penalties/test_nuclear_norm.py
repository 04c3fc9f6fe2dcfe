"""The followed polar factor against the SVD's, and a training run against exact mode."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from oracles.as_user import refused
from pinchpoint.compress import NuclearNorm
from pinchpoint.compress.penalties import polar
from pinchpoint.compress.penalties.polar import HEAD, SPARE, PolarMemory, polar_factor
from pinchpoint.errors import CheckpointError, ConfigError


def with_values(h, d, values, seed=0):
    """A matrix with these singular values, and its polar factor on their range."""
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.standard_normal((h, len(values))))[0]
    right = np.linalg.qr(rng.standard_normal((d, len(values))))[0]
    return torch.from_numpy((left * values) @ right.T), torch.from_numpy(left @ right.T)


SPECTRA = {
    "equal": np.ones(30),
    "random": np.random.default_rng(0).uniform(0.1, 2.0, 30),
    "ill-conditioned": np.logspace(0, -6, 30),
    "low rank": np.linspace(3.0, 1.0, 4),
    "tiny": 1e-60 * np.linspace(3.0, 1.0, 30),
    "huge": 1e60 * np.linspace(3.0, 1.0, 30),
}


@pytest.mark.parametrize("d", [30, 70])
@pytest.mark.parametrize("name", SPECTRA)
def test_the_polar_factor_is_the_svds(name, d):
    """Up to sqrt(eps): what rounding leaves in directions without a singular value is divided by the floor."""
    matrix, expected = with_values(30, d, SPECTRA[name])
    atol = 1e-4 if name == "ill-conditioned" else 1.5e-8
    torch.testing.assert_close(polar_factor(matrix), expected, rtol=0, atol=atol)


def test_below_the_floor_directions_count_by_their_share_of_it():
    """In float32 the floor is about 1.1e-3 of the largest singular value."""
    matrix, _ = with_values(20, 20, np.array([1.0, 0.5, 1e-4, 1e-5]))
    found = torch.linalg.svdvals(polar_factor(matrix.float()))
    floor = (10 * torch.finfo(torch.float32).eps) ** 0.5
    np.testing.assert_allclose(found[:4], [1.0, 1.0, 1e-4 / floor, 1e-5 / floor], rtol=2e-2)
    assert torch.equal(polar_factor(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", [(140, 140), (140, 200), (200, 140)])
def test_the_first_value_and_gradient_are_exact(shape):
    torch.manual_seed(0)
    layer = nn.Linear(shape[1], shape[0], bias=False).double()
    model = nn.Sequential(layer, nn.Linear(shape[0], 2).double())
    ends = []
    for mode in ("exact", "fast"):
        value = NuclearNorm(0.5, mode=mode)(model)
        ends.append((value.item(), torch.autograd.grad(value, layer.weight)[0]))
    assert ends[0][0] == pytest.approx(0.5 * np.linalg.norm(layer.weight.detach().numpy(), "nuc"), rel=1e-12)
    assert ends[1][0] == pytest.approx(ends[0][0], rel=1e-8)
    torch.testing.assert_close(ends[1][1], ends[0][1], rtol=0, atol=1e-7)


def test_convolutions_are_followed_as_matrices():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(20, 140, 3, bias=False), nn.Linear(2, 2))
    value = NuclearNorm(1.0)(model)
    assert value.item() == pytest.approx(float(np.linalg.norm(model[1].weight.detach().flatten(1), "nuc")), rel=1e-4)
    value.backward()
    assert torch.linalg.matrix_norm(model[1].weight.grad.flatten(1), 2) < 1 + 1e-4


def test_between_refreshes_the_value_is_a_lower_bound_and_the_factor_stays():
    matrix, _ = with_values(150, 160, np.linspace(2.0, 1.0, 150))
    memory = PolarMemory(steps=1000, reference=matrix.clone())
    first = memory.factor(matrix, refresh=5)
    moved = matrix + 1e-3 * torch.from_numpy(np.random.default_rng(1).standard_normal((150, 160)))
    for _ in range(4):
        assert memory.factor(moved, refresh=5) is first
        value = float((first * moved).sum())
        exact = float(np.linalg.norm(moved.numpy(), "nuc"))
        assert exact * (1 - 1e-3) < value < exact
    assert not torch.equal(memory.factor(moved, refresh=5), first)  # due again
    assert memory.basis is None


def test_a_collapsed_tail_is_pushed_along_itself_and_the_head_followed():
    rng = np.random.default_rng(0)
    head, _ = with_values(160, 180, np.linspace(4.0, 1.0, 20))
    tail = 1e-4 * torch.from_numpy(rng.standard_normal((160, 180)))
    memory = PolarMemory(steps=1000, reference=torch.zeros(160, 180, dtype=torch.float64))
    memory.factor(head + tail, refresh=5)
    assert memory.basis is not None
    assert 20 + SPARE <= memory.basis.shape[1] < HEAD
    for _ in range(5):  # the head turns a little, the tail is drawn anew; the last step is one that follows
        tail = 1e-4 * torch.from_numpy(rng.standard_normal((160, 180)))
        head = head + 0.01 * head @ torch.from_numpy(rng.standard_normal((180, 180)) / 180**0.5)
        factor = memory.factor(head + tail, refresh=5)
    left, sigma, right = (torch.from_numpy(part) for part in np.linalg.svd((head + tail).numpy(), full_matrices=False))
    along = torch.einsum("ij,ik,kj->k", factor, left, right)
    np.testing.assert_allclose(along[:20], 1.0, atol=5e-3)
    assert 0.4 < along[20:].mean() < 1.1  # the exact factor would have 1
    assert float((factor * (head + tail)).sum()) == pytest.approx(float(sigma.sum()), rel=5e-3)
    assert torch.linalg.matrix_norm(factor, 2) < 2.5


def test_refreshes_come_often_at_first(monkeypatch):
    """At every step up to 16, after an eighth of the steps so far then, after 60 at last."""
    seen = []
    eigen = polar._eigen
    monkeypatch.setattr(polar, "_eigen", lambda wide: seen.append(memory.steps) or eigen(wide))
    memory, matrix = PolarMemory(), torch.eye(HEAD + 2)
    for _ in range(1000):
        memory.factor(matrix, refresh=60)
    assert seen[:18] == [*range(17), 18]
    assert np.diff(seen).max() == 60
    assert len(seen) < 60


def trained(mode, steps, seed, strength=5e-3):
    """A teacher of rank 3 learnt by 144-150-4 with a penalty that leaves little more."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 144, generator=draw)
    y = torch.tanh(x @ torch.randn(144, 3, generator=draw) / 12) @ torch.randn(3, 4, generator=draw)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(144, 150), nn.ReLU(), nn.Linear(150, 4))
    penalty = NuclearNorm(strength, mode=mode)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for rows in torch.stack([torch.randperm(512, generator=draw)[:64] for _ in range(steps)]):
        optimizer.zero_grad()
        (nn.functional.mse_loss(model(x[rows]), y[rows]) + penalty(model)).backward()
        optimizer.step()
        schedule.step()
    return nn.functional.mse_loss(model(x), y).item(), torch.linalg.svdvals(model[0].weight.detach()), penalty


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_training_ends_where_exact_mode_ends(seed):
    (loss, exact, _), (fast_loss, fast, penalty) = trained("exact", 1500, seed), trained("fast", 1500, seed)
    assert penalty.memory["0"].basis is not None  # both regimes were seen: it starts in the full one
    assert fast_loss == pytest.approx(loss, rel=0.02)
    assert (fast - exact).norm() < 0.02 * exact.norm()
    assert exact[30] < 0.01 * exact[0]  # the penalty did something


def test_a_run_that_is_cut_off_goes_on_bit_for_bit():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(150, 140), nn.Linear(140, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)

    def go_on(model, optimizer, penalty, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            (penalty + NuclearNorm(0.0))(model).backward()
            optimizer.step()

    penalty = NuclearNorm(0.1, refresh=4)
    go_on(model, optimizer, penalty, 19)
    kept, saved = copy.deepcopy(model), penalty.state_dict()
    go_on(model, optimizer, penalty, 7)
    resumed = NuclearNorm(0.1, refresh=4)
    resumed.load_state_dict(saved)
    go_on(kept, torch.optim.SGD(kept.parameters(), lr=0.3), resumed, 7)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), kept.parameters(), strict=True))
    forgetful = (NuclearNorm(0.1) + NuclearNorm(0.1, refresh=4)).state_dict()
    assert forgetful == {}


def test_looking_is_no_step():
    model = nn.Sequential(nn.Linear(150, 140), nn.Linear(140, 2))
    penalty = NuclearNorm(1.0)
    with torch.no_grad():
        assert penalty(model).item() == pytest.approx(float(np.linalg.norm(model[0].weight, "nuc")), rel=1e-4)
        assert penalty.memory["0"].steps == 0
        penalty_value = penalty(model)
    assert penalty(model).item() == pytest.approx(penalty_value.item(), rel=1e-6)
    assert penalty.memory["0"].steps == 1


def test_what_is_refused():
    with refused(ConfigError, "a nuclear norm's mode is fast or exact, but got svd; use fast."):
        NuclearNorm(1.0, mode="svd")
    with refused(ConfigError, "a nuclear norm is refreshed after one step or more, but got 0; use 60."):
        NuclearNorm(1.0, refresh=0)
    penalty = NuclearNorm(1.0)
    penalty(nn.Sequential(nn.Linear(150, 140), nn.Linear(140, 2)))
    text = "a fast nuclear norm follows one model's layers, but got shape (130, 150) for '0' after (140, 150); "
    with refused(CheckpointError, text + "make a new NuclearNorm for each model."):
        penalty(nn.Sequential(nn.Linear(150, 130), nn.Linear(130, 2)))
    holds = "the memory of a nuclear norm holds counts, polar, basis, reference"
    with refused(CheckpointError, f"{holds}, but got velocity; resume with the same penalties."):
        penalty.load_state_dict({"0/counts": torch.tensor([1, 2]), "0/velocity": torch.zeros(2)})
