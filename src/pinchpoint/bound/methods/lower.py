"""Lower bounds on a Lipschitz constant: difference quotients at sampled inputs, and ascent on them.

A quotient ||f(a) - f(b)|| / ||a - b|| is below the true constant for every pair of points, on kinks too, where autograd's
Jacobian need not be. Each is lowered by a bound on its own rounding error.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.methods.product import combined, items_of
from pinchpoint.bound.network.operations import Conv, Dense, Join, Largest, Linear, Scale, Slope, Sum
from pinchpoint.bound.network.runs import SMALLEST, Run
from pinchpoint.bound.network.trace import Network, Node
from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import EPS64, inflate, times_up, vector_norms
from pinchpoint.records import Norm

_ORDER = {"linf": torch.inf, "l2": 2.0}
_WIDE = 64
"""Networks with more outputs than this get the top direction of their Jacobian by power iteration."""


def starting_points(network: Network, inputs: Tensor | None, most: int = 16) -> Float[Tensor, "batch 1 *shape"]:
    """At most this many inputs in float64; uniform random ones in [0, 1] (seed 0) where none are given.

    Raises:
        ModelError: where the inputs do not have the network's input shape.
    """
    shape = network.nodes[0].shape
    if inputs is None:
        generator = torch.Generator().manual_seed(0)
        return torch.rand(most, *shape, generator=generator, dtype=torch.float64).to(network.device)
    if inputs[:1].numel() != inputs.new_empty(shape).numel() or len(inputs) == 0:
        raise ModelError(
            f"inputs must be a batch of shape (n, {', '.join(map(str, shape[1:]))})",
            tuple(inputs.shape),
            "reshape them",
        )
    return inputs[:most].detach().to(network.device, torch.float64).reshape(-1, *shape)


@dataclass(frozen=True)
class Estimate:
    """||f(a) - f(b)|| / ||a - b|| as float64 gave it: not lowered by its rounding error, so no bound."""

    quotient: float
    a: Float[Tensor, "1 *shape"]
    b: Float[Tensor, "1 *shape"]


def empirical(
    network: Network,
    points: Float[Tensor, "batch 1 *shape"],
    norm: Norm,
    *,
    steps: int = 12,
    seconds: float = math.inf,
) -> Estimate:
    """The largest difference quotient met on the way of a power iteration on the Jacobian at each point.

    For any network, also one whose constant is unknown or infinite. No step begins after ``seconds``, but for the first.
    """
    end = time.perf_counter() + seconds
    generator = torch.Generator().manual_seed(0)
    dims = tuple(range(1, points.ndim - 1))
    best = Estimate(0.0, points[0], points[0])
    for point in points:
        v = torch.randn(point.shape, generator=generator, dtype=torch.float64).to(point.device)
        v = _steepest(v, v, norm, dims)
        for step in range(steps):
            if time.perf_counter() > end and (step or best.quotient):
                return best
            x = point.clone().requires_grad_()
            here, there = network(x), point + 1e-3 * v
            with torch.no_grad():
                change = network(there) - here
                top = torch.linalg.vector_norm(change, _ORDER[norm])
                quotient = float(top / torch.linalg.vector_norm(there - point, _ORDER[norm]))
                pulled = torch.where(change.abs() == top, change.sign(), 0.0) if norm == "linf" else change
            if quotient > best.quotient:
                best = Estimate(quotient, point, there)
            if not here.requires_grad:
                break
            v = _steepest(torch.autograd.grad(here, x, pulled)[0], v, norm, dims)
    return best


PASSES = 60
"""What a point's direction and quotients take, in evaluations of the network, about."""
STEP_PASSES = 12
"""The same of a step of both ascents at a point."""
_WARM = 0.5
"""Seconds of a first evaluation from which on a second one, which would be faster, is not worth its time."""
_NUMBERS = 2**18
"""Input numbers in one pass in float64 with derivatives: one of ImageNet's images, 85 of CIFAR's."""


def sampled(
    network: Network, points: Float[Tensor, "batch 1 *shape"], norm: Norm, *, seconds: float = math.inf
) -> tuple[Tensor, float]:
    """The top direction of the Jacobian at each point, and the largest certified quotient along them.

    Where there is no time for all points it is the first ones, as many as there are directions, at least one. Where the
    directions are iterated for, no iteration begins after ``seconds``, but for the first.
    """
    end = time.perf_counter() + seconds
    points = points[: _affordable(network, points, seconds)]
    directions = _top_directions(network, points, norm, end)
    sizes = (1e-3, -1e-3, 1e-1, -1e-1) if time.perf_counter() < end else (1e-3,)
    ends = torch.cat([points + size * directions for size in sizes])
    most = 3 if len(sizes) > 1 else 1
    return directions, _best_quotient(network, points.repeat(len(sizes), *(1,) * (points.ndim - 1)), ends, norm, most)


