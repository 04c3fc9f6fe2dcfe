"""The Lipschitz constant of a network from both sides, and those of the differences of its logits.

From above, each certified for every pair of inputs (paper, Theorem 3.2, and tighter):

    structure     product of Theorem 3.1's structure x scale of each layer
    product       product of certified operator norms
    alignment     the same with the interlayer alignment factors of the best disjoint pairs of layers
    fast          ellipsoids propagated with a closed-form choice of multipliers
    first-order   the same with optimised multipliers
    equivalence   l_inf only: sqrt(d) times the best l_2 constant, d the number of inputs

From below: difference quotients at sampled inputs, and after ascent. What cannot be bounded is named, never guessed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pinchpoint.bound.certificates import dual_differences
from pinchpoint.bound.gate import certified, check_pairs
from pinchpoint.bound.methods.alignment import alignment
from pinchpoint.bound.methods.cost import network_seconds, step_seconds
from pinchpoint.bound.methods.ellipsoid import ellipsoid_bound
from pinchpoint.bound.methods.lower import PASSES, STEP_PASSES, ascended, sampled, starting_points
from pinchpoint.bound.methods.product import Item, items_of, propagate
from pinchpoint.bound.methods.state_space import Stretch, stretches
from pinchpoint.bound.methods.structure import structure_scale
from pinchpoint.bound.network.operations import Dense, Known
from pinchpoint.bound.network.runs import Run
from pinchpoint.bound.network.trace import Network, trace
from pinchpoint.errors import ModelError
from pinchpoint.measure.spectrum import check_norm, inflate, operator_norm_upper, times_up
from pinchpoint.records import Norm

Method = Literal["tightest", "product", "structure", "alignment", "fast", "first-order", "equivalence"]

ASSUMPTIONS = (
    "the network is evaluated in exact arithmetic, in eval mode, with the operations that torch.export saw",
    "layer norms are float64 and inflated by their rounding error",
)


_UPPER = 0.75
"""Share of the budget that upper bounds may take."""
_ONE_PASS = 1.0
"""Seconds that one evaluation of the ellipsoids may take, whatever the budget."""


@dataclass(frozen=True)
class Lipschitz:
    """``lower <= true constant <= upper``, from l_p to l_p.

    ``upper`` is certified under ``assumptions``; ``method`` says how, and ``uppers`` holds every bound that was computed
    on the way, by method. ``lower`` is reached at two inputs; ``sampled`` is what sampling alone reached.
    """

    norm: Norm
    lower: float
    sampled: float
    upper: float
    method: Method
    uppers: dict[Method, float]
    seconds: float
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class Margins:
    """``upper[y, j]`` bounds |change of (logit_y - logit_j)| / ||change of the input||_p, certified."""

    norm: Norm
    upper: Float[Tensor, "classes classes"]
    seconds: float
    assumptions: tuple[str, ...]


def encoder(
    model: nn.Module | Network, input_shape: Sequence[int] | None = None
) -> tuple[Network, Float[Tensor, "classes d"]]:
    """Split a network: logits = head @ encoder(x) + bias, the paper's setting. The head is the last linear layer; a
    log-softmax after it is passed over.

    Raises:
        ModelError: where the network does not end in a fully connected layer.

    >>> features, head = encoder(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)))
    >>> features.nodes[-1].shape, tuple(head.shape)
    ((1, 3), (2, 3))
    """
    network = without_log_softmax(as_network(model, input_shape))
    nodes = list(network.nodes)
    while nodes[-1].keeps_values:
        nodes.pop()
    last = nodes[-1].operation
    if not isinstance(last, Dense) or nodes[-1].shape[-1] != nodes[-1].size:
        raise ModelError(
            "an encoder and a head need a last fully connected layer that gives the logits",
            f"{nodes[-1].kind} at '{nodes[-1].name or 'the top level'}' at the end",
            "return logits from the model",
        )
    return replace(network, nodes=tuple(nodes[: nodes[-1].inputs[0] + 1])), last.weight


def lipschitz(
    model: nn.Module | Network,
    *,
    norm: Norm,
    method: Method = "tightest",
    inputs: Float[Tensor, "batch *shape"] | None = None,
    input_shape: Sequence[int] | None = None,
    budget_s: float = 10.0,
    steps: int = 150,
    by_clock: bool = True,
) -> Lipschitz:
    """Bracket the Lipschitz constant of a network, from l_p to l_p.

    Args:
        model: a module, or a network that ``trace`` or ``encoder`` made; give ``encoder(model)[0]`` for the paper's L_p.
        norm: ``linf`` or ``l2``.
        method: one of the bounds above, or ``tightest``, the smallest of all that fit into the budget.
        inputs: points at which the lower bound starts; 16 random ones in [0, 1] where None.
        input_shape: of one input; taken from ``inputs``, or from a fully connected first layer, where None.
        budget_s: seconds after which no further sharpening begins. What must be computed (norms, one pass) always is.
        steps: of each optimisation, at most; 0 leaves out first-order bounds and ascent.
        by_clock: False: what fits into the budget is predicted from numbers of operations, and no clock ends anything, so
            two calls always give the same numbers, and may take longer. With a clock that holds for networks so small
            that the budget is not used up.

    Raises:
        ModelError: for operations that cannot be bounded, by name, or a method that does not apply.

    Source: Barsbey et al. 2026, Theorem 3.2; the sharper ones in ``pinchpoint.bound.methods.ellipsoid``.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU())
    >>> _ = net[0].weight.data.copy_(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    >>> result = lipschitz(net, norm="l2", inputs=torch.ones(1, 2))
    >>> round(result.lower, 6), round(result.upper, 6), result.method
    (4.0, 4.0, 'product')
    """
    check_norm(norm)
    if method not in get_args(Method):
        raise ModelError(
            f"method must be one of {', '.join(get_args(Method))}", method, "leave it out for the tightest"
        )
    if not budget_s >= 0:
        raise ModelError("budget_s must be zero or more seconds", budget_s, "try 10")
    start = time.perf_counter()
    shape = inputs.shape[1:] if input_shape is None and inputs is not None else input_shape
    network = as_network(model, shape)
    points = starting_points(network, inputs)
    uppers = uppers_by_method(network, norm, method, _UPPER * budget_s, steps, by_clock)
    best = min(uppers, key=lambda name: uppers[name])
    climb = method == "tightest" and steps > 0
    if by_clock:
        before = time.perf_counter()
        directions, low = sampled(network, points, norm, seconds=(start + budget_s - before) / 2)
        now = time.perf_counter()
        left = start + budget_s - now
        climb = climb and left > 2 * STEP_PASSES / PASSES * (now - before)  # else there is no time for a step
    else:
        left = math.inf
        passes = (1 - _UPPER) / 2 * budget_s / network_seconds(network)
        points = points[: max(1, int(min(len(points), passes / PASSES)))]
        directions, low = sampled(network, points, norm)
        steps = int(min(steps, passes / (STEP_PASSES * len(points))))
        climb = climb and steps > 0
    risen = ascended(network, points, norm, directions=directions, steps=steps, seconds=left) if climb else 0.0
    lower = max(low, risen)
    upper = certified(uppers[best], f"the {norm} constant", at_least=lower)
    finite = {name: value for name, value in uppers.items() if value < math.inf}
    return Lipschitz(norm, lower, low, upper, best, finite, time.perf_counter() - start, ASSUMPTIONS)


def margins(
    model: nn.Module | Network,
    *,
    norm: Norm,
    input_shape: Sequence[int] | None = None,
    budget_s: float = 10.0,
    steps: int = 150,
    by_clock: bool = True,
) -> Margins:
    """Certified constants of all differences of two logits, from l_p to the real line; for certified radii.

    A log-softmax at the end changes no difference of logits and is passed over.

    The smallest of: encoder constant times ||c_y - c_j||_{p*}; ellipsoids optimised for the margins; for l_inf also
    sqrt(d) times the l_2 margins. ``budget_s``, ``steps`` and ``by_clock`` are those of ``lipschitz``.

    Raises:
        ModelError: as ``lipschitz`` and ``encoder``.

    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
    >>> _ = net[0].weight.data.copy_(torch.tensor([[1.0, 2.0], [0.0, 0.0]]))
    >>> margins(net, norm="linf").upper.round(decimals=6).tolist()
    [[0.0, 3.0], [3.0, 0.0]]
    """
    check_norm(norm)
    start = time.perf_counter()
    network = without_log_softmax(as_network(model, input_shape))
    features, head = encoder(network)
    items, before = items_of(network), items_of(features)
    upper = scaled_up(dual_differences(head, norm), propagate(before, norm))
    parts = stretches(items, max(_ONE_PASS, budget_s))
    for other in ("l2", "linf") if norm == "linf" else ("l2",):
        factor = equivalence_factor(network) if other != norm else 1.0
        share = budget_s / (2 if norm == "linf" else 1)
        found = _margins_by_ellipsoid(items, parts, other, *_paced(items, parts[-1:], share, steps, by_clock))
        upper = torch.minimum(upper, scaled_up(found, factor))
        known = uppers_by_method(features, other, "tightest", 0.0, 0)
        upper = torch.minimum(upper, scaled_up(dual_differences(head, other), times_up(min(known.values()), factor)))
    certified(float(upper.max()), f"the {norm} constants of differences of logits")
    check_pairs(network, upper, norm)
    return Margins(norm, upper, time.perf_counter() - start, ASSUMPTIONS)


def without_log_softmax(network: Network) -> Network:
    """The network up to a log-softmax over its logits at the end, which leaves all differences of logits as they are."""
    nodes = list(network.nodes)
    while nodes[-1].keeps_values:
        nodes.pop()
    operation, shape = nodes[-1].operation, nodes[-1].shape
    if not (isinstance(operation, Known) and operation.keeps_differences and shape[-1] == nodes[-1].size):
        return network
    return replace(network, nodes=tuple(nodes[: nodes[-1].inputs[0] + 1]))


def as_network(model: nn.Module | Network, input_shape: Sequence[int] | None) -> Network:
    """A module traced; a network as it is."""
    return model if isinstance(model, Network) else trace(model, input_shape)


def uppers_by_method(
    network: Network, norm: Norm, method: Method, seconds: float, steps: int, by_clock: bool = True
) -> dict[Method, float]:
    """Certified bounds by method: the one asked for, or all that fit into the time."""
    items = items_of(network)
    all_of_them = method == "tightest"
    found: dict[Method, float] = {}
    if all_of_them or method == "product":
        found["product"] = propagate(items, norm)
    if method == "structure":
        found["structure"] = propagate(items, norm, run_norm=lambda run: _structure_upper(run, norm))
    if method == "alignment":
        found["alignment"] = propagate(items, norm, pair_factor=lambda first, second: _factor(first, second, norm))
    if all_of_them or method in ("fast", "first-order"):
        share = seconds / 2.0 if all_of_them and norm == "linf" else seconds
        parts = stretches(items, max(_ONE_PASS, share) if all_of_them else math.inf)
        most = 0 if method == "fast" else steps
        fast, sharpened = by_ellipsoid(items, parts, norm, *_paced(items, parts, share, most, by_clock))
        known = any(part.states is not None for part in parts)
        if method == "fast" or (all_of_them and known):
            found["fast"] = fast
        if method == "first-order" or (all_of_them and known and steps > 0):
            found["first-order"] = sharpened
    if norm == "linf" and (all_of_them or method == "equivalence"):
        others = uppers_by_method(network, "l2", "tightest", seconds / 2.0, steps, by_clock)
        found["equivalence"] = times_up(equivalence_factor(network), min(others.values()))
    if not found:
        raise ModelError(
            f"the method {method} must apply to the norm", norm, "leave method out for the tightest bound that applies"
        )
    return found


def _paced(
    items: Sequence[Item], parts: Sequence[Stretch], seconds: float, steps: int, by_clock: bool
) -> tuple[float, int]:
    """Seconds and steps of an optimisation; without a clock any time, and as many steps as are predicted to fit."""
    if by_clock:
        return seconds, steps
    each = sum(step_seconds(items, part.first, part.last) for part in parts if part.states is not None)
    return math.inf, steps if each == 0.0 else int(min(steps, seconds / each))


def by_ellipsoid(
    items: Sequence[Item], parts: Sequence[Stretch], norm: Norm, seconds: float, steps: int
) -> tuple[float, float]:
    """The fast and the first-order constant: stretch by stretch, with the product where a stretch has no state space."""
    fast = sharpened = 1.0
    left = sum(part.states is not None for part in parts)
    end = time.perf_counter() + seconds
    for part in parts:
        product = propagate(items, norm, first=part.first, last=part.last)
        values = product, product
        if part.states is not None:
            states = part.states
            goal: Literal["whole", "largest row"] = "whole" if norm == "l2" else "largest row"
            share = max(0.0, end - time.perf_counter()) / left
            left -= 1
            found = ellipsoid_bound(
                states.steps, states.last.entries, norm, goal=goal, error=states.last.error, seconds=share, most=steps
            )
            forms = found.fast, found.best
            constants = [form.whole() if norm == "l2" else float(form.rows().max()) for form in forms]
            values = constants[0], min(constants)
        fast, sharpened = times_up(fast, min(product, values[0])), times_up(sharpened, min(product, values[1]))
    return fast, sharpened


def _margins_by_ellipsoid(
    items: Sequence[Item], parts: Sequence[Stretch], norm: Norm, seconds: float, steps: int
) -> Tensor:
    """Constants of differences of outputs: the last stretch by ellipsoids, what lies before it by its constant."""
    last = parts[-1]
    classes = items[-1].size
    if last.states is None:
        return torch.full((classes, classes), torch.inf, dtype=torch.float64).fill_diagonal_(0.0)
    states = last.states
    before = 1.0
    for part in parts[:-1]:
        before = times_up(before, propagate(items, norm, first=part.first, last=part.last))
    found = ellipsoid_bound(
        states.steps, states.last.entries, norm, goal="pairs", error=states.last.error, seconds=seconds, most=steps
    )
    return scaled_up(torch.minimum(found.best.pairs(), found.fast.pairs()).cpu(), before)


def scaled_up(constants: Tensor, factor: float) -> Tensor:
    """Entrywise product, rounded up; a factor of infinity leaves zeros alone."""
    raised = (constants * factor).nextafter(torch.full_like(constants, torch.inf))
    return torch.where(constants == 0, 0.0, raised.nan_to_num(nan=torch.inf, posinf=torch.inf))


def equivalence_factor(network: Network) -> float:
    """||x||_2 <= sqrt(d) ||x||_inf."""
    return inflate(math.sqrt(network.nodes[0].size), 1)


def _structure_upper(run: Run, norm: Norm) -> float:
    matrix = run.matrix
    if matrix is None:
        raise ModelError(
            "the structure x scale bound needs a layer that fits in memory as a matrix",
            f"{run.rows} x {run.columns} at '{run.name}'",
            "take method='product'",
        )
    entries, h, d = matrix.entries, *matrix.entries.shape
    # where Theorem 3.1 is an equality, rounding decides which of the two is larger
    bound = max(inflate(structure_scale(entries, norm).bound, h + d), operator_norm_upper(entries, norm))
    return inflate(bound + matrix.error * (math.sqrt(d) if norm == "linf" else 1.0), 1)


def _factor(first: Run, second: Run, norm: Norm) -> float:
    """The alignment factor of a pair of runs; 1 where either is too large to be written out."""
    if first.matrix is None or second.matrix is None or first.matrix.error > 0.0 or second.matrix.error > 0.0:
        return 1.0
    return alignment(first.matrix.entries, second.matrix.entries, norm).factor
