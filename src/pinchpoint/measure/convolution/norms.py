"""Operator norms of convolutions: of the linear operator itself, never of the matricised kernel.

l_inf is exact. l_2 lies between a Rayleigh quotient and a certified upper bound: from the matrix itself where it is small,
from the symbol on a torus, or, where that is too wide, from a Cholesky factor of b^2 I - A'A for the whole operator.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError
from pinchpoint.measure.convolution.gram import SlicedGram
from pinchpoint.measure.convolution.operator import Convolution
from pinchpoint.measure.convolution.symbol import group_norms, largest_norm, symbol_cost, symbol_norm, tori
from pinchpoint.measure.spectrum import EPS64, inflate, times_up, vector_norms

_T = TypeVar("_T")

_MATRIX_SIDE = 128  # the smaller side of a matrix that is simply written out
_MATRIX_NUMBERS = 2**22  # 32 MB
_GRAM_NUMBERS = 2**26  # 512 MB
_HOPEFUL = 2  # times the tolerance
_COMPLEX = 4  # small complex matrices take longer than their operations say
_SINGLE = 1e-6  # relative to the largest weight: smaller norms are sought in double precision
_TINY = 1e-150  # relative to the largest weight: squares below it vanish


@dataclass(frozen=True)
class NormBounds:
    """An operator norm from both sides.

    Attributes:
        lower: a certified lower bound.
        upper: a certified upper bound, its rounding error included.
        method: how the upper bound came about: ``row sums``, ``matrix``, ``torus``, ``cholesky``, ``schur`` for
            sqrt(||A||_1 ||A||_inf), or ``zero``.
    """

    lower: float
    upper: float
    method: str


def convolution_linf(op: Convolution) -> NormBounds:
    """||A||_inf: the largest l1 norm of a row of the operator's matrix, exact up to rounding.

    With zero padding a convolution of ones by |W| gives every row's norm. Other paddings let two taps of one output see
    the same input; then those taps are added before their absolute value is taken, for each way in which that happens.

    No output of this one sees the whole kernel:

    >>> kernel = torch.tensor([[[1.0, -2.0, 4.0]]], dtype=torch.float64)
    >>> round(convolution_linf(Convolution(kernel, (2,), (1,), (1,), ((1, 1),))).upper, 12)
    6.0
    """
    essential = op if op.transposed else _essential(op)  # its rows are as large
    top = float(essential.weight.abs().max()) if essential is not None else 0.0
    if essential is None or top == 0.0:
        return NormBounds(0.0, 0.0, "zero")
    scaled = replace(essential, weight=essential.weight / top)
    if op.padding_mode == "zeros":
        value = float(_row_sums(scaled).max())
    else:
        value = max(float(weight.abs().flatten(1).sum(dim=1).max()) for weight in _merged(scaled))
    terms = op.weight.numel() // min(op.weight.shape[:2])
    return NormBounds(_product_down(value / inflate(1.0, terms), top), times_up(inflate(value, terms), top), "row sums")


def convolution_l2(
    op: Convolution, *, tolerance: float = 0.01, refine: bool = True, budget: float = 2e10
) -> NormBounds:
    """||A||_2 from both sides.

    Args:
        op: the operator.
        tolerance: how far ``upper`` may lie above ``lower``, relative to it, before more work is done. Where even that
            work does not reach it, the bounds show what was reached.
        refine: whether to try the whole operator's Cholesky factor where the tori do not reach the tolerance.
        budget: floating point operations that any one refinement may take.

    >>> blur = Convolution(torch.ones(1, 1, 3, dtype=torch.float64), (100,), (1,), (1,), ((1, 1),))
    >>> bounds = convolution_l2(blur)
    >>> bounds.lower <= 1 + 2 * math.cos(math.pi / 101) <= bounds.upper <= 1.01 * bounds.lower
    True
    """
    if not 0 < tolerance < math.inf:
        raise ModelError("tolerance must be positive", tolerance, "give for example 0.01")
    conv = _essential(op.direct)
    top = float(conv.weight.abs().max()) if conv is not None else 0.0
    if conv is None or top == 0.0:
        return NormBounds(0.0, 0.0, "zero")
    conv = replace(conv, weight=conv.weight / top)
    if _is_small(conv):
        slack = 1e-12
        value, upper = largest_norm(conv.blocks(), slack=slack)
        rounding = upper**2 - (value * (1 + slack)) ** 2  # it may also have raised the value, by as much
        lower = math.sqrt(max(0.0, value**2 - rounding))
        return NormBounds(_product_down(lower - _TINY, top), times_up(upper + _TINY, top), "matrix")
    schur = math.sqrt(float(_row_sums(conv).max()) * float(_column_sums(conv).max()))
    lower = _rayleigh(conv, schur, tolerance / 50)
    upper, method = _certified(conv, lower, inflate(schur, conv.weight.numel()), tolerance, refine, budget)
    return NormBounds(_product_down(lower, top), times_up(upper + _TINY, top), method)


def _certified(
    conv: Convolution, lower: float, schur: float, tolerance: float, refine: bool, budget: float
) -> tuple[float, str]:
    """An upper bound within the tolerance of ``lower``, or the best there is, and the name of its method."""
    upper, method, good = schur, "schur", lower * (1 + tolerance)
    gram = SlicedGram(_longest_first(conv))
    affordable = gram.cost <= budget and gram.numbers <= _GRAM_NUMBERS
    whole = affordable and refine
    periodic, factor = _extended(conv)
    for torus in tori(periodic):
        cost = symbol_cost(periodic, torus)
        if method == "schur" and affordable and gram.cost <= _COMPLEX * cost:
            whole = True  # better, and no dearer
            break
        if method == "torus" and (cost > budget or not good < upper <= lower * (1 + _HOPEFUL * tolerance)):
            break  # enough, or too far off for another twist to help; the first torus is worth any cost
        bound = symbol_norm(periodic, torus, at_least=lower / factor, slack=min(1e-3, tolerance / 4)) * factor
        if bound < upper:
            upper, method = bound, "torus"
    if not whole or upper <= good:
        return upper, method
    least = lower * (1 + tolerance / 2)
    gram = SlicedGram(_longest_first(_heavy(conv, least)))
    for bound in (least, good, math.sqrt(good * upper)):
        certified = gram.upper(bound) if bound < upper else None
        if certified is not None and certified < upper:
            return certified, "cholesky"
    return upper, method


def _heavy(conv: Convolution, bound: float) -> Convolution:
    """The convolution's groups whose norms may exceed the bound, or all of them where that is not known for less."""
    if conv.groups == 1 or conv.padding_mode != "zeros":
        return conv
    heavy = torch.stack([group_norms(conv, torus) for torus in tori(conv)]).amin(0) > bound
    if not bool(heavy.any()):
        return conv
    weight = conv.weight.unflatten(0, (conv.groups, -1))[heavy].flatten(0, 1)
    return replace(conv, weight=weight, groups=int(heavy.sum()))


