"""Alignment against a naive SVD, random directions against sqrt(k / d), amplification by hand, gains against loops."""

from __future__ import annotations

import dataclasses
import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from pinchpoint.compress import LowRankLinear
from pinchpoint.errors import ModelError
from pinchpoint.mechanism import alignment, baseline, gains, right_singular_vectors
from pinchpoint.mechanism.dominant_energy import dominant_directions
from pinchpoint.mechanism.layer_hooks import sample_dimension

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


def hand_net():
    """h = relu([[2, 0], [0, 1], [1, -1]] x), logits = [[1, 0, 1], [0, 3, 0]] h."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), nn.ReLU(), nn.Linear(3, 2, bias=False))
    net[0].weight.data.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, -1.0]]))
    net[2].weight.data.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 3.0, 0.0]]))
    return net


def test_gains_of_a_net_computed_by_hand():
    x, x_adv = torch.tensor([[1.0, 2.0], [0.5, 0.5]]), torch.tensor([[1.0, 3.0], [0.5, 0.5]])
    first, second = gains(hand_net(), x, x_adv, k_share=0.5)  # the second pair is equal and left out
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


def test_gains_sees_low_rank_layers_and_images():
    net = nn.Sequential(nn.Flatten(), LowRankLinear(16, 12, rank=3), nn.ReLU(), nn.Linear(12, 4))
    x = torch.rand(5, 1, 4, 4)
    steps = gains(net, x, x + 0.1)
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


def test_layers_applied_to_tokens_are_followed_token_by_token():
    x = torch.rand(3, 5, 4)
    assert [step.name for step in gains(Tokens(), x, x + 0.1)] == ["each", "head"]


def test_gains_says_why_it_cannot():
    x = torch.rand(3, 2)
    with pytest.raises(
        ModelError, match=r"at least one perturbed input must differ from the input, but got none; use a"
    ):
        gains(hand_net(), x, x)
    with pytest.raises(ModelError, match="at least one linear or convolutional layer, but got ReLU; give a network"):
        gains(nn.ReLU(), x, x + 1)


def test_samples_that_start_from_a_zero_representation_are_left_out():
    x, x_adv = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    alone = gains(hand_net(), x[1:], x_adv[1:], k_share=0.5)
    both = gains(hand_net(), x, x_adv, k_share=0.5)
    assert [step.amplification for step in both] == pytest.approx([step.amplification for step in alone])
    assert all(math.isfinite(step.source_amplification) for step in both)
    with pytest.raises(ModelError, match="gains need a layer that acts"):
        gains(hand_net(), x[:1], x_adv[:1])


def test_gains_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, rng = torch.rand(6, 4), torch.random.get_rng_state()
    assert gains(net, x, x + 0.1) == gains(net, x, x + 0.1)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name])


def ratio(z, moved):
    """Naive: ||moved - z|| / ||z||, sample by sample."""
    z, moved = np.asarray(z), np.asarray(moved)
    return np.array([np.sqrt(((b - a) ** 2).sum()) / np.sqrt((a**2).sum()) for a, b in zip(z, moved, strict=True)])


def log_gain(source, target):
    """Naive: mean log of how much larger the relative change is behind a layer. Both are (clean, moved)."""
    return float(np.log(ratio(*target) / ratio(*source)).mean())


def by_name(found):
    return {layer.name: layer for layer in found}


def test_gains_of_a_linear_network_have_a_closed_form():
    w = [RNG.normal(size=shape) for shape in ((7, 5), (6, 7), (3, 6))]
    net = nn.Sequential(*(nn.Linear(m.shape[1], m.shape[0], bias=False) for m in w)).double()
    for layer, matrix in zip(net, w, strict=True):
        layer.weight.data.copy_(torch.tensor(matrix))
    x, a = RNG.normal(size=(9, 5)), 0.1 * RNG.normal(size=(9, 5))
    found = gains(net, torch.tensor(x), torch.tensor(x + a), norm="l2")
    before, product = np.eye(5), np.eye(5)
    for layer, matrix in zip(found, w, strict=True):
        before, product = product, matrix @ product
        stretch = [np.linalg.norm(product @ one) / np.linalg.norm(before @ one) for one in a]  # of the change
        own = [np.linalg.norm(product @ one) / np.linalg.norm(before @ one) for one in x]  # of what it is relative to
        assert layer.gain == pytest.approx(np.mean(np.log(stretch)) - np.mean(np.log(own)), rel=1e-9)
        assert layer.amplification == pytest.approx(np.mean(ratio(x @ product.T, (x + a) @ product.T)), rel=1e-9)
        expected = np.linalg.norm(a @ before.T @ np.linalg.svd(matrix)[2][0].T[:, None], axis=1)
        expected = expected / np.linalg.norm(a @ before.T, axis=1)
        assert layer.alignment == pytest.approx(expected.mean(), rel=1e-9)
    total = np.log(ratio(x @ product.T, (x + a) @ product.T) / ratio(x, x + a)).mean()
    assert sum(layer.gain for layer in found) == pytest.approx(total, rel=1e-9)  # along a chain logs add up


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_random_gain_is_that_of_random_directions(norm):
    matrix = np.diag([5.0, 2.0, 1.0, 0.5])
    net = nn.Sequential(nn.Linear(4, 4, bias=False)).double()
    net[0].weight.data.copy_(torch.tensor(matrix))
    x = np.tile([0.0, 0.0, 1.0, 0.0], (4000, 1))  # its own length stays
    found = gains(net, torch.tensor(x), torch.tensor(x + np.array([0.1, 0.0, 0.0, 0.0])), norm=norm)[0]
    assert found.gain == pytest.approx(np.log(5))
    rng = np.random.default_rng(3)
    draws = rng.choice([-1.0, 1.0], (4000, 4)) if norm == "linf" else rng.normal(size=(4000, 4))
    logs = np.log(np.linalg.norm(draws @ matrix, axis=1) / np.linalg.norm(draws, axis=1))
    assert found.random_gain == pytest.approx(logs.mean(), abs=4 * logs.std() / 40 + 1e-9)


class Small(nn.Module):
    """A network with convolutions of all sorts: stride, groups, circular padding, dilation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.second = nn.Conv2d(4, 6, (3, 2), padding=(2, 1), dilation=(2, 1), groups=2, padding_mode="circular")
        self.back = nn.ConvTranspose2d(6, 2, 2, stride=2)
        self.head = nn.Linear(2, 3)

    def steps(self, x):
        a = self.first(x)
        b = self.norm(a).relu()
        c = self.second(b)
        d = self.back(c.relu())
        e = d.mean((2, 3))
        return {"first": (x, a), "second": (b, c), "back": (c.relu(), d), "head": (e, self.head(e))}

    def forward(self, x):
        return self.steps(x)["head"][1]


