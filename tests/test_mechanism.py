"""Alignment against a naive SVD, random directions against sqrt(k / d), amplification by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.mechanism import alignment, baseline, relative_change, right_singular_vectors, trace

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (5, 5), (1, 4)])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_alignment_against_numpy(shape, scale):
    matrix, a = scale * RNG.normal(size=shape), RNG.normal(size=(7, shape[1]))
    v = np.linalg.svd(matrix)[2]
    for k in range(1, min(shape) + 1):
        expected = [np.sqrt(sum((v[i] @ row) ** 2 for i in range(k))) / np.sqrt((row**2).sum()) for row in a]
        result = alignment(torch.tensor(matrix), torch.tensor(a), k)
        np.testing.assert_allclose(result.numpy(), expected, atol=1e-12)
        np.testing.assert_allclose(alignment(torch.tensor(matrix), 1e-9 * torch.tensor(a), k), expected, atol=1e-12)


def test_alignment_of_the_dominant_direction_and_of_zero():
    matrix = torch.tensor(RNG.normal(size=(4, 6)))
    v = torch.linalg.svd(matrix).Vh
    assert alignment(matrix, torch.stack([v[0], v[1], v[5], torch.zeros(6)]), 1).tolist() == pytest.approx([1, 0, 0, 0])


@pytest.mark.parametrize("k", [0, 5])
def test_more_directions_than_there_are(k):
    with pytest.raises(ModelError, match=rf"k must lie in 1 \.\.\. 4, but got {k}; choose fewer directions"):
        right_singular_vectors(torch.ones(4, 6), k)


@pytest.mark.parametrize(("k", "d"), [(1, 20), (4, 64), (10, 30)])
def test_random_directions_meet_the_baseline(k, d):
    matrix = torch.tensor(RNG.normal(size=(max(k, 12), d)))
    a = torch.tensor(np.random.default_rng(1).normal(size=(20000, d)))
    rms = float(alignment(matrix, a, k).pow(2).mean().sqrt())
    # k/d is the mean of a Beta(k/2, (d-k)/2); four standard errors
    error = 4 * math.sqrt(2 * k * (d - k) / (d * d * (d + 2)) / 20000)
    assert rms**2 == pytest.approx(k / d, abs=error)
    assert baseline(k, d) == pytest.approx(math.sqrt(k / d))


def test_relative_change():
    z = torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 0.0], [1e-30, 0.0]])
    z_adv = torch.tensor([[3.0, 5.0], [0.0, 0.0], [1.0, 0.0], [2e-30, 0.0]])
    assert relative_change(z, z_adv).tolist() == pytest.approx([0.2, 0.0, math.inf, 1.0])


def hand_net():
    """h = relu([[2, 0], [0, 1], [1, -1]] x), logits = [[1, 0, 1], [0, 3, 0]] h."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    net[0].weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    net[2].weight.data.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 3.0, 0.0]]))
    return net


def test_trace_of_a_net_computed_by_hand():
    x, x_adv = torch.tensor([[1.0, 2.0], [0.5, 0.5]]), torch.tensor([[1.0, 3.0], [0.5, 0.5]])
    first, second = trace(hand_net(), x, x_adv, k_share=0.5)  # the second pair is equal and left out
    assert (first.name, second.name) == ("0", "2")
    # x = (1, 2) -> (2, 2, -1) -> (2, 2, 0) -> (2, 6);  x_adv = (1, 3) -> (2, 3, -2) -> (2, 3, 0) -> (2, 9)
    assert first.source_amplification == pytest.approx(1 / math.sqrt(5))
    assert first.amplification == pytest.approx(math.sqrt(2) / 3)
    assert second.source_amplification == pytest.approx(1 / math.sqrt(8))
    assert second.amplification == pytest.approx(3 / math.sqrt(40))
    assert (first.k, second.k) == (1, 1)
    assert first.baseline == pytest.approx(math.sqrt(1 / 2))
    assert second.baseline == pytest.approx(math.sqrt(1 / 3))
    # W1'W1 = [[5, -1], [-1, 2]]: top eigenvector along (1, 5 - lambda), lambda = (7 + sqrt 13) / 2; a = (0, 1)
    slope = 5 - (7 + math.sqrt(13)) / 2
    assert first.alignment == pytest.approx(abs(slope) / math.hypot(1, slope))
    # W2 has singular values 3 (direction e2) and sqrt 2; the perturbation of its input is e2
    assert second.alignment == pytest.approx(1.0)


def test_trace_sees_low_rank_layers_and_images():
    net = nn.Sequential(nn.Flatten(), LowRankLinear(16, 12, rank=3), nn.ReLU(), nn.Linear(12, 4))
    x = torch.rand(5, 1, 4, 4)
    steps = trace(net, x, x + 0.1)
    assert [(step.name, step.k) for step in steps] == [("1", 2), ("3", 1)]
    v = np.linalg.svd((net[1].a @ net[1].b).detach().double().numpy())[2][:2]
    a = (x + 0.1 - x).double().numpy().reshape(5, -1)
    expected = np.linalg.norm(a @ v.T, axis=1) / np.linalg.norm(a, axis=1)
    assert steps[0].alignment == pytest.approx(expected.mean(), abs=1e-5)


class Tokens(nn.Module):
    """A transformer's way with linear layers: one is applied to (batch, tokens, d)."""

    def __init__(self):
        super().__init__()
        self.each, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.each(x).mean(1))


def test_layers_applied_to_tokens_are_left_out():
    x = torch.rand(3, 5, 4)
    assert [step.name for step in trace(Tokens(), x, x + 0.1)] == ["head"]


def test_trace_says_why_it_cannot():
    x = torch.rand(3, 2)
    with pytest.raises(
        ModelError, match=r"at least one perturbed input must differ from the input, but got none; use a"
    ):
        trace(hand_net(), x, x)
    with pytest.raises(
        ModelError, match=r"a trace needs fully connected layers, but got none; give a model with nn.Lin"
    ):
        trace(nn.ReLU(), x, x + 1)


def test_samples_that_start_from_a_zero_representation_are_left_out():
    x, x_adv = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    alone = trace(hand_net(), x[1:], x_adv[1:], k_share=0.5)
    both = trace(hand_net(), x, x_adv, k_share=0.5)
    assert [step.amplification for step in both] == pytest.approx([step.amplification for step in alone])
    assert all(math.isfinite(step.source_amplification) for step in both)
    with pytest.raises(
        ModelError, match="not zero, but got zero at the layer '0' for every clean input; look for dead"
    ):
        trace(hand_net(), x[:1], x_adv[:1])


def test_trace_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, rng = torch.rand(6, 4), torch.random.get_rng_state()
    assert trace(net, x, x + 0.1) == trace(net, x, x + 0.1)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name])
