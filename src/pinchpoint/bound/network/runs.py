"""Straight runs of linear operations, each seen as one operator with a certified norm, and as a matrix where it fits.

Scalings are folded into the dense layer or convolution beside them, so batch normalisation is part of its convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.bound.network.operations import Conv, Dense, Linear, Scale
from pinchpoint.bound.network.trace import Node
from pinchpoint.errors import ContradictionError, ModelError
from pinchpoint.measure.convolution.norms import convolution_l2, convolution_linf
from pinchpoint.measure.convolution.operator import Convolution
from pinchpoint.measure.spectrum import EPS64, inflate, row_norms, singular_values, spectral_norm_bounds, times_up
from pinchpoint.records import Norm

LARGEST_MATRIX = 2**24
"""Entries of an operator that is written out as a matrix, at most: 128 MiB in float64."""
SMALLEST = torch.finfo(torch.float64).tiny
"""Below it numbers lose digits, or become zero."""
_KEPT = 2**16
"""Numbers of folded weights that are kept, at most: of large networks they would be all weights once more."""


Bounds = tuple[float, float]

_NORMS: WeakKeyDictionary[Node, dict[tuple[Norm, int], Bounds]] = WeakKeyDictionary()
"""Norms of runs by their last node, the norm and their length: a network and its encoder share them."""


@dataclass(frozen=True)
class Matrix:
    """A run written out; ``error`` bounds the spectral norm of what rounding did to it."""

    entries: Float[Tensor, "h d"]
    error: float


@dataclass(frozen=True, eq=False)
class Run:
    """Linear operations one after the other: from ``columns`` numbers to ``rows`` numbers."""

    nodes: tuple[Node, ...]
    input_shape: tuple[int, ...]

    @property
    def name(self) -> str:
        """Path of the module that does the main work."""
        main = [node for node in self.nodes if isinstance(node.operation, Dense | Conv)]
        return (main or list(self.nodes))[-1].name

    @property
    def rows(self) -> int:
        """Size of its output."""
        return self.nodes[-1].size

    @property
    def columns(self) -> int:
        """Size of its input."""
        return math.prod(self.input_shape)

    @property
    def folded(self) -> tuple[tuple[Linear, Node, tuple[int, ...]], ...]:
        """Operations that do more than reshape, scalings folded into their neighbours; each with a node and input shape.

        Folded weights are copies: large ones are made again each time.
        """
        known: tuple[tuple[Linear, Node, tuple[int, ...]], ...] | None = self.__dict__.get("_folded")
        if known is None:
            known = self._fold()
            if sum(map(_weights, (operation for operation, *_ in known))) <= _KEPT:
                self.__dict__["_folded"] = known
        return known

    def _fold(self) -> tuple[tuple[Linear, Node, tuple[int, ...]], ...]:
        kept: list[tuple[Linear, Node, tuple[int, ...]]] = []
        shape = self.input_shape
        for node in self.nodes:
            operation = node.operation
            assert isinstance(operation, Linear)
            if node.keeps_values:
                if kept and isinstance(before := kept[-1][0], Scale):
                    kept[-1] = (Scale(before.factor.expand(shape).reshape(node.shape)), node, kept[-1][2])
            elif kept and kept[-1][1].shape == shape and (merged := _fold(kept[-1][0], operation, shape, node.shape)):
                kept[-1] = (merged, node, kept[-1][2])
            else:
                kept.append((operation, node, shape))
            shape = node.shape
        return tuple(kept)

    def norm(self, norm: Norm) -> float:
        """A certified upper bound on the operator norm from l_p to l_p."""
        return self.norm_bounds(norm)[1]

    def norm_bounds(self, norm: Norm) -> Bounds:
        """Certified bounds on the operator norm from l_p to l_p; below it 0 where nothing better is known."""
        known = _NORMS.setdefault(self.nodes[-1], {})
        key = norm, len(self.nodes)
        if key not in known:
            parts = [_operation_bounds(operation, node, shape, norm) for operation, node, shape in self.folded]
            low, best = parts[0] if len(parts) == 1 else (0.0 if parts else 1.0, times_up(*(up for _, up in parts)))
            if len(parts) > 1 and 0.0 < best < math.inf and min(self.rows, self.columns) <= 1024:
                matrix = self.matrix
                if matrix is not None:
                    # an entrywise bound on the error would be smaller; this one serves both norms
                    error = matrix.error * (math.sqrt(self.columns) if norm == "linf" else 1.0)
                    below, above = _dense_bounds(matrix.entries, norm)
                    low, best = max(0.0, below - inflate(error, 2)), min(best, inflate(above + error, 2))
            known[key] = low, best
        return known[key]

    def knows(self, norm: Norm) -> bool:
        """Whether its norm was computed before."""
        return (norm, len(self.nodes)) in _NORMS.get(self.nodes[-1], {})

    @cached_property
    def matrix(self) -> Matrix | None:
        """The operator as a matrix on flattened inputs; None where it is too large."""
        if self.rows * self.columns > LARGEST_MATRIX:
            return None
        if len(self.folded) == 1:
            operation, _, shape = self.folded[0]
            folding = sum(not node.keeps_values for node in self.nodes) > 1
            error = self._rounding if folding else 0.0
            if isinstance(operation, Dense) and math.prod(shape) == operation.weight.shape[1]:
                return Matrix(operation.weight, error)
            if isinstance(operation, Conv) and shape[0] == 1:
                return Matrix(operation.operator.dense(), error)
        return Matrix(self._written_out(), self._rounding)

    @property
    def _rounding(self) -> float:
        """A bound on the spectral norm of the error of a product of these operators in float64."""
        sizes = [math.prod(shape) for _, _, shape in self.folded] + [self.rows]
        norms = [
            times_up(_operation_bounds(operation, node, shape, "l2")[1], math.sqrt(min(math.prod(shape), node.size)))
            for operation, node, shape in self.folded
        ]
        relative = times_up(8.0 * (sum(sizes) + 8.0) * EPS64, *norms)
        # numbers too small for float64 lose their digits, whatever the others are, and the other layers enlarge that: those
        # behind in a product from the left, those before in one from the right
        vanished = times_up(SMALLEST, len(norms) * float(max(sizes)) ** 2, *(max(1.0, norm) for norm in norms))
        return inflate(relative + vanished, 2)

    def _written_out(self) -> Tensor:
        start = torch.zeros(self.input_shape, dtype=torch.float64, device=self.device)

        def run(x: Tensor) -> Tensor:
            for node in self.nodes:
                x = node.run(x)
            return x

        if self.rows <= self.columns:
            out, pull, *_ = torch.func.vjp(run, start)
            basis = torch.eye(self.rows, dtype=out.dtype, device=out.device).reshape(-1, *out.shape)
            rows: Tensor = torch.func.vmap(pull, chunk_size=256)(basis)[0]
            matrix = rows.reshape(self.rows, self.columns)
        else:
            basis = torch.eye(self.columns, dtype=torch.float64, device=self.device).reshape(-1, *self.input_shape)
            columns: Tensor = torch.func.vmap(lambda t: _linear_part(run, start, t), chunk_size=256)(basis)
            matrix = columns.reshape(self.columns, self.rows).T.contiguous()
        _check_values(run, start, lambda x: matrix @ x.flatten(), self.name, self._rounding)
        return matrix

    @property
    def device(self) -> torch.device:
        """Where its values are."""
        return self.nodes[-1].device


def _weights(operation: Linear) -> int:
    """Numbers it is made of, where they may be many."""
    if isinstance(operation, Dense):
        return operation.weight.numel()
    if isinstance(operation, Scale):
        return operation.factor.numel()
    return operation.operator.weight.numel() if isinstance(operation, Conv) else 0


def _operation_bounds(operation: Linear, node: Node, shape: tuple[int, ...], norm: Norm) -> Bounds:
    """Certified bounds on one operation's norm; below it 0 where nothing better is known."""
    if isinstance(operation, Dense):
        return _dense_bounds(operation.weight, norm)
    if isinstance(operation, Conv):
        bounds = convolution_l2(operation.operator) if norm == "l2" else convolution_linf(operation.operator)
        return bounds.lower, inflate(bounds.upper, 1)
    if isinstance(operation, Scale):
        largest = float(row_norms(operation.factor.reshape(-1, 1)).max())
        return max(0.0, 2.0 * largest - inflate(largest, 1)), inflate(largest, 1)
    if operation.moves != "anything":
        return 1.0, 1.0
    return 0.0, _positive_norm(node, shape, norm)


