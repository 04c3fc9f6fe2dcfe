"""Constants that hold on a ball around one input, where units that cannot change sides there are known.

On the l_p ball of radius eps around x, each pre-activation moves at most as far as ellipsoids and intervals allow. A ReLU
that stays on one side has a known slope there; only the others are free. The constants so found are never larger than the
global ones of the same method, and shrink with eps to those of the linear piece x lies in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor, nn

from pinchpoint.bound.certificates import radii_from_margins
from pinchpoint.bound.lipschitz import as_network, scaled_up
from pinchpoint.bound.methods.ellipsoid import Goal, Narrow, ellipsoid_bound, narrowed
from pinchpoint.bound.methods.lower import rounding
from pinchpoint.bound.methods.product import Item, items_of, propagate
from pinchpoint.bound.methods.state_space import StateSpace, Stretch, spread, stretches
from pinchpoint.bound.network.operations import Slope
from pinchpoint.bound.network.trace import Network, Node
from pinchpoint.errors import ModelError, ThreatError
from pinchpoint.measure.spectrum import check_norm, inflate, times_up
from pinchpoint.records import Norm


def local_margins(
    model: nn.Module | Network,
    x: Float[Tensor, "*shape"],
    eps: float,
    *,
    norm: Norm,
    steps: int = 0,
    parts: Sequence[Stretch] | None = None,
) -> Float[Tensor, "classes classes"]:
    """Certified constants of all differences of two logits for every pair of points within eps of x.

    Args:
        model: a module, or a network that ``trace`` made.
        x: one input.
        eps: radius of the ball, in input units.
        norm: of the ball.
        steps: of optimisation; with 0 the closed-form choice is taken.
        parts: the network's ``stretches``, where they are at hand.

    Raises:
        ModelError: where an operation cannot be bounded, by name.

    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False), nn.ReLU(), nn.Linear(2, 2, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]])), net[2].weight.data.copy_(torch.eye(2))
    >>> [round(local_margins(net, torch.tensor([3.0]), eps, norm="l2")[0, 1].item(), 6) for eps in (1.0, 9.0)]
    [1.0, 2.0]
    """
    check_norm(norm)
    if not eps >= 0:
        raise ThreatError("eps must be zero or more", eps, "give the budget in input units, for example 8/255")
    network = as_network(model, x.shape)
    shape = network.nodes[0].shape
    if x.numel() != network.nodes[0].size:
        raise ModelError(f"x must be one input of shape {tuple(shape[1:])}", tuple(x.shape), "give one sample")
    items = items_of(network)
    parts = stretches(items) if parts is None else parts
    values = network.values(x.detach().to(network.device, torch.float64).reshape(shape))
    off = rounding(network, values)
    radius, before = eps, 1.0
    for part in parts:
        last = part is parts[-1]
        constant = propagate(items, norm, first=part.first, last=part.last)
        if part.states is not None:
            goal: Goal = "pairs" if last else ("whole" if norm == "l2" else "largest row")
            local = narrowed(part.states.steps, norm, radius, _narrow(part.states, items, values, off))
            end = part.states.last
            found = ellipsoid_bound(local, end.entries, norm, goal=goal, error=end.error, most=steps)
            forms = found.best, found.fast
            if last:
                return scaled_up(torch.minimum(*(form.pairs() for form in forms)).cpu(), before)
            constant = min(constant, *(form.whole() if norm == "l2" else float(form.rows().max()) for form in forms))
        before = times_up(before, constant)
        radius = times_up(eps, before)
    differences = 2.0 if norm == "linf" else inflate(math.sqrt(2.0), 1)
    return torch.full((items[-1].size,) * 2, times_up(differences, before), dtype=torch.float64).fill_diagonal_(0.0)


def locally_certified(
    model: nn.Module | Network,
    x: Float[Tensor, "batch *shape"],
    labels: Integer[Tensor, "batch"],
    eps: float,
    *,
    norm: Norm,
    steps: int = 0,
) -> Bool[Tensor, "batch"]:
    """Whether each sample is right and no perturbation within eps changes that, by its constants on that ball.

    Never true where an attack succeeds. A sample that this leaves open may still be robust.

    >>> net = nn.Sequential(nn.Linear(1, 2, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0], [-1.0]]))
    >>> locally_certified(net, torch.tensor([[1.0], [0.1]]), torch.tensor([0, 0]), 0.5, norm="l2").tolist()
    [True, False]
    """
    network = as_network(model, x.shape[1:])
    parts = stretches(items_of(network))
    certified = []
    for sample, label in zip(x, labels, strict=True):
        constants = local_margins(network, sample, eps, norm=norm, steps=steps, parts=parts)
        point = sample.detach().to(network.device, torch.float64).reshape(network.nodes[0].shape)
        logits = network(point).reshape(1, -1).cpu()
        radius = radii_from_margins(logits, label[None].cpu(), constants)
        certified.append(bool(radius > 0) and bool(radius >= eps))
    return torch.tensor(certified)


def _narrow(states: StateSpace, items: Sequence[Item], values: Sequence[Tensor], off: Sequence[float]) -> Narrow:
    """The slopes of a step's activation on its first rows, where they stay on one side of zero."""

    def narrow(place: int, reach: Tensor) -> tuple[Tensor, Tensor]:
        step, item = states.steps[place], items[states.slopes[place]]
        assert isinstance(item.part, Node)
        assert isinstance(item.part.operation, Slope)
        if item.part.operation.sides is None:
            return step.low, step.high
        source = items[item.inputs[0]]
        centre = values[source.node].flatten()
        radius = reach[: len(centre)] + off[item.inputs[0]]
        left, right = (spread(side, item.shape, centre.device) for side in item.part.operation.sides)
        low, high = step.low.clone(), step.high.clone()
        for known, slope in ((centre < -radius, left), (centre > radius, right)):
            low[: len(centre)][known] = slope[known]
            high[: len(centre)][known] = slope[known]
        return low, high

    return narrow