def _essential(conv: Convolution) -> Convolution | None:
    """A direct convolution of the same norms without taps that see only zeros; None where none is left.

    Where one tap is left along a dimension, one position is enough.
    """
    if conv.padding_mode != "zeros":
        return conv
    for dim, (before, after) in enumerate(conv.padding):
        seen = torch.nonzero((conv.sources(dim) >= 0).any(dim=0)).flatten().tolist()
        if not seen:
            return None
        first, last, d = seen[0], seen[-1], conv.dilation[dim]
        weight = conv.weight.narrow(2 + dim, first, last - first + 1)
        if first == last:
            conv = replace(
                conv,
                weight=weight,
                input_size=_with(conv.input_size, dim, 1),
                stride=_with(conv.stride, dim, 1),
                padding=_with(conv.padding, dim, (0, 0)),
            )
        else:
            trimmed = (before - d * first, after - d * (conv.kernel[dim] - 1 - last))
            conv = replace(conv, weight=weight, padding=_with(conv.padding, dim, trimmed))
    return conv


def _longest_first(conv: Convolution) -> Convolution:
    """The same operator, its positions read in another order."""
    order = sorted(range(len(conv.kernel)), key=lambda dim: -conv.input_size[dim])
    return replace(
        conv,
        weight=conv.weight.permute(0, 1, *(2 + dim for dim in order)),
        input_size=tuple(conv.input_size[dim] for dim in order),
        stride=tuple(conv.stride[dim] for dim in order),
        dilation=tuple(conv.dilation[dim] for dim in order),
        padding=tuple(conv.padding[dim] for dim in order),
    )


def _is_small(conv: Convolution) -> bool:
    rows = conv.weight.shape[0] // conv.groups * math.prod(conv.output_shape[1:])
    columns = conv.weight.shape[1] * math.prod(conv.input_size)
    return min(rows, columns) <= _MATRIX_SIDE and conv.groups * rows * columns <= _MATRIX_NUMBERS


def _extended(conv: Convolution) -> tuple[Convolution, float]:
    """A convolution that a torus holds, and the norm of the padding that stands before it.

    Reflection and replication repeat inputs: as an operator of its own, such padding has the norm sqrt(most repetitions).
    """
    if conv.padding_mode == "zeros" or (conv.padding_mode == "circular" and tori(conv)):
        return conv, 1.0
    sizes = tuple(n + sum(pads) for n, pads in zip(conv.input_size, conv.padding, strict=True))
    repeated = math.prod(int(torch.bincount(conv.padded(dim)).max()) for dim in range(len(sizes)))
    without = replace(conv, input_size=sizes, padding=((0, 0),) * len(sizes), padding_mode="zeros")
    return without, inflate(math.sqrt(repeated), 1)


