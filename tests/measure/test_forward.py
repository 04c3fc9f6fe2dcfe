"""A model answers each sample, at every call, whatever its companions; or it is refused."""

from __future__ import annotations

import random

import pytest
import torch
from torch import nn

from pinchpoint.errors import ModelError
from pinchpoint.measure import OneAtATime, check_forward
from pinchpoint.measure.forward import disagreement


class Odd(nn.Module):
    """A linear layer and something that is not what it seems."""

    def __init__(self, what):
        super().__init__()
        self.what, self.calls = what, 0
        self.layer, self.attention, self.recurrent = nn.Linear(6, 4), nn.MultiheadAttention(6, 2), nn.GRU(6, 6)

    def forward(self, x):
        return self.what(self, x)


def counted(model, x):
    model.calls += 1
    return model.layer(x) * model.calls


def in_place(model, x):
    x -= 0.3
    return model.layer(x)


BATCHED = {
    "centred": lambda m, x: m.layer(x) - m.layer(x).mean(0),
    "centred by a hundred-thousandth": lambda m, x: m.layer(x) - 1e-5 * m.layer(x).mean(0),
    "centred in the layer before": lambda m, x: m.layer((x - x.mean(0)).relu()),
    "relative to the first sample": lambda m, x: m.layer(x) - m.layer(x[:1]),
    "relative to the largest": lambda m, x: m.layer(x) / m.layer(x).abs().max(),
    "sorted": lambda m, x: m.layer(x).sort(0)[0],
    "attention over the batch": lambda m, x: m.layer(m.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]),
    "recurrence over the batch": lambda m, x: m.layer(m.recurrent(x)[0]),
    "shifted along the batch": lambda m, x: m.layer(x).roll(1, 0),
    "softmax over the batch": lambda m, x: m.layer(x).softmax(0),
    "size of the batch": lambda m, x: m.layer(x) if len(x) == 1 else 3 * m.layer(x),
    "size of a large batch": lambda m, x: m.layer(x) if len(x) < 40 else 3 * m.layer(x),
}
CHANGING = {
    "torch's random numbers": lambda m, x: m.layer(x) + 1e-4 * torch.rand(4),
    "dropout": lambda m, x: nn.functional.dropout(m.layer(x), 0.5, training=True),
    "Python's random numbers": lambda m, x: m.layer(x) * (1 + random.random()),
    "a counter": counted,
}
HONEST = {
    "plain": lambda m, x: m.layer(x),
    "squeezed": lambda m, x: m.layer(x).squeeze(),
    "in place on its input": in_place,
    "differences of large numbers": lambda m, x: m.layer(x * 1e8) - m.layer(torch.full_like(x, 1e8)),
    "infinite": lambda m, x: m.layer(x) / 0.0,
}


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("name", BATCHED)
def test_answers_that_depend_on_the_batch_are_refused(name, count):
    model = Odd(BATCHED[name]).eval()
    with pytest.raises(ModelError, match="whatever else is in its batch"):
        check_forward(model, torch.rand(count, 6))
    check_forward(OneAtATime(model), torch.rand(count, 6))


@pytest.mark.parametrize("name", CHANGING)
def test_answers_that_change_from_call_to_call_are_refused(name):
    model, before = Odd(CHANGING[name]).eval(), torch.random.get_rng_state()
    with pytest.raises(ModelError, match="the same at every call"):
        check_forward(model, torch.rand(5, 6, generator=torch.Generator().manual_seed(0)))
    assert model.calls == 0
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HONEST)
def test_honest_answers_pass_and_inputs_stay(name, dtype):
    x = torch.rand(5, 6, dtype=dtype)
    before = x.clone()
    assert disagreement(Odd(HONEST[name]).to(dtype).eval(), x) is None
    assert torch.equal(x, before)


def test_rounding_that_a_deep_network_enlarges_is_no_dependence():
    torch.manual_seed(0)
    layers = [layer for _ in range(50) for layer in (nn.Linear(30, 30), nn.LayerNorm(30), nn.Tanh())]
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    check_forward(model.eval(), torch.rand(4, 30))


def test_batch_statistics_take_no_sample_alone():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, track_running_stats=False)).eval()
    with pytest.raises(ModelError, match="one sample alone"):
        check_forward(model, torch.rand(4, 6))
