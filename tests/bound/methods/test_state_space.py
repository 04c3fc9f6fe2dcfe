"""The state space with any slopes is the network with those slopes: skips, sums and values side by side included."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from oracles.networks import corners, operator_norm, relu_network
from pinchpoint.bound import lipschitz, trace
from pinchpoint.bound.methods.product import items_of, propagate
from pinchpoint.bound.methods.state_space import spread, state_space, stretches
from pinchpoint.bound.network.operations import Largest, Slope


class Deep(nn.Module):
    """Skips from before, between and after activations, over one step and over several."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(7, 3), nn.Linear(8, 2)

    def forward(self, x):
        before = self.a(x)
        one = before.relu()
        two = nn.functional.leaky_relu(self.b(one), 0.2) - 2 * before
        three = self.c(torch.cat([two, torch.ones(1, 0).double(), x], 1)).relu()
        return self.d(torch.cat([three, torch.full((1, 1), 5.0).double(), one], 1)) + x[:, 1:]


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(4, 1, 1)

    def forward(self, x):
        high = self.a(x).relu()
        low = self.b(nn.functional.avg_pool2d(high, 2)).relu()
        return self.c(torch.cat([high, nn.functional.interpolate(low, scale_factor=2)], 1))


class Ends(nn.Module):
    """Reads the input late, and ends in an activation."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3)

    def forward(self, x):
        return (x.relu() + self.a(x.tanh()) - x).abs()


MODELS = {
    "deep": (Deep, (3,)),
    "u-net": (Unet, (1, 4, 4)),
    "ends": (Ends, (3,)),
    "chain": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), (3,)),
    "linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 2)), (3,)),
    "nothing": (nn.Identity, (3,)),
    "relu": (nn.ReLU, (3,)),
}


def jacobian_with_slopes(items, slopes, shape):
    """Forward through the items, each activation replaced by given slopes: the definition."""
    columns = []
    for basis in torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, 1, *shape):
        values = [basis]
        for index, item in enumerate(items[1:], start=1):
            before = [values[source] for source in item.inputs]
            if index in slopes:
                values.append(slopes[index].reshape(item.shape) * before[0])
                continue
            nodes = item.part.nodes if hasattr(item.part, "nodes") else [item.part]
            there, here = before, [torch.zeros_like(value) for value in before]
            for node in nodes:
                there, here = [node.run(*there)], [node.run(*here)]
            values.append(there[0] - here[0])
        columns.append(values[-1].flatten())
    return torch.stack(columns, 1).detach().numpy()


@pytest.mark.parametrize("name", MODELS)
def test_with_any_slopes_it_is_the_network_with_those_slopes(name):
    torch.manual_seed(2)
    make, shape = MODELS[name]
    items = items_of(trace(make().double(), shape))
    states = state_space(items, 0, len(items) - 1)
    rng = torch.Generator().manual_seed(3)
    for _ in range(3):
        slopes = {
            index: torch.rand(item.size, generator=rng, dtype=torch.float64) * 3 - 1
            for index, item in enumerate(items)
            if index > 0 and not hasattr(item.part, "nodes") and isinstance(item.part.operation, Slope)
        }
        assert list(states.slopes) == sorted(slopes)
        state = torch.eye(math.prod(shape), dtype=torch.float64)
        for step, index in zip(states.steps, states.slopes, strict=True):
            own = len(slopes[index])
            assert bool((step.low[own:] == 1).all() and (step.high[own:] == 1).all())
            operation = items[index].part.operation
            assert torch.equal(step.low[:own], spread(operation.low, items[index].shape, torch.device("cpu")))
            diagonal = torch.cat([slopes[index], step.low[own:]])
            state = diagonal[:, None] * (step.matrix @ state)
        expected = jacobian_with_slopes(items, slopes, shape)
        np.testing.assert_allclose((states.last.entries @ state).detach().numpy(), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_residual_networks_lie_between_their_masks_and_one_plus_their_branch(norm):
    rng = np.random.default_rng(0)
    first, second, head = rng.standard_normal((4, 3)), rng.standard_normal((3, 4)), rng.standard_normal((2, 3))

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = relu_network([first, second]), relu_network([head])

        def forward(self, x):
            return self.head((x + self.inner(x)).relu())

    result = lipschitz(Residual(), norm=norm, input_shape=(3,), steps=80, budget_s=60.0)
    exact = max(
        operator_norm(head @ np.diag(outer) @ (np.eye(3) + second @ np.diag(inner) @ first), norm)
        for inner in corners(np.zeros(4), np.ones(4))
        for outer in corners(np.zeros(3), np.ones(3))
    )
    assert result.lower <= exact <= result.uppers["first-order"] <= result.uppers["fast"] <= result.uppers["product"]
    assert result.uppers["first-order"] <= (1.15 if norm == "l2" else 1.5) * exact
    assert result.uppers["product"] == pytest.approx(
        operator_norm(head, norm) * (1 + operator_norm(first, norm) * operator_norm(second, norm)), rel=1e-10
    )


def test_constants_side_by_side_with_values_do_not_move():
    """cat([x, 1]) times (1, -1): the 1 must not cancel the x."""

    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = relu_network([np.array([[1.0, -1.0, 1.0]])])

        def forward(self, x):
            return self.head(torch.cat([x.relu(), torch.ones(1, 1).double(), -x.abs()], 1))

    for norm in ("l2", "linf"):
        found = lipschitz(Beside(), norm=norm, inputs=-torch.ones(1, 1), steps=20)
        assert min(found.uppers.values()) >= 2.0  # from -1 to 0 it climbs by 1, from 0 on it stays; 2 by slopes alone
        assert found.lower == pytest.approx(1.0, rel=1e-6)


def test_a_network_is_a_chain_of_what_fits_and_what_does_not(monkeypatch):
    torch.manual_seed(0)
    layers = [
        nn.Linear(6, 6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.Unflatten(1, (1, 6)),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(3, 3),
    ]
    model = nn.Sequential(*layers, nn.ReLU(), nn.Linear(3, 2))
    items = items_of(trace(model))
    parts = stretches(items)
    assert [(part.first, part.last, part.states is not None) for part in parts] == [
        (0, 3, True),
        (3, 4, False),
        (4, 7, True),
    ]
    assert isinstance(items[4].part.operation, Largest)
    for norm in ("l2", "linf"):
        pieces = [propagate(items, norm, first=part.first, last=part.last) for part in parts]
        assert math.prod(pieces) == pytest.approx(propagate(items, norm), rel=1e-12)
    assert all(part.states is None for part in stretches(items, seconds=0.0)), "none is free"
    monkeypatch.setattr("pinchpoint.bound.methods.cost.LARGEST_STATE", 5)
    small = stretches(items)
    assert [part.states is not None for part in small] == [False, False, False, False, True]


def test_a_large_input_needs_no_identity():
    """200 000 inputs: written out, an identity would take 300 GB."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(200_000, 2), nn.ReLU(), nn.Linear(2, 2))
    (part,) = stretches(items_of(trace(model)))
    assert part.states.steps[0].matrix.shape == (2, 200_000)
    result = lipschitz(model, norm="l2", inputs=torch.zeros(1, 200_000), steps=3)
    assert result.lower <= result.upper <= result.uppers["product"]
