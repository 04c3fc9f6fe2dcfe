"""Masks follow channels wherever they go; what cannot be followed is refused, and nothing ends in a raw exception."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pinchpoint.compress.prune import prune
from pinchpoint.errors import ModelError, PinchpointError


class Between(nn.Module):
    """Eight filters, something that moves channels, and a layer that reads them."""

    def __init__(self, move, channels=8):
        super().__init__()
        self.c, self.d, self.h = nn.Conv2d(3, 8, 3), nn.Conv2d(channels, 6, 3), nn.Linear(6, 3)
        self.move = move

    def forward(self, x):
        return self.h(F.relu(self.d(self.move(F.relu(self.c(x))))).mean((2, 3)))


def shuffled(z):
    n, c, h, w = z.shape
    return z.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


MOVES = {
    "nothing": (lambda z: z, 8),
    "shuffle": (shuffled, 8),
    "channel_shuffle": (lambda z: F.channel_shuffle(z, 4), 8),
    "flip": (lambda z: z.flip(1), 8),
    "roll": (lambda z: z.roll(3, 1), 8),
    "index": (lambda z: z[:, [3, 1, 2, 0, 7, 6, 5, 4]], 8),
    "index_select": (lambda z: z.index_select(1, torch.tensor([7, 0, 1, 2, 3, 4, 5, 6])), 8),
    "halves swapped": (lambda z: torch.cat([z[:, 4:], z[:, :4]], 1), 8),
    "chunks swapped": (lambda z: torch.cat(z.chunk(2, 1)[::-1], 1), 8),
    "twice": (lambda z: torch.cat([z, z.flip(1)], 1), 16),
    "a slice": (lambda z: z[:, 2:6], 4),
    "every other": (lambda z: z[:, ::2], 4),
    "repeat": (lambda z: z.repeat(1, 2, 1, 1), 16),
    "repeat_interleave": (lambda z: z.repeat_interleave(2, 1), 16),
    "pixel_shuffle": (lambda z: F.pixel_shuffle(z, 2), 2),
    "pixel_unshuffle": (lambda z: F.pixel_unshuffle(z, 2), 32),
    "view": (lambda z: z.reshape(len(z), 4, 2, *z.shape[2:]).permute(0, 2, 1, 3, 4).flatten(1, 2), 8),
    "unbind": (lambda z: torch.stack(z.unbind(1)[::-1], 1), 8),
    "to tokens and back": (lambda z: z.flatten(2).transpose(1, 2).flip(2).transpose(1, 2).reshape(z.shape), 8),
}


REFUSED = ("halves swapped", "chunks swapped", "a slice", "every other", "pixel_shuffle")
"""Of these the graph says how many units a layer reads, and not which."""


@pytest.mark.parametrize("name", MOVES)
def test_a_mask_is_the_named_filters_set_to_zero_and_removal_is_the_mask(name):
    move, channels = MOVES[name]
    torch.manual_seed(0)
    model, x = Between(move, channels).eval(), torch.rand(4, 3, 8, 8)
    before = copy.deepcopy(model.state_dict())
    if name in REFUSED:
        for remove in (True, False):
            with pytest.raises(ModelError, match="but got none \\(c: "):
                prune(model, 0.4, input_shape=(3, 8, 8), remove=remove, keep=["d"])
        return
    masked = prune(model, 0.4, input_shape=(3, 8, 8), remove=False, keep=["d"]).model
    dead = (masked.c.weight.flatten(1).abs().sum(1) == 0).nonzero().flatten()
    by_hand = copy.deepcopy(model)
    with torch.no_grad():
        by_hand.c.weight[dead], by_hand.c.bias[dead] = 0.0, 0.0
        torch.testing.assert_close(masked(x), by_hand(x), rtol=0, atol=1e-6)
        assert 0 < len(dead) < 8
        try:
            smaller = prune(model, 0.4, input_shape=(3, 8, 8), remove=True, keep=["d"]).model
        except ModelError:  # it cannot be removed, and is left alone
            pass
        else:
            torch.testing.assert_close(smaller(x), by_hand(x), rtol=0, atol=1e-5)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.a = nn.Linear(8, 16), nn.MultiheadAttention(16, 4, batch_first=True)
        self.m, self.h = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 16)), nn.Linear(16, 3)

    def forward(self, x):
        x = self.e(x)
        x = x + self.a(x, x, x, need_weights=False)[0]
        return self.h((x + self.m(x)).mean(1))


class Head(nn.Module):
    def __init__(self, function, width=16, inner=16):
        super().__init__()
        self.a, self.h, self.function, self.calls = nn.Linear(20, width), nn.Linear(inner, 3), function, 0

    def forward(self, x):
        return self.function(self, self.a(x))


def counted(model, z):
    model.calls += 1
    return model.h(z.relu() * model.calls)


ODD = {
    "attention": (Attends(), (5, 8)),
    "glu": (Head(lambda m, z: m.h(F.glu(z, -1)), 32), (20,)),
    "two outputs": (Head(lambda m, z: (m.h(z.relu()), z)), (20,)),
    "a dict": (Head(lambda m, z: {"logits": m.h(z.relu())}), (20,)),
    "batch statistics": (nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, track_running_stats=False), nn.ReLU(),
                                       nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)), (3, 8, 8)),
    "in place": (Head(lambda m, z: m.h(z.relu_().mul_(2.0))), (20,)),
    "half precision": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).bfloat16(), (6,)),
    "float64": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).double(), (6,)),
    "another shape": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)), (7,)),
    "nothing to prune": (nn.Sequential(nn.ReLU()), (6,)),
    "tied": (Head(lambda m, z: m.h(z.relu()) + F.linear(z.relu(), m.h.weight)), (20,)),
    "frozen": (nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2)).requires_grad_(False), (6,)),
}  # fmt: skip


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("name", ODD)
def test_odd_networks_are_pruned_or_refused_in_a_sentence(name, remove):
    model, shape = ODD[name]
    try:
        pruned = prune(model.eval(), 0.5, input_shape=shape, remove=remove).model
    except PinchpointError:  # anything else fails the test
        return
    assert sum(p.numel() for p in pruned.parameters()) <= sum(p.numel() for p in model.parameters())


DECIDING = {
    "a branch": (lambda m, z: m.h(z.relu()) if z.mean() > 0.3 else 3 * m.h(z.relu()), "read off a value"),
    "item": (lambda m, z: m.h(z.relu()) * z.sum().item(), "read off a value"),
    "noise": (lambda m, z: m.h(z.relu() + torch.rand_like(z)), "the same at every call"),
    "a counter": (counted, "the same at every call"),
    "the batch": (lambda m, z: m.h((z - z.mean(0)).relu()), "whatever else is in its batch"),
}


@pytest.mark.parametrize("remove", [True, False])
@pytest.mark.parametrize("name", DECIDING)
def test_what_one_pass_does_not_show_is_refused(name, remove):
    function, text = DECIDING[name]
    with pytest.raises(ModelError, match=text):
        prune(Head(function).eval(), 0.5, input_shape=(20,), remove=remove)