def patches(a, kernel, stride, dilation):
    """Naive: what a kernel sees of one padded input, position by position."""
    for top in range(0, a.shape[1] - (kernel[0] - 1) * dilation[0], stride[0]):
        for left in range(0, a.shape[2] - (kernel[1] - 1) * dilation[1], stride[1]):
            rows = [top + i * dilation[0] for i in range(kernel[0])]
            columns = [left + j * dilation[1] for j in range(kernel[1])]
            yield a[:, rows][:, :, columns]


def conv_alignment(weight, a, k, stride, dilation, groups):
    v = np.linalg.svd(weight.reshape(len(weight), -1))[2][:k]
    inside = whole = 0.0
    for patch in patches(a, weight.shape[2:], stride, dilation):
        for part in np.split(patch, groups):
            inside += ((v @ part.ravel()) ** 2).sum()
            whole += (part**2).sum()
    return np.sqrt(inside / whole)


def test_gains_and_alignment_of_convolutions_against_loops():
    net = Small().double().eval()
    net.norm.running_mean.normal_()
    x = torch.rand(5, 2, 8, 6, dtype=torch.float64)
    moved = x + 0.1 * torch.randn_like(x)
    found = by_name(gains(net, x, moved, k_share=0.5))
    clean, dirty = net.steps(x), net.steps(moved)
    assert list(found) == ["first", "second", "back", "head"]
    for name, layer in found.items():
        pairs = [[one[name][place].detach().numpy() for one in (clean, dirty)] for place in (0, 1)]
        assert layer.gain == pytest.approx(log_gain(*pairs), rel=1e-9)
        assert layer.source_amplification == pytest.approx(ratio(*pairs[0]).mean(), rel=1e-9)
    a = (moved - x).numpy()
    padded = np.pad(a, ((0, 0), (0, 0), (1, 1), (1, 1)))
    weight = net.first.weight.detach().numpy()
    expected = [conv_alignment(weight, one, 2, (2, 2), (1, 1), 1) for one in padded]
    assert found["first"].alignment == pytest.approx(np.mean(expected), rel=1e-9)
    a = (dirty["second"][0] - clean["second"][0]).detach().numpy()
    padded = np.pad(a, ((0, 0), (0, 0), (2, 2), (1, 1)), mode="wrap")
    weight = net.second.weight.detach().numpy()
    expected = [conv_alignment(weight, one, 3, (1, 1), (2, 1), 2) for one in padded]
    assert found["second"].alignment == pytest.approx(np.mean(expected), rel=1e-9)
    assert (found["second"].k, found["second"].baseline) == (3, pytest.approx(math.sqrt(3 / 12)))
    assert found["back"].alignment is None