@torch.no_grad()
def _affordable(network: Network, points: Tensor, seconds: float) -> int:
    """Points that ``sampled`` has time for."""
    if math.isinf(seconds):
        return len(points)
    took = math.inf
    while True:
        start = time.perf_counter()
        network(points[0])
        before, took = took, min(took, time.perf_counter() - start)
        if before < math.inf or took > _WARM:
            return max(1, int(min(len(points), seconds / max(took, 1e-9) / PASSES)))


def ascended(
    network: Network,
    points: Float[Tensor, "batch 1 *shape"],
    norm: Norm,
    *,
    directions: Float[Tensor, "few 1 *shape"] | None = None,
    steps: int = 200,
    rate: float = 0.05,
    seconds: float = math.inf,
) -> float:
    """The largest certified quotient after ascent on both ends, never below ``sampled``; no step begins after ``seconds``.
    Given the directions that ``sampled`` found, for the first points, it is what the ascent alone reached on these.

    The direction v is set to the steepest one for the current quotient (a power iteration inside a linear region); the
    point x climbs by Adam. A segment across several linear regions has a gradient in x; inside one there is none.
    """
    end = time.perf_counter() + seconds
    best = 0.0
    if directions is None:
        directions, best = sampled(network, points, norm, seconds=seconds)
    points = points[: len(directions)]
    order, dims = _ORDER[norm], tuple(range(1, points.ndim))
    run = torch.func.vmap(network, chunk_size=_at_once(points, len(points)))
    for size in (0.5, 8.0):
        x, v = points.clone().requires_grad_(), size * directions
        optimiser = torch.optim.Adam([x], lr=rate)
        for step in range(steps):
            if time.perf_counter() > end:
                break
            v = v.detach().requires_grad_()
            change = torch.linalg.vector_norm((run(x + v) - run(x)).flatten(1), order, dim=1)
            slope_x, slope_v = torch.autograd.grad(change.clamp(min=1e-300).log().sum(), [x, v])
            x.grad = -slope_x
            optimiser.param_groups[0]["lr"] = rate * (1.0 - step / steps)
            optimiser.step()
            v = size * _steepest(slope_v, v, norm, dims)
        x, v = x.detach(), v.detach()
        best = max(best, _best_quotient(network, x, x + v, norm))
        if (left := end - time.perf_counter()) > 0:
            best = max(best, sampled(network, x + v / 2, norm, seconds=left)[1])
    return best


@torch.no_grad()
def _best_quotient(network: Network, a: Tensor, b: Tensor, norm: Norm, most: int = 3) -> float:
    """The largest certified quotient among the few pairs that look best without their rounding errors."""
    rows = list(range(len(a)))
    if len(rows) > most:
        run = torch.func.vmap(network, chunk_size=_at_once(a, 16))
        change = vector_norms((run(b) - run(a)).flatten(1), _ORDER[norm])
        seen = (change / vector_norms((b - a).flatten(1), _ORDER[norm])).nan_to_num(nan=0.0)
        rows = seen.topk(most).indices.tolist()
    return max(quotient(network, a[row], b[row], norm) for row in rows)


@torch.no_grad()
def quotient(network: Network, a: Float[Tensor, "1 *shape"], b: Float[Tensor, "1 *shape"], norm: Norm) -> float:
    """||f(a) - f(b)|| / ||a - b||, lowered by what rounding can have added; 0 where the points are too close."""
    moved = float(vector_norms((b - a).flatten(), _ORDER[norm]))
    if moved == 0.0:
        return 0.0
    ends, off = [], 0.0
    for point in (a, b):
        largest, value = dict[Node, float](), point
        for node, value in network.each(point):
            largest[node] = float(value.abs().max())
        ends.append(value)
        off += _rounding(network, largest)[-1][norm == "l2"]
    change = float(vector_norms((ends[1] - ends[0]).flatten(), _ORDER[norm]))
    return max(0.0, (change - off) / inflate(moved, a.numel() + ends[0].numel()))


@torch.no_grad()
def changes(
    network: Network, points: Float[Tensor, "batch 1 *shape"], norm: Norm
) -> Iterator[tuple[Tensor, float, float]]:
    """Pairs of inputs along the steepest directions at some points: how each output changes, by how much rounding can be
    to blame for that, and the distance of the two, raised by its own rounding.
    """
    with torch.enable_grad():
        directions = _top_directions(network, points, norm, math.inf)
    for point, direction in zip(points, directions, strict=True):
        for size in (1e-3, 1.0):
            ends, off = [], 0.0
            for end in (point, point + size * direction):
                largest, value = dict[Node, float](), end
                for node, value in network.each(end):
                    largest[node] = float(value.abs().max())
                ends.append(value.flatten())
                off += _rounding(network, largest)[-1][0]
            moved = float(vector_norms((point + size * direction - point).flatten(), _ORDER[norm]))
            yield ends[1] - ends[0], off, inflate(moved, point.numel())


