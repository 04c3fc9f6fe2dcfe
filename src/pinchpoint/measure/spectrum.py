"""Singular values, computed once a layer; ranks drawn from them; operator norms with their rounding error.

Exact norms of a dense h x d matrix: ||W||_inf is the largest l1 norm of a row, ||W||_2 the largest singular value.
``operator_norm_upper`` adds a bound on the rounding error, so that what is built on it stays an upper bound.
"""

from __future__ import annotations

import math
from typing import get_args

import torch
from jaxtyping import Float
from torch import Tensor

from pinchpoint.errors import ModelError
from pinchpoint.records import Norm

EPS64 = torch.finfo(torch.float64).eps


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
    if not bool(torch.isfinite(matrix).all()):
        raise ModelError(
            "weights must be finite", "NaN or infinite values", "check that training did not diverge before measuring"
        )
    return matrix


def row_norms(matrix: Float[Tensor, "h d"]) -> Float[Tensor, "h"]:
    """nu: l1 norms of the rows, in float64.

    >>> row_norms(torch.tensor([[1.0, -2.0], [0.0, 0.5]])).tolist()
    [3.0, 0.5]
    """
    return as_matrix(matrix).abs().sum(dim=1)


def singular_values(matrix: Float[Tensor, "h d"]) -> Float[Tensor, "r"]:
    """sigma, descending, in float64, r = min(h, d). Scaled before the SVD, so tiny and huge weights lose nothing.

    >>> [round(value, 12) for value in singular_values(torch.diag(torch.tensor([3.0, 4.0]))).tolist()]
    [4.0, 3.0]
    """
    matrix = as_matrix(matrix)
    top = float(matrix.abs().max())
    if top == 0.0:
        return torch.zeros(min(matrix.shape), dtype=torch.float64, device=matrix.device)
    values: Tensor = torch.linalg.svdvals(matrix / top)
    return values * top


def vector_norms(vectors: Float[Tensor, "*batch n"], order: int = 2) -> Float[Tensor, "*batch"]:
    """Norms along the last dimension, scaled first: squares of tiny and huge entries neither vanish nor overflow.

    Differentiable; the gradient of a zero vector is zero.

    >>> vector_norms(torch.tensor([[3e-200, 4e-200], [0.0, 0.0]], dtype=torch.float64)).tolist()
    [5e-200, 0.0]
    """
    top = vectors.detach().abs().amax(dim=-1, keepdim=True)  # a constant to autograd: the gradient is the same
    norms: Tensor = torch.linalg.vector_norm(vectors / torch.where(top > 0, top, 1.0), order, dim=-1)
    return norms * top.squeeze(-1)


def frobenius_norm(matrix: Float[Tensor, "h d"]) -> float:
    """||W||_F in float64.

    >>> frobenius_norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
    5.0
    """
    return float(vector_norms(as_matrix(matrix).flatten()))


def effective_rank(sigma: Float[Tensor, "r"]) -> float:
    """exp of the Shannon entropy of sigma / sum(sigma) (Roy & Vetterli 2007); 0 for a zero matrix.

    >>> round(effective_rank(torch.ones(5)), 10)
    5.0
    """
    top = sigma.max()
    if top <= 0:
        return 0.0
    relative = sigma.to(torch.float64) / top
    shares = relative / relative.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def stable_rank(sigma: Float[Tensor, "r"]) -> float:
    """||W||_F^2 / ||W||_2^2; 0 for a zero matrix.

    >>> stable_rank(torch.tensor([2.0, 1.0, 0.0]))
    1.25
    """
    top = sigma.max()
    if top <= 0:
        return 0.0
    return float(((sigma.to(torch.float64) / top) ** 2).sum())


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
    return inflate(operator_norm(matrix, norm), sum(matrix.shape))


def inflate(value: float, terms: int) -> float:
    """``value`` raised by the relative rounding error of a backward-stable float64 computation over ``terms`` terms.

    A sum of n terms is off by less than n eps; LAPACK's singular values by p(h, d) eps sigma_1 with p of the order of
    h + d (LAPACK Users' Guide, section 4.9). Eight times that leaves room. Where numbers are so small that only absolute
    rounding is left, the next larger one is taken; zero stays zero.
    """
    return math.nextafter(value * (1.0 + 8.0 * terms * EPS64), math.inf) if value > 0 else value


def times_up(*factors: float) -> float:
    """Product of numbers >= 0 that is never below the exact one: zero only where a factor is zero, never inf * 0.

    >>> times_up(1e-200, 1e-200) > 0, times_up(1e200, 1e200, 0.0)
    (True, 0.0)
    """
    if 0.0 in factors:
        return 0.0
    product = 1.0
    for factor in factors:
        product = math.nextafter(product * factor, math.inf)
    return product