def _rayleigh(conv: Convolution, schur: float, accuracy: float) -> float:
    """||A x|| / ||x||, lowered by its rounding error, for the x that Lanczos' method found.

    Only x comes from single precision, where convolutions take a third of the time; the quotient does not.
    """
    dtype = torch.float32 if schur > _SINGLE else torch.float64
    x = _leading_input(replace(conv, weight=conv.weight.to(dtype)), accuracy).to(torch.float64)
    image = conv.apply(x.view(1, *conv.input_shape))
    quotient = float(vector_norms(image.flatten()) / vector_norms(x))
    terms = conv.weight.numel() // conv.weight.shape[0]
    return max(0.0, quotient / inflate(1.0, image.numel() + x.numel()) - 8 * terms * EPS64 * schur)


def _leading_input(conv: Convolution, accuracy: float, steps: int = 24, rounds: int = 8) -> Float[Tensor, "inputs"]:
    """An input that A stretches nearly the most, by Lanczos' method for A'A in the precision of the weights.

    A round ends when four steps raise ||A x|| / ||x|| by less than ``accuracy`` of it, which ends the search, or after
    ``steps``; the next one starts from where it ended.
    """
    start = torch.randn(conv.input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x, found = start.flatten().to(conv.weight), 0.0
    basis = x.new_empty(steps, len(x))
    for _ in range(rounds):
        following, left = x, torch.linalg.vector_norm(x)
        triangle = torch.zeros(steps, steps, dtype=torch.float64)
        done, at = False, 0
        while True:
            basis[at] = following / left
            span = basis[: at + 1]
            following = conv.adjoint(conv.apply(basis[at].view(1, *conv.input_shape))).flatten()
            size = float(torch.linalg.vector_norm(following))
            along = span @ following
            following = following - span.T @ along
            following = following - span.T @ (span @ following)  # twice is enough (Kahan)
            triangle[at, at] = along[at]
            left = torch.linalg.vector_norm(following)
            exhausted = float(left) <= 100 * torch.finfo(x.dtype).eps * size
            at += 1
            if exhausted or at % 4 == 0 or at == steps:
                values, vectors = torch.linalg.eigh(triangle[:at, :at])
                before, found = found, math.sqrt(max(0.0, float(values[-1])))
                done = exhausted or found <= before * (1 + accuracy)
                if done or at == steps:
                    break
            triangle[at, at - 1] = left  # eigh reads the lower triangle
        x = vectors[:, -1].to(span) @ span
        if done:
            break
    return x


def _row_sums(conv: Convolution) -> Float[Tensor, "*output"]:
    """Sums of |taps| of each output: the row sums of |A|, or more where two taps see the same input.

    All inputs are one here, so channels are added up before anything moves over the image.
    """
    weight = conv.weight.abs()
    weight = (
        weight.unflatten(0, (conv.groups, -1)).sum(1).flatten(0, 1)[None] if conv.transposed else weight.sum(1, True)
    )
    alone = replace(conv, weight=weight, groups=1)
    return alone.apply(weight.new_ones(1, *alone.input_shape))[0]


def _column_sums(conv: Convolution) -> Float[Tensor, "*input"]:
    weight = conv.weight.abs()
    weight = (
        weight.sum(1, True) if conv.transposed else weight.unflatten(0, (conv.groups, -1)).sum(1).flatten(0, 1)[None]
    )
    alone = replace(conv, weight=weight, groups=1)
    return alone.adjoint(weight.new_ones(1, *alone.output_shape))[0]


def _merged(conv: Convolution) -> list[Float[Tensor, "out in *places"]]:
    """The weights with taps that see the same input added up, once for each way in which outputs make them do so."""
    patterns = []
    for dim in range(len(conv.kernel)):
        rows = conv.sources(dim).tolist()
        patterns.append({tuple(row.index(source) for source in row) for row in rows})
    merged = []
    for pattern in itertools.product(*patterns):
        weight = conv.weight
        for dim, places in enumerate(pattern):
            index = torch.tensor(places, device=weight.device)
            weight = torch.zeros_like(weight).index_add(2 + dim, index, weight)
        merged.append(weight)
    return merged


def _product_down(value: float, top: float) -> float:
    """value * top, never above the exact product."""
    return max(0.0, math.nextafter(value * top, -math.inf))


def _with(numbers: tuple[_T, ...], at: int, value: _T) -> tuple[_T, ...]:
    return (*numbers[:at], value, *numbers[at + 1 :])