def _dense_bounds(matrix: Tensor, norm: Norm) -> Bounds:
    if norm == "l2":
        low, high = spectral_norm_bounds(singular_values(matrix), matrix.shape)
    else:
        largest = float(row_norms(matrix).max())
        high = inflate(largest, matrix.shape[1])
        low = max(0.0, 2.0 * largest - high)
    return low, inflate(high, 1)


def _check_values(
    run: Callable[..., Tensor], start: Tensor, linear: Callable[[Tensor], Tensor], name: str, rounding: float = 0.0
) -> None:
    """Refuse a linear part that is not what the values of an affine map say: a pair of inputs, by values alone.

    Constants on the way can hide what a small input does, and large numbers overflow, so one size that agrees is enough: a
    derivative of another function is wrong at all of them. ``rounding`` bounds the error of the linear part, in l2.

    Raises:
        ContradictionError: where values and derivative disagree at every size.
        ModelError: where they cannot be compared, since values are infinite or NaN at every size.
    """
    direction = torch.linspace(-1.0, 1.0, start.numel() + 1, dtype=start.dtype, device=start.device)[1:]
    apart, compared = math.inf, False
    for size in (1.0, 1e8, 1e-4, 1e16, 1e100, 1e-100, 1e200):
        x = size * direction.reshape(start.shape)
        here, there, change = run(start).flatten(), run(start + x).flatten(), linear(x).flatten()
        allowed = 1e-6 * (torch.fmax(here.abs(), there.abs()) + change.abs().amax()) if change.numel() else change
        if math.isfinite(rounding):
            allowed = allowed + 2.0 * rounding * float(x.norm())
        # a constant that is infinite stays where it is
        off = (torch.where(there == here, 0.0, there - here) - change).abs()
        if bool((off <= allowed).all()):
            return
        compared |= bool(off.isfinite().all())
        apart = min(apart, float((off / allowed).nan_to_num(nan=math.inf).max()))
    if not compared:
        raise ModelError(
            "a linear operation is bounded where its values are finite numbers for inputs of some size",
            f"infinities or NaN at '{name or 'the top level'}' for sizes from 1e-100 to 1e200",
            "look for weights that are infinite, NaN or overflow when multiplied",
        )
    raise ContradictionError(
        "the derivative of a linear operation must be that of its values",
        f"differences {apart:.3g} times what rounding allows at '{name or 'the top level'}'",
    )


