"""A stretch of a network as steps of one state: a matrix, then an elementwise activation, and so on.

The state holds every value that is still to be read, so skip connections are part of it: they pass each activation with
slope 1. This is the form that ``pinchpoint.bound.methods.ellipsoid`` bounds, and it needs every run written out as a matrix.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pinchpoint.bound.methods.cost import fits, stretch_seconds
from pinchpoint.bound.methods.ellipsoid import Step
from pinchpoint.bound.methods.product import Item, cuts
from pinchpoint.bound.network.operations import Slope, Sum
from pinchpoint.bound.network.runs import SMALLEST, Matrix, Run
from pinchpoint.bound.network.trace import Node
from pinchpoint.measure.spectrum import EPS64


@dataclass(frozen=True)
class StateSpace:
    """last @ step_n(... step_1(x)); ``slopes[i]`` is the item of the activation on the first rows of step i."""

    steps: tuple[Step, ...]
    slopes: tuple[int, ...]
    last: Matrix


@dataclass(frozen=True)
class Stretch:
    """The part of a network between two items that everything goes through; ``states`` where it can be written so."""

    first: int
    last: int
    states: StateSpace | None


def stretches(items: Sequence[Item], seconds: float = math.inf) -> list[Stretch]:
    """The network as a chain of stretches, those that can be written as states as long as possible.

    Where one evaluation of a stretch is predicted to take longer than ``seconds``, its states are left out.
    """
    found: list[tuple[int, int, bool]] = []
    for first, last in pairwise(cuts(items)):
        fit = all(fits(items[index]) for index in range(first + 1, last + 1))
        if found and fit and found[-1][2]:
            found[-1] = (found[-1][0], last, True)
        else:
            found.append((first, last, fit))
    return [
        Stretch(
            first,
            last,
            state_space(items, first, last) if fit and stretch_seconds(items, first, last) <= seconds else None,
        )
        for first, last, fit in found
    ]


def state_space(items: Sequence[Item], first: int, last: int) -> StateSpace:
    """Write the items after ``first`` up to ``last`` as steps of one state."""
    readers = {source: index for index in range(first + 1, last + 1) for source in items[index].inputs}
    readers[last] = len(items)
    device = next((item.part.device for item in items if isinstance(item.part, Run)), torch.device("cpu"))
    known: dict[int, Matrix | None] = {first: None}  # None: the identity, which may be too large to be written out

    def written(index: int) -> Matrix:
        matrix = known[index]
        eye = torch.eye(items[index].size if matrix is None else 0, dtype=torch.float64, device=device)
        return Matrix(eye, 0.0) if matrix is None else matrix

    steps: list[Step] = []
    slopes: list[int] = []
    for index in range(first + 1, last + 1):
        part, inputs = items[index].part, items[index].inputs
        if isinstance(part, Run):
            matrix = part.matrix
            assert matrix is not None  # fits() has seen to it
            before = known[inputs[0]]
            known[index] = matrix if before is None else _times(matrix, before)
        elif isinstance(part.operation, Slope):
            live = [other for other in known if readers.get(other, -1) > index]
            rows = [written(inputs[0]), *(written(other) for other in live)]
            sizes = [len(row.entries) for row in rows]
            low, high = (spread(bound, part.shape, device) for bound in (part.operation.low, part.operation.high))
            ones = low.new_ones(sum(sizes[1:]))
            steps.append(
                Step(
                    torch.cat([row.entries for row in rows]),
                    torch.cat([low, ones]),
                    torch.cat([high, ones]),
                    sum(row.error for row in rows),
                )
            )
            slopes.append(index)
            eye = torch.eye(sum(sizes), dtype=torch.float64, device=device)
            known = {other: Matrix(block, 0.0) for other, block in zip([index, *live], eye.split(sizes), strict=True)}
        else:
            known[index] = _combined(part, [written(source) for source in inputs], [items[i].shape for i in inputs])
        known = {other: matrix for other, matrix in known.items() if readers.get(other, -1) > index}
    return StateSpace(tuple(steps), tuple(slopes), written(last))


def _times(second: Matrix, first: Matrix) -> Matrix:
    rows, columns = first.entries.shape
    if (
        rows == columns
        and first.error == 0.0
        and bool((first.entries.diagonal() == 1).all())
        and int(first.entries.count_nonzero()) == rows
    ):
        return second
    entries = second.entries @ first.entries
    sizes = float(second.entries.norm() * first.entries.norm())
    rounding = 8.0 * (rows + columns) * EPS64 * sizes
    error = second.error * float(first.entries.norm()) + float(second.entries.norm()) * first.error
    vanished = SMALLEST * rows * columns * len(first.entries)
    return Matrix(entries, rounding + error + second.error * first.error + vanished)


def _combined(node: Node, before: Sequence[Matrix], shapes: Sequence[tuple[int, ...]]) -> Matrix:
    """A sum, or values side by side: linear in the state, column by column."""
    operation = node.operation
    if isinstance(operation, Sum):
        entries = sum(weight * matrix.entries for weight, matrix in zip(operation.weights, before, strict=True))
        error = sum(abs(weight) * matrix.error for weight, matrix in zip(operation.weights, before, strict=True))
        assert isinstance(entries, Tensor)
        return Matrix(
            entries,
            error
            + 8.0 * len(before) * EPS64 * sum(float(matrix.entries.norm()) for matrix in before)
            + SMALLEST * entries.numel(),
        )
    columns = [matrix.entries.T.reshape(-1, *shape) for matrix, shape in zip(before, shapes, strict=True)]
    constant = node.run(*(torch.zeros_like(column[0]) for column in columns))  # what does not depend on the input
    joined: Tensor = torch.func.vmap(node.run)(*columns)
    joined = torch.where(joined == constant, 0.0, joined - constant)  # an infinite constant is none of the input's
    return Matrix(joined.flatten(1).T, sum(matrix.error for matrix in before))


def spread(value: float | Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """A number, or a tensor that broadcasts to the shape, as one number an entry."""
    return torch.as_tensor(value, dtype=torch.float64, device=device).expand(shape).flatten()
