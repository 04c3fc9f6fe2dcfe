"""Gradients that are not the function's are told from those of honest networks, whatever their kinks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pinchpoint.attack import gradient_doubt

ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus, nn.Hardswish, nn.Hardtanh),
    *(nn.ReLU6, nn.Mish, nn.PReLU, nn.CELU, nn.SELU, nn.Softsign, nn.Hardsigmoid, nn.LogSigmoid, nn.Tanhshrink, nn.GLU),
)


class Then(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def images(seed):
    """Half of the pixels are exactly 0: where windows tie, and convolutions without bias lie on the kink."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(8, 1, 8, 8, generator=generator) * (torch.rand(8, 1, 8, 8, generator=generator) > 0.5)


def fully_connected(activation, seed, middle=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        halves = 2 if activation is nn.GLU else 1
        inner = [Then(middle)] if middle is not None else []
        return nn.Sequential(
            *(nn.Flatten(), nn.Linear(64, 32 * halves), activation(), nn.Linear(32, 32 * halves), *inner, activation()),
            nn.Linear(32, 10),
        ).eval()


def convolutional(activation, pool, seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1, bias=False), activation(), pool(2), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)),
            *(activation(), nn.Flatten(), nn.LayerNorm(32), nn.Linear(32, 5)),
        ).eval()


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ACTIVATIONS),
    st.sampled_from((nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveMaxPool2d)),
    st.sampled_from((1e-6, 1e-3, 1.0, 30.0, 1e4)),
    st.integers(0, 10**6),
)
def test_no_honest_network_is_doubted(activation, pool, scale, seed):
    nets = [fully_connected(activation, seed)]
    if activation is not nn.GLU and pool is not nn.AdaptiveMaxPool2d:
        nets.append(convolutional(activation, pool, seed))
    for net in nets:
        assert gradient_doubt(nn.Sequential(net, Then(lambda z: scale * z)), images(seed), seed=seed) is None


def in_bfloat16(net):
    def call(x):
        with torch.autocast("cpu", torch.bfloat16):
            return net(x).to(x.dtype)

    return call


@pytest.mark.parametrize(
    "around",
    [
        in_bfloat16,
        lambda net: lambda x: net(x.float()),
        lambda net: lambda x: net(x.float()).double(),
        lambda net: lambda x: functional.log_softmax(net(x), 1),
        lambda net: lambda x: net(x).softmax(1),
        lambda net: lambda x: torch.cat([net(x), torch.full_like(net(x), -1e9)], 1),
        lambda net: lambda x: net(x.clamp(0, 1)),
    ],
)
def test_precision_and_constants_make_no_doubt(around):
    for seed in range(5):
        net = fully_connected(nn.GELU, seed)
        assert gradient_doubt(Then(around(net)), images(seed)) is None


def straight_through(forward):
    """Forward as it is, backward as if it were the identity."""

    class Through(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return forward(x)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    return Through.apply


def without_graph(x):
    with torch.no_grad():
        return torch.tanh(x)


def by_numpy(x):
    return torch.from_numpy(np.tanh(x.detach().numpy()))


ABSENT = {
    "detach": torch.Tensor.detach,
    "no_grad": without_graph,
    "numpy": by_numpy,
    "argmax": lambda x: functional.one_hot(x.argmax(1), 32).to(x),
    "item": lambda x: torch.tensor([[entry.item() for entry in row] for row in x], dtype=x.dtype),
}
ZERO = {
    "round": lambda x: (x * 4).round() / 4,
    "sign": torch.sign,
    "saturated softmax": lambda x: (1e6 * x).softmax(1),
}
FALSE = {
    "gradient scaling": lambda x: 0.01 * x + (x - 0.01 * x).detach(),
    "half of the entries": lambda x: torch.cat([x[:, :16], x[:, 16:].detach()], 1),
    "no_grad beside": lambda x: 0.3 * x + without_graph(x),
    "numpy beside": lambda x: x + by_numpy(x),
    "data": lambda x: x * x.data,
    "detached gate": lambda x: x * torch.sigmoid(4 * x).detach(),
    "detached branch": lambda x: torch.where(x > 0.1, x.detach(), x),
    "item of a mean": lambda x: torch.stack([3.0 * row * row.mean().item() for row in x]),
    "rounding": straight_through(lambda x: (8 * x).round() / 8),
    "fine rounding": straight_through(lambda x: (255 * x).round() / 255),
    "signs": straight_through(torch.sign),
    "clamp": straight_through(lambda x: x.clamp(-0.1, 0.1)),
    "another slope": straight_through(lambda x: 2.0 * x),
    "reversed": straight_through(torch.neg),
}


@pytest.mark.parametrize("name", ABSENT)
def test_a_gradient_that_is_not_there(name):
    doubt = gradient_doubt(fully_connected(nn.ReLU, 1, ABSENT[name]), images(1))
    assert doubt is not None
    assert not doubt.differentiable
    assert doubt.sentence.startswith("the model is not differentiable in its input")


@pytest.mark.parametrize("name", ZERO)
def test_a_gradient_of_zero(name):
    doubt = gradient_doubt(fully_connected(nn.ReLU, 1, ZERO[name]), images(1))
    assert doubt is not None
    assert doubt.sentence == "the gradient is zero at 8 of 8 samples"


@pytest.mark.parametrize("name", FALSE)
def test_a_gradient_of_another_function(name):
    for seed in range(5):
        doubt = gradient_doubt(fully_connected(nn.ReLU, seed, FALSE[name]), images(seed))
        assert doubt is not None, seed
        assert doubt.differentiable
        assert doubt.sentence.startswith("the gradient is contradicted by finite differences at ")


def test_in_float32_where_the_model_takes_nothing_else():
    class Only(nn.Module):
        def __init__(self, net):
            super().__init__()
            self.net = net

        def forward(self, x):
            assert x.dtype == torch.float32, "float32 only"
            return self.net(x)

    assert gradient_doubt(Only(fully_connected(nn.ReLU, 0)), images(0)) is None
    assert gradient_doubt(Only(fully_connected(nn.ReLU, 0, FALSE["gradient scaling"])), images(0)) is not None


def test_randomness_is_no_contradiction_and_nothing_is_left_behind():
    net = fully_connected(nn.ReLU, 0).train()
    before, drawn = {key: value.clone() for key, value in net.state_dict().items()}, torch.random.get_rng_state()
    assert gradient_doubt(nn.Sequential(net, Then(lambda z: z + torch.randn_like(z))), images(0)) is None
    assert net.training
    assert torch.equal(torch.random.get_rng_state(), drawn)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
