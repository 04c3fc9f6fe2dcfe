"""Lipschitz constants by multiplying along a network: the paper's form (Theorem 3.2), for any graph of operations.

The network is first cut into items: straight runs of linear operations, and everything else. A constant from the input to
each item follows from those before it:

    run           L = N * L_before,  N >= ||run||_p
    activation    L = max |slope| * L_before
    sum           L = sum_i |w_i| L_i       (a residual block: L(x + f) <= 1 + L(f))
    side by side  L = (sum_i L_i^2)^(1/2) in l_2, max_i L_i in l_inf
    maxima        L = sqrt(windows) * L_before in l_2, L_before in l_inf

Where run, activation with slopes in [0, 1] and run follow each other with nothing else attached, the pair may count as
N_1 N_2 min(1, A_p) instead. Taking the smaller at each run is the dynamic programme over disjoint pairs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from weakref import WeakKeyDictionary

from torch import Tensor

from pinchpoint.bound.network.operations import Conv, Dense, Join, Known, Largest, Linear, Slope, Sum
from pinchpoint.bound.network.runs import Run
from pinchpoint.bound.network.trace import Network, Node
from pinchpoint.measure.spectrum import inflate, times_up
from pinchpoint.records import Norm
from pinchpoint.utils.threads import side_by_side

RunNorm = Callable[[Run], float]
PairFactor = Callable[[Run, Run], float]

_LARGE = 2**16
"""Entries of a run from which a thread of its own pays."""


@dataclass(frozen=True)
class Item:
    """A run, or one operation that is not linear; ``inputs`` are items, ``node`` is the index of its last node."""

    part: Run | Node
    inputs: tuple[int, ...]
    node: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its value."""
        return self.part.nodes[-1].shape if isinstance(self.part, Run) else self.part.shape

    @property
    def size(self) -> int:
        """Number of entries of its value."""
        return math.prod(self.shape)


_ITEMS: WeakKeyDictionary[Network, list[Item]] = WeakKeyDictionary()
"""Runs keep their norms and matrices, so a network is cut into items once."""


def items_of(network: Network) -> list[Item]:
    """The network as runs and other operations, in order; item 0 is the input.

    Raises:
        ModelError: where an operation has no known constant, by name.
    """
    network.require_bounded()
    return parts_of(network)


def parts_of(network: Network) -> list[Item]:
    """The same of any network: what has no known constant is an item, too."""
    if network not in _ITEMS:
        _ITEMS[network] = _cut(network)
    return _ITEMS[network]


def _cut(network: Network) -> list[Item]:
    consumers = network.consumers()
    place: dict[int, int] = {0: 0}
    items = [Item(network.nodes[0], (), 0)]
    for index, node in enumerate(network.nodes[1:], start=1):
        before = items[place[node.inputs[0]]]
        if isinstance(node.operation, Linear):
            source = node.inputs[0]
            if isinstance(before.part, Run) and before.node == source and len(consumers[source]) == 1:
                grown = Run((*before.part.nodes, node), before.part.input_shape)
                items[place[source]] = Item(grown, before.inputs, index)
                place[index] = place[source]
                continue
            items.append(Item(Run((node,), network.nodes[source].shape), (place[source],), index))
        else:
            items.append(Item(node, tuple(place[source] for source in node.inputs), index))
        place[index] = len(items) - 1
    return items


def cuts(items: Sequence[Item]) -> list[int]:
    """Items that everything after them goes through: the network is a chain of what lies between two of these."""
    reach = len(items)
    found = []
    for index in range(len(items) - 1, -1, -1):
        if reach >= index:
            found.append(index)
        reach = min((reach, *items[index].inputs))
    return found[::-1]


