"""Singular values, computed once a layer; operator norms with their rounding error.

Exact norms of a dense h x d matrix: ||W||_inf is the largest l1 norm of a row, ||W||_2 the largest singular value.
``operator_norm_upper`` adds a bound on the rounding error, so that what is built on it stays an upper bound.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError
from pinchpoint.measure.ranks import stable_rank
from pinchpoint.records import Norm
from pinchpoint.utils.threads import one_thread

EPS64 = torch.finfo(torch.float64).eps

Method = Literal["auto", "gram", "svd"]
"""How singular values are computed."""

_GRAM_FROM = 32  # below, an SVD takes well under a millisecond
_GRAM_FLOOR = 1e-4
_BLOCK = 128
_SPAN, _STEP = 2200, 1000  # powers of two from float64's smallest number to its largest, and what one product may take
_TINY, _HUGE = 1e-100, 1e100  # between them squares and their sums are safe
_MANY_THREADS_FROM = 1024


def as_matrix(matrix: Float[Tensor, "h d"]) -> Float[Tensor, "h d"]:
    """The matrix in float64, detached; refused where it is empty, not real floating point, or not finite."""
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise ModelError(
            "a layer's matrix must be two-dimensional and not empty",
            f"shape {tuple(matrix.shape)}",
            "look the layer up with pinchpoint.measure.layers.layers(model)",
        )
    if not matrix.dtype.is_floating_point:
        raise ModelError(
            "weights must be real floating point numbers", str(matrix.dtype), "convert the model, e.g. model.float()"
        )
    matrix = matrix.detach().to(torch.float64)
    if not math.isfinite(_largest(matrix)):
        raise ModelError(
            "weights must be finite", "NaN or infinite values", "check that training did not diverge before measuring"
        )
    return matrix


def _largest(matrix: Float[Tensor, "h d"]) -> float:
    """The largest magnitude, or NaN where there is one; nothing is copied."""
    low, high = torch.aminmax(matrix)
    return max(-float(low), float(high))


def row_norms(matrix: Float[Tensor, "h d"]) -> Float[Tensor, "h"]:
    """nu: l1 norms of the rows, in float64.

    >>> row_norms(torch.tensor([[1.0, -2.0], [0.0, 0.5]])).tolist()
    [3.0, 0.5]
    """
    norms: Tensor = torch.linalg.vector_norm(as_matrix(matrix), 1, dim=1)
    return norms


def column_norms(matrix: Float[Tensor, "h d"]) -> Float[Tensor, "d"]:
    """l1 norms of the columns, in float64.

    >>> column_norms(torch.tensor([[1.0, -2.0], [0.0, 0.5]])).tolist()
    [1.0, 2.5]
    """
    return as_matrix(matrix).abs().sum(dim=0)


def singular_values(matrix: Float[Tensor, "h d"], method: Method = "auto") -> Float[Tensor, "r"]:
    """sigma, descending, in float64, r = min(h, d). Scaled first, so tiny and huge weights lose nothing.

    Args:
        matrix: h x d.
        method: ``svd`` is accurate to about eps64 sigma_1 in every value. ``gram`` takes the roots of the eigenvalues of
            W W' (or W' W, the smaller one), 3 to 15 times faster; it squares the condition, so a value sigma is off by
            about eps64 sigma_1^2 / (2 sigma), and what lies below 1e-8 sigma_1 is noise of that size, or zero. ``auto``
            takes Gram's values where the smallest is at least 1e-4 sigma_1, so that all are accurate to about
            1e-12 sigma_1, and an SVD for the others and for small matrices. In every method rows and columns of zeros
            are left out first and count as values of exactly zero.

    >>> [round(value, 12) for value in singular_values(torch.diag(torch.tensor([3.0, 4.0]))).tolist()]
    [4.0, 3.0]
    """
    if method not in get_args(Method):
        raise ModelError(f"method must be one of {', '.join(get_args(Method))}", method, "leave it at auto")
    matrix = as_matrix(matrix)
    sigma = torch.zeros(min(matrix.shape), dtype=torch.float64, device=matrix.device)
    filled = matrix != 0
    rows, columns = filled.any(dim=1), filled.any(dim=0)
    if not bool(rows.all() and columns.all()):
        matrix = matrix[rows][:, columns]
    if matrix.numel() == 0:
        return sigma
    top = _largest(matrix)
    scale = 1.0 if _TINY < top < _HUGE else top
    matrix = matrix if scale == 1.0 else matrix / scale
    side = min(matrix.shape)
    with one_thread(side < _MANY_THREADS_FROM):
        sigma[:side] = _values(matrix, method) * scale
    return sigma


def _values(matrix: Float[Tensor, "h d"], method: Method) -> Float[Tensor, "r"]:
    """Singular values of a matrix whose squares neither vanish nor overflow."""
    if method == "gram" or (method == "auto" and min(matrix.shape) >= _GRAM_FROM):
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        sigma: Tensor = torch.linalg.eigvalsh(_gram(wide)).flip(0).clamp(min=0.0).sqrt()
        if method == "gram" or float(sigma[-1]) >= _GRAM_FLOOR * float(sigma[0]):
            return sigma
    values: Tensor = torch.linalg.svdvals(matrix)
    return values


def _gram(wide: Float[Tensor, "h d"]) -> Float[Tensor, "h h"]:
    """The lower triangle of W W', which is all ``eigvalsh`` reads, in blocks of rows: up to half the work."""
    h = wide.shape[0]
    gram = torch.zeros(h, h, dtype=wide.dtype, device=wide.device)
    for start in range(0, h, _BLOCK):
        torch.mm(wide[start:], wide[start : start + _BLOCK].mT, out=gram[start:, start : start + _BLOCK])
    return gram