def naive_attention(module, x):
    """(tokens, d) of one sample -> q, k, v, the heads side by side, and the output."""
    weight, bias = module.in_proj_weight.detach().numpy(), module.in_proj_bias.detach().numpy()
    q, k, v = (x @ part.T + b for part, b in zip(np.split(weight, 3), np.split(bias, 3), strict=True))
    heads = []
    for one_q, one_k, one_v in zip(*(np.split(part, module.num_heads, axis=1) for part in (q, k, v)), strict=True):
        scores = np.exp(one_q @ one_k.T / np.sqrt(one_q.shape[1]))
        heads.append(scores / scores.sum(1, keepdims=True) @ one_v)
    joined = np.concatenate(heads, axis=1)
    out = joined @ module.out_proj.weight.detach().numpy().T + module.out_proj.bias.detach().numpy()
    return q, k, v, joined, out


class Attends(nn.Module):
    """Attention of torch on tokens, with samples first or second."""

    def __init__(self, batch_first):
        super().__init__()
        self.batch_first = batch_first
        self.attn = nn.MultiheadAttention(8, 2, batch_first=batch_first)

    def forward(self, x):
        x = x if self.batch_first else x.transpose(0, 1)
        out = self.attn(x, x, x, need_weights=False)[0]
        return out.mean(1 if self.batch_first else 0)


@pytest.mark.parametrize("batch_first", [True, False])
def test_gains_of_attention_against_loops(batch_first):
    net = Attends(batch_first).double().eval()
    nn.init.normal_(net.attn.in_proj_bias)
    x = torch.randn(4, 5, 8, dtype=torch.float64)
    moved = x + 0.3 * torch.randn_like(x)
    found = by_name(gains(net, x, moved, k_share=0.4))
    assert list(found) == ["attn.q", "attn.k", "attn.v", "attn.out"]
    clean, dirty = (
        [np.stack(part) for part in zip(*(naive_attention(net.attn, one) for one in both.numpy()), strict=True)]
        for both in (x, moved)
    )
    for place, name in enumerate(("attn.q", "attn.k", "attn.v")):
        assert found[name].gain == pytest.approx(log_gain((x, moved), (clean[place], dirty[place])), rel=1e-9)
    assert found["attn.out"].gain == pytest.approx(log_gain((clean[3], dirty[3]), (clean[4], dirty[4])), rel=1e-9)
    v = np.linalg.svd(net.attn.in_proj_weight.detach().numpy()[8:16])[2][:4]
    a = (moved - x).numpy()
    expected = [np.sqrt(((one @ v.T) ** 2).sum() / (one**2).sum()) for one in a]
    assert found["attn.k"].alignment == pytest.approx(np.mean(expected), rel=1e-9)


class Packed(nn.Module):
    """timm's attention: one layer makes q, k and v; windows of one image stand among the samples."""

    def __init__(self):
        super().__init__()
        self.num_heads, self.qkv, self.proj = 2, nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        windows = x.reshape(-1, 3, 4)  # two a sample
        q, k, v = self.qkv(windows).chunk(3, -1)
        mixed = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.proj(mixed).reshape(len(x), -1)


def test_q_k_and_v_that_one_layer_makes_are_told_apart():
    net = Packed().double()
    x = torch.randn(5, 6, 4, dtype=torch.float64)
    moved = x + 0.2 * torch.randn_like(x)
    found = by_name(gains(net, x, moved))
    assert list(found) == ["q", "k", "v", "out"]
    weight, bias = net.qkv.weight.detach().numpy(), net.qkv.bias.detach().numpy()
    for place, name in enumerate("qkv"):
        rows = slice(4 * place, 4 * place + 4)
        made = [one.numpy() @ weight[rows].T + bias[rows] for one in (x, moved)]
        assert found[name].gain == pytest.approx(log_gain((x, moved), made), rel=1e-9)