def _steepest(gradient: Tensor, before: Tensor, norm: Norm, dims: tuple[int, ...]) -> Tensor:
    """Unit directions of steepest ascent; the direction before, where there is no gradient."""
    if norm == "linf":
        return torch.where(gradient == 0, before.sign(), gradient.sign())
    length = torch.linalg.vector_norm(gradient, dim=dims, keepdim=True)
    old = before / torch.linalg.vector_norm(before, dim=dims, keepdim=True)
    return torch.where(length > 0, gradient / length.clamp(min=1e-300), old)


def _at_once(points: Tensor, most: int) -> int:
    """Points in one pass: large ones go alone, for the sake of memory."""
    return max(1, min(most, _NUMBERS // points[0].numel()))


def _top_directions(network: Network, points: Tensor, norm: Norm, end: float) -> Tensor:
    """For each point the unit direction that its Jacobian enlarges most."""
    if network.nodes[-1].size <= _WIDE:
        jacobians = torch.func.vmap(torch.func.jacrev(network), chunk_size=16)(points).detach()
        jacobians = jacobians.reshape(len(points), network.nodes[-1].size, -1)
        if norm == "l2":
            largest = jacobians.abs().amax(dim=(1, 2), keepdim=True)  # scaled: an SVD fails where numbers overflow
            scaled = torch.where((largest > 0) & (largest < torch.inf), jacobians / largest, 1.0)
            directions: Tensor = torch.linalg.svd(scaled, full_matrices=False).Vh[:, 0]
        else:
            rows = jacobians.abs().sum(2).argmax(1)
            directions = torch.where(jacobians[torch.arange(len(points)), rows] >= 0, 1.0, -1.0).double()
        return directions.reshape(points.shape)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(points.shape, generator=generator, dtype=torch.float64).to(points.device)
    dims = tuple(range(1, points.ndim))
    v = _steepest(start, start, norm, dims)

    def next_direction(x: Tensor, v: Tensor) -> Tensor:
        change: Tensor = torch.func.jvp(network, (x,), (v,))[1]
        _, pull, *_ = torch.func.vjp(network, x)  # after the other: their graphs need memory for one at a time
        if norm == "linf":
            top = change.abs() == change.abs().max()
            change = torch.where(top, change.sign(), 0.0)
        result: Tensor = pull(change)[0]
        return result

    following = torch.func.vmap(next_direction, chunk_size=_at_once(points, len(points)))
    for step in range(12):
        if step and time.perf_counter() > end:
            break
        v = _steepest(following(points, v).detach(), v, norm, dims)
    return v


def rounding(network: Network, values: Sequence[Tensor]) -> list[float]:
    """For each item, by how much rounding can have moved any entry of its value."""
    largest = {node: float(value.abs().max()) for node, value in zip(network.nodes, values, strict=True)}
    return [by_entry for by_entry, _ in _rounding(network, largest)]


def _rounding(network: Network, largest: dict[Node, float]) -> list[tuple[float, float]]:
    """For each item, by how much rounding can have moved its value, of which the largest entries are known: any entry of
    it, and its l2 norm.

    Each follows from the errors before it, enlarged by norms in l_inf or, where they are known, in l_2, and limits the
    other: in a deep network products of l_inf norms grow faster.
    """
    items = items_of(network)
    found = [(0.0, 0.0)]
    for item in items[1:]:
        part, root = item.part, math.sqrt(item.size)
        before = [found[source] for source in item.inputs]
        nodes = part.nodes if isinstance(part, Run) else (part,)
        entry, own = [error for error, _ in before], 0.0
        for node in nodes:
            sources = [network.nodes[source] for source in node.inputs]
            fresh = _fresh(node, sources, largest)
            entry = [_enlarged(node, sources, entry) + fresh]
            own = fresh if node is nodes[0] else _enlarged(node, sources, [own]) + fresh
        if isinstance(part, Run):
            enlarged = times_up(part.norm("l2"), before[0][1]) if part.knows("l2") else math.inf
        else:
            enlarged = combined(part, [length for _, length in before], "l2")
        length = min(inflate(enlarged + root * own, 8), inflate(root * entry[0], 1))
        found.append((min(entry[0], length), length))
    return found


def _fresh(node: Node, sources: Sequence[Node], largest: dict[Node, float]) -> float:
    """What one operation's own rounding can add to an entry: a sum of n terms is off by less than n eps times theirs."""
    operation = node.operation
    if isinstance(operation, Dense):
        terms = operation.weight.shape[1]
    elif isinstance(operation, Conv):
        weight = operation.operator.weight
        terms = weight.numel() // min(weight.shape[:2])
    elif isinstance(operation, Scale | Slope | Sum | Join | Largest):
        terms = 2 + len(sources)
    else:
        terms = node.size + sum(source.size for source in sources)
    reach = _enlarged(node, sources, [largest[source] for source in sources])
    return 8.0 * (terms + 1) * (EPS64 * (reach + largest[node]) + SMALLEST)


def _enlarged(node: Node, sources: Sequence[Node], sizes: list[float]) -> float:
    """The largest size of an entry after an operation, from those before it."""
    if isinstance(node.operation, Linear):
        return times_up(Run((node,), sources[0].shape).norm("linf"), sizes[0])
    return combined(node, sizes, "linf")