def propagate(
    items: Sequence[Item],
    norm: Norm,
    *,
    first: int = 0,
    last: int | None = None,
    run_norm: RunNorm | None = None,
    pair_factor: PairFactor | None = None,
) -> float:
    """A constant from item ``first`` to item ``last``, both of them cuts."""
    last = len(items) - 1 if last is None else last
    if run_norm is None:
        find_norms(items[first + 1 : last + 1], norm)
        run_norm = partial(Run.norm, norm=norm)
    readers = _readers(items)
    constants = {first: 1.0}
    for index in range(first + 1, last + 1):
        item = items[index]
        before = [constants[source] for source in item.inputs]
        if isinstance(item.part, Run):
            constants[index] = times_up(run_norm(item.part), before[0])
            pair = _pair(items, index, first, readers) if pair_factor is not None else None
            if pair is not None and pair_factor is not None:
                earlier = items[pair].part
                assert isinstance(earlier, Run)
                norms = run_norm(earlier), run_norm(item.part)
                factor = pair_factor(earlier, item.part)
                constants[index] = min(constants[index], times_up(*norms, factor, constants[items[pair].inputs[0]]))
        else:
            constants[index] = combined(item.part, before, norm)
    return constants[last]


def find_norms(items: Sequence[Item], norm: Norm) -> None:
    """Compute the norms of single layers that are not known yet; on a CPU side by side, a thread each.

    Runs of several need forward-mode derivatives, which torch has for one thread only; they wait to be asked for. For
    the 20 convolutions of a ResNet-20 at 32 x 32 this took 4 s instead of 26 (l2, two cores shared with others).
    """
    new = [item.part for item in items if isinstance(item.part, Run) and not item.part.knows(norm)]
    single = [run for run in new if len(folded := run.folded) == 1 and isinstance(folded[0][0], Dense | Conv)]
    large = [run for run in single if run.rows * run.columns >= _LARGE and run.device.type == "cpu"]
    side_by_side(partial(Run.norm, norm=norm), sorted(large, key=lambda run: -run.rows * run.columns))


def pairs(items: Sequence[Item]) -> list[tuple[Run, Run]]:
    """Runs that follow each other with only an activation with slopes in [0, 1] between them: those that may be aligned."""
    readers = _readers(items)
    found = ((_pair(items, index, 0, readers), item.part) for index, item in enumerate(items))
    chained = [(items[first].part, second) for first, second in found if first is not None]
    return [(first, second) for first, second in chained if isinstance(first, Run) and isinstance(second, Run)]


def combined(node: Node, before: Sequence[float], norm: Norm) -> float:
    """A constant up to and including an operation that is not linear, from those up to its inputs."""
    operation = node.operation
    if isinstance(operation, Slope):
        return times_up(steepest(operation), before[0])
    if isinstance(operation, Largest):
        return times_up(1.0 if norm == "linf" else inflate(math.sqrt(operation.windows), 1), before[0])
    if isinstance(operation, Known):
        return times_up(operation.constant(norm), before[0])
    if isinstance(operation, Sum):
        weighted = [times_up(abs(weight), value) for weight, value in zip(operation.weights, before, strict=True)]
        return inflate(sum(weighted), len(weighted))
    assert isinstance(operation, Join)
    return max(before) if norm == "linf" else inflate(math.hypot(*before), len(before))


def steepest(slope: Slope) -> float:
    """The largest magnitude of a difference quotient."""
    return max(_largest(slope.low), _largest(slope.high))


def _largest(value: float | Tensor) -> float:
    return abs(value) if isinstance(value, float) else float(value.abs().max())


def within_unit(slope: Slope) -> bool:
    """Whether all difference quotients lie in [0, 1]."""
    return float(_least(slope.low)) >= 0.0 and _largest(slope.high) <= 1.0


def _least(value: float | Tensor) -> float:
    return value if isinstance(value, float) else float(value.min())


def _readers(items: Sequence[Item]) -> list[int]:
    readers = [0] * len(items)
    for item in items:
        for source in item.inputs:
            readers[source] += 1
    return readers


def _pair(items: Sequence[Item], index: int, first: int, readers: Sequence[int]) -> int | None:
    """The run before this one, where only a [0, 1] activation stands between them and nobody else reads either."""
    if not isinstance(items[index].part, Run):
        return None
    middle = items[index].inputs[0]
    if middle <= first or readers[middle] != 1:
        return None
    part = items[middle].part
    if isinstance(part, Run) or not isinstance(part.operation, Slope) or not within_unit(part.operation):
        return None
    earlier = items[middle].inputs[0]
    if earlier <= first or readers[earlier] != 1 or not isinstance(items[earlier].part, Run):
        return None
    return earlier