def vector_norms(vectors: Float[Tensor, "*batch n"], order: int | float = 2) -> Float[Tensor, "*batch"]:
    """Norms along the last dimension, scaled first: squares of tiny and huge entries neither vanish nor overflow.

    Differentiable; the gradient of a zero vector is zero.

    >>> vector_norms(torch.tensor([[3e-200, 4e-200], [0.0, 0.0]], dtype=torch.float64)).tolist()
    [5e-200, 0.0]
    """
    # a constant to autograd: the gradient is the same
    low, high = vectors.detach().amin(dim=-1, keepdim=True), vectors.detach().amax(dim=-1, keepdim=True)
    top = torch.maximum(low.abs(), high.abs())
    norms: Tensor = torch.linalg.vector_norm(vectors / torch.where(top > 0, top, 1.0), order, dim=-1)
    result: Tensor = norms * top.squeeze(-1)
    return result


def frobenius_norm(matrix: Float[Tensor, "h d"]) -> float:
    """||W||_F in float64.

    >>> frobenius_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    5.0
    """
    return float(vector_norms(as_matrix(matrix).flatten()))


def check_norm(norm: str) -> None:
    """Refuse a norm that Pinchpoint does not know."""
    if norm not in get_args(Norm):
        raise ModelError(f"norm must be one of {', '.join(get_args(Norm))}", norm, "write linf or l2")


def operator_norm(matrix: Float[Tensor, "h d"], norm: Norm) -> float:
    """||W||_inf or ||W||_2 of a dense matrix, exact up to rounding in float64.

    >>> operator_norm(torch.tensor([[1.0, -2.0], [0.0, 0.5]]), "linf")
    3.0
    """
    check_norm(norm)
    if norm == "linf":
        return float(row_norms(matrix).max())
    return float(singular_values(matrix)[0])


def operator_norm_upper(matrix: Float[Tensor, "h d"], norm: Norm) -> float:
    """An upper bound on the operator norm that also covers the rounding error of computing it."""
    check_norm(norm)
    if norm == "linf":
        return inflate(float(row_norms(matrix).max()), matrix.shape[1])
    return spectral_norm_bounds(singular_values(matrix), matrix.shape)[1]


def spectral_norm_bounds(sigma: Float[Tensor, "r"], shape: Sequence[int]) -> tuple[float, float]:
    """Lower and upper bounds on ||W||_2 that hold whatever ``singular_values`` rounded, by either of its methods.

    An SVD or a symmetric eigenvalue solver is off by p(h, d) eps sigma_1 (see ``inflate``). Gram's sums over the longer
    side, n, change W W' by at most n eps/2 |W||W|', whose norm is at most ||W||_F^2: sigma_1 by n eps/4 of itself times
    the stable rank (Higham 2002, section 3.5).

    >>> lower, upper = spectral_norm_bounds(torch.tensor([4.0, 3.0], dtype=torch.float64), (2, 2))
    >>> lower < 4.0 < upper < 4.0 * (1 + 1e-13)
    True
    """
    top = float(sigma[0])
    upper = inflate(top, sum(shape) + math.ceil(max(shape) * stable_rank(sigma) / 8))
    return max(0.0, math.nextafter(2.0 * top - upper, 0.0)), upper


def inflate(value: float, terms: int) -> float:
    """``value`` raised by the relative rounding error of a backward-stable float64 computation over ``terms`` terms.

    A sum of n terms is off by less than n eps; LAPACK's singular values by p(h, d) eps sigma_1 with p of the order of
    h + d (LAPACK Users' Guide, section 4.9). Eight times that leaves room. Where numbers are so small that only absolute
    rounding is left, the next larger one is taken; zero stays zero, and NaN, of which nothing is known, gives infinity.
    """
    if math.isnan(value):
        return math.inf
    return math.nextafter(value * (1.0 + 8.0 * terms * EPS64), math.inf) if value > 0 else value


def times_up(*factors: float) -> float:
    """Product of numbers >= 0 that is never below the exact one: zero only where a factor is zero, never inf * 0.

    What is too large or too small on the way is carried in an exponent of its own; NaN among the factors gives infinity.

    >>> times_up(1e-200, 1e-200) > 0, times_up(1e200, 1e200, 0.0), times_up(1e-200, 1e200, 1e200) < 1e201
    (True, 0.0, True)
    """
    if any(math.isnan(factor) for factor in factors):
        return math.inf
    if 0.0 in factors:
        return 0.0
    product, exponent = 1.0, 0
    for factor in factors:
        product, shift = math.frexp(math.nextafter(product * math.frexp(factor)[0], math.inf))
        exponent += shift + (math.frexp(factor)[1] if factor < math.inf else 0)
    return power_up(product, exponent)


def power_up(value: float, exponent: int) -> float:
    """value * 2**exponent for a value >= 0, rounded up where it is no number of float64.

    >>> power_up(1.0, -2000) > 0, power_up(1.0, 2000), power_up(0.0, 2000), power_up(3.0, 1)
    (True, inf, 0.0, 6.0)
    """
    try:
        product = math.ldexp(value, exponent)
    except OverflowError:
        return math.inf
    return product if product >= sys.float_info.min or value == 0.0 else math.nextafter(product, math.inf)


def shifted(values: Float[Tensor, "*shape"], exponent: int) -> Float[Tensor, "*shape"]:
    """values * 2**exponent, which is exact but for numbers that become too large or too small for float64.

    >>> shifted(torch.tensor([1e-300], dtype=torch.float64), 1000).item() == 1e-300 * 2.0**1000
    True
    """
    left = max(-_SPAN, min(_SPAN, exponent))
    while left:  # 2**exponent itself may be no number
        step = max(-_STEP, min(_STEP, left))
        values, left = values * 2.0**step, left - step
    return values