class Twice(nn.Module):
    """One layer that acts twice, one that never does, and one on what no sample owns."""

    def __init__(self):
        super().__init__()
        self.shared, self.idle, self.table = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x):
        inner = self.shared(x).relu()
        return self.shared(inner) + self.table(torch.ones(1, 2, dtype=x.dtype))


def test_a_layer_that_acts_twice_counts_once_and_others_are_left_out():
    net = Twice().double()
    x, moved = torch.rand(6, 4, dtype=torch.float64), torch.rand(6, 4, dtype=torch.float64)
    (found,) = gains(net, x, moved)
    sources, targets = [], []
    for one in (x, moved):
        first = net.shared(one)
        second = net.shared(first.relu())
        sources.append(torch.cat([one, first.relu()], 1).detach())
        targets.append(torch.cat([first, second], 1).detach())
    assert (found.name, found.samples) == ("shared", 6)
    assert found.gain == pytest.approx(log_gain(sources, targets), rel=1e-9)


def test_gains_do_not_depend_on_how_many_samples_go_through_at_a_time(monkeypatch):
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 3)).double()
    x = torch.rand(10, 1, 4, 4, dtype=torch.float64)
    moved = x + 0.1 * torch.randn_like(x)
    at_once = gains(net, x, moved)
    monkeypatch.setattr(sys.modules["pinchpoint.mechanism.gains"], "_NUMBERS", 3 * 16 * 4)
    for one, whole in zip(gains(net, x, moved), at_once, strict=True):
        assert dataclasses.astuple(one)[2:] == pytest.approx(dataclasses.astuple(whole)[2:], rel=1e-12)


def test_gains_leave_the_model_and_the_random_numbers_as_they_were():
    net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, 2))
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    x, rng = torch.rand(6, 4), torch.random.get_rng_state()
    assert gains(net, x, x + 0.1) == gains(net, x, x + 0.1)
    assert gains(net, x, x + 0.1) != gains(net, x, x + 0.1, seed=1)
    assert torch.equal(torch.random.get_rng_state(), rng)
    assert all(module.training for module in net.modules())
    assert not any(module._forward_hooks for module in net.modules())
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, state[name])


def test_gains_say_why_they_cannot():
    x = torch.rand(3, 2)
    with pytest.raises(ModelError, match=r"at least one perturbed input must differ from the input, but got none"):
        gains(hand_net(), x, x)
    dead = nn.Sequential(nn.Linear(2, 2))
    nn.init.zeros_(dead[0].weight)
    with pytest.raises(ModelError, match=r"gains need a layer that acts on what it is given, but got none; give a"):
        gains(dead, x, x + 1)


def test_samples_without_a_finite_gain_are_left_out():
    x, moved = torch.tensor([[0.0, 0.0], [1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 3.0]])
    alone, both = gains(hand_net(), x[1:], moved[1:]), gains(hand_net(), x, moved)
    assert [layer.gain for layer in both] == pytest.approx([layer.gain for layer in alone])
    assert [layer.samples for layer in both] == [1, 1]


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_directions_of_a_large_matrix_span_what_an_svd_gives(shape):
    matrix = torch.tensor(RNG.normal(size=shape))
    for k in (1, 30, 300):
        vectors = dominant_directions(matrix, k)
        expected = np.linalg.svd(matrix.numpy(), full_matrices=False)[2][:k]
        np.testing.assert_allclose((vectors.T @ vectors).numpy(), expected.T @ expected, atol=1e-9)
    few = matrix[:, :1] @ matrix[:1]
    np.testing.assert_allclose((few @ dominant_directions(few, 5).T)[:, 1:].numpy(), 0, atol=1e-9 * float(few.norm()))


def test_samples_are_found_wherever_they_stand():
    a, b = torch.randn(4, 5), torch.randn(4, 5)
    assert sample_dimension(torch.stack([a, b, a])) == 0
    assert sample_dimension(torch.stack([a, b, a], 1)) == 1
    assert sample_dimension(torch.cat([a, b, a])) == 0  # windows
    assert sample_dimension(torch.stack([a, a, a])) is None
    assert sample_dimension(a) is None
