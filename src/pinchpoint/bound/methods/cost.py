"""How long certifying takes, predicted from the number of floating point operations before anything is written out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pinchpoint.bound.methods.product import Item, cuts
from pinchpoint.bound.network.operations import Conv, Dense, Join, Scale, Slope, Sum
from pinchpoint.bound.network.runs import LARGEST_MATRIX, Run
from pinchpoint.bound.network.trace import Network
from pinchpoint.records import Norm

LARGEST_STATE = 2500
"""Entries of a value that is part of a state, at most: one optimisation step costs a few times the cube of this."""
_RATE = 5e9
"""Floating point operations a second that are counted on: two cores shared with others."""
STEP = 4.0
"""A step of an optimisation takes so many times what one evaluation takes."""
_WRITTEN = 1e7
"""Entries of a convolution's matrix written out a second."""


def writing_seconds(run: Run) -> float:
    """Seconds to write a run out as a matrix."""
    working = [node.operation for node in run.nodes if not node.keeps_values]
    stored = any(isinstance(one, Dense) for one in working) and all(isinstance(one, Dense | Scale) for one in working)
    return 0.0 if stored else run.rows * run.columns / _WRITTEN


def structure_seconds(runs: Sequence[Run]) -> float:
    """Seconds for the singular values of all runs as matrices."""
    operations = sum(4.0 * run.rows * run.columns * min(run.rows, run.columns) for run in runs)
    return operations / _RATE + sum(map(writing_seconds, runs))


def alignment_seconds(first: Run, second: Run, norm: Norm) -> float:
    """Seconds to align two runs."""
    side = min(first.rows, first.columns + second.rows)
    operations = 250.0 * side**3 if norm == "l2" else 40.0 * first.rows * first.columns * second.rows
    return operations / _RATE + writing_seconds(first) + writing_seconds(second)


def ellipsoid_seconds(items: Sequence[Item]) -> float | None:
    """Seconds of one evaluation of the ellipsoids; None where no stretch of the network with an activation fits."""
    found = [
        stretch_seconds(items, first, last)
        for first, last in pairwise(cuts(items))
        if all(fits(items[index]) for index in range(first + 1, last + 1))
    ]
    return sum(found) if any(found) else None


def stretch_seconds(items: Sequence[Item], first: int, last: int) -> float:
    """Seconds of one evaluation on the items after ``first`` up to ``last``, which all fit, the first one: runs are written
    out for it."""
    parts = [item.part for item in items[first + 1 : last + 1]]
    return sum(writing_seconds(part) for part in parts if isinstance(part, Run)) + _evaluation(items, first, last)


def _evaluation(items: Sequence[Item], first: int, last: int) -> float:
    """Seconds of the next ones."""
    inside = range(first + 1, last + 1)
    readers = {source: index for index in inside for source in items[index].inputs}
    seconds = 0.0
    for index in inside:
        part = items[index].part
        if isinstance(part, Run):
            seconds += 2.0 * part.rows * part.columns * (part.rows + part.columns) / _RATE
        elif isinstance(part.operation, Slope):
            passing = sum(items[other].size for other, reader in readers.items() if other < index < reader)
            seconds += 12.0 * (items[index].size + passing) ** 3 / _RATE
    return seconds


def step_seconds(items: Sequence[Item], first: int, last: int) -> float:
    """Seconds of one optimisation step on the ellipsoids of such a stretch."""
    return STEP * _evaluation(items, first, last)


def network_seconds(network: Network) -> float:
    """Seconds of one evaluation of a network in float64."""
    operations = network.nodes[0].size
    for node in network.nodes[1:]:
        operation = node.operation
        if isinstance(operation, Dense):
            operations += 2 * node.size * operation.weight.shape[1]
        elif isinstance(operation, Conv):
            weight = operation.operator.weight
            side = network.nodes[node.inputs[0]].size if operation.operator.transposed else node.size
            operations += 2 * side * weight[0].numel()
        operations += node.size
    return operations / _RATE


def fits(item: Item) -> bool:
    """Whether an item can be part of a state space."""
    if isinstance(item.part, Run):
        return item.part.rows <= LARGEST_STATE and item.part.rows * item.part.columns <= LARGEST_MATRIX
    return isinstance(item.part.operation, Slope | Sum | Join) and item.size <= LARGEST_STATE