def _linear_part(run: Callable[..., Tensor], start: Tensor, x: Tensor) -> Tensor:
    """A x of an affine map A x + b."""
    result: Tensor = torch.func.jvp(run, (start,), (x,))[1]
    return result


def _positive_norm(node: Node, shape: tuple[int, ...], norm: Norm) -> float:
    """Of A >= 0 or A <= 0: ||A||_inf = max |A 1| exactly, and Schur's test ||A||_2 <= sqrt(max |A 1| * max |A' 1|)."""
    ones = torch.ones(shape, dtype=torch.float64, device=node.device)
    rows = _linear_part(node.run, torch.zeros_like(ones), ones)
    _check_values(node.run, torch.zeros_like(ones), lambda x: _linear_part(node.run, torch.zeros_like(x), x), node.name)
    largest_row = inflate(float(rows.abs().max()), ones.numel())
    if norm == "linf":
        return largest_row
    out, pull, *_ = torch.func.vjp(node.run, torch.zeros_like(ones))
    largest_column = inflate(float(pull(torch.ones_like(out))[0].abs().max()), out.numel())
    return inflate(math.sqrt(times_up(largest_row, largest_column)), 1)


def _fold(first: Linear, second: Linear, shape: tuple[int, ...], out: tuple[int, ...]) -> Linear | None:
    """Two neighbours as one operation, where one is a scaling that the other can take in and float64 can hold it."""
    if isinstance(first, Scale) and isinstance(second, Scale):
        scaled = _held(first.factor, second.factor)
        return None if scaled is None else Scale(scaled)
    if isinstance(first, Dense) and isinstance(second, Scale):
        factor = _along(second.factor, out, -1)
        weight = None if factor is None else _held(factor[:, None], first.weight)
        return None if weight is None else Dense(weight)
    if isinstance(first, Scale) and isinstance(second, Dense):
        factor = _along(first.factor, shape, -1)
        weight = None if factor is None else _held(second.weight, factor)
        return None if weight is None else Dense(weight)
    if isinstance(first, Conv) and isinstance(second, Scale) and not first.operator.transposed:
        factor = _along(second.factor, out, -1 - len(first.operator.kernel))
        return None if factor is None else _reweighted(first.operator, factor, 0)
    if isinstance(first, Scale) and isinstance(second, Conv) and second.operator.groups == 1:
        factor = _along(first.factor, shape, -1 - len(second.operator.kernel))
        dim = 0 if second.operator.transposed else 1
        return None if factor is None else _reweighted(second.operator, factor, dim)
    return None


def _held(first: Tensor, second: Tensor) -> Tensor | None:
    """The product of two tensors; None where a number of it is too large or too small for float64 to keep its digits."""
    product = first * second
    size = product.abs()
    lost = ~torch.isfinite(product) | ((size < SMALLEST / EPS64) & (first != 0) & (second != 0))
    return None if bool(lost.any()) else product


def _along(factor: Tensor, shape: tuple[int, ...], dim: int) -> Tensor | None:
    """A factor that varies along one dimension only, as a vector."""
    dim %= len(shape)
    aligned = factor.reshape((1,) * (len(shape) - factor.ndim) + tuple(factor.shape))
    if any(size != 1 for place, size in enumerate(aligned.shape) if place != dim):
        return None
    return aligned.flatten().expand(shape[dim])


def _reweighted(operator: Convolution, factor: Tensor, dim: int) -> Conv | None:
    view = [1] * operator.weight.ndim
    view[dim] = -1
    weight = _held(operator.weight, factor.reshape(view))
    return None if weight is None else Conv(replace(operator, weight=weight))
